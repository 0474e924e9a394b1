# %% [markdown]
# # Example: your own data
#
# A file of twenty problems, one JSON object a line: a question, the steps of its solution, the answer. Each asks for
# a day of the week and takes one, two or three steps. Run the file as a script from the root of the checkout, or cell
# by cell in an editor or in Jupyter.

# %%
import cocot

problems = cocot.read_problems("examples/problems.jsonl")
for problem in problems[:3]:
    print(problem.question, *problem.steps, f"### {problem.answer}", sep="\n  ")

# %% [markdown]
# What every stage makes of a problem, before anything is trained. Tokens in brackets have a loss; `<|latent|>` is the
# place of a thought.

# %%
print(cocot.describe_training("examples/own_data.yaml"))

# %% [markdown]
# Train. The same call resumes where it was interrupted, and returns at once when the run is finished.

# %%
run = cocot.train("examples/own_data.yaml", "runs/own_data")
run

# %% [markdown]
# Each stage replaces one more step by a thought; accuracy falls where a stage begins, and recovers. Now ask it all
# twenty:

# %%
cocot.evaluate(run)

# %% [markdown]
# It has learned from all of them, so this number says that file, recipe and commands fit together, and nothing about
# a rule: twenty problems are learned by heart. One question of the kind is not in the file:

# %%
model, tokenizer = cocot.load(run)
(answer,) = cocot.answer(model, tokenizer, ["which day is 2 days after monday ?"])
print(answer.text, "after", answer.num_thoughts, "thoughts")

# %% [markdown]
# The answer to that one would be wednesday. With some thousands of problems, and others for validation, nothing else
# changes.
