# %% [markdown]
# # Example: looking inside
#
# What the bundled model thinks of every node of a search, thought by thought. Nothing is trained.

# %%
import cocot

search = cocot.probe("prosqa-small", count=50)
print(search)

# %% [markdown]
# The tree of one problem after no thought, one thought, and two. A disc fills with the probability that the node is
# the next step.

# %%
search.tree(0)

# %% [markdown]
# The numbers behind it are arrays, and their names and shapes stand in the docstring of `cocot.SearchTree`. Here, for
# each number of thoughts, how much probability lies on nodes that the next step can name:

# %%
for k in range(2):
    print(k, "thoughts:", search.probability_mass(k)["frontier"].mean().round(3))

# %% [markdown]
# Do the thoughts matter? Ask the same model with other thoughts in their place, and with fewer.

# %%
cocot.evaluate("prosqa-small", count=100, ablations=True)

# %% [markdown]
# With another problem's thoughts (`shuffled`) nine of ten answers are wrong: the thoughts hold what the answer
# depends on.
