# %% [markdown]
# # Example: adding a method
#
# A method is one class. This one is Coconut with one more term in its loss: every thought must also say, through a
# small linear layer that is thrown away after training, how many thoughts are still to come.

# %%
import torch
from torch import nn

import cocot
from cocot.methods import CROSS_ENTROPY, register
from cocot.methods.coconut import Coconut


@register
class Countdown(Coconut):
    name = "countdown"
    summary = "Coconut whose thoughts also say how many thoughts are still to come"
    weight = 0.1

    def modules(self, model):
        return nn.Linear(model.config.hidden_size, 1)

    def losses(self, run, model, batch):
        thoughts = []

        def note(number, thought):
            thoughts.append(thought)
            return thought  # fed back as it is

        terms = {CROSS_ENTROPY: run(thought_hook=note).loss}
        if thoughts:
            read = model.method_modules(torch.cat(thoughts, dim=1))[..., 0]  # (batch, thoughts)
            left = torch.arange(len(thoughts) - 1, -1, -1, device=read.device)
            terms["countdown"] = self.weight * (read - left).square().mean()
        return terms


# %% [markdown]
# That is all. Recipes, the command line and tables know it by its name; here it trains on the twenty problems of the
# first example. In a package of yours an entry point of the group `cocot.methods` makes it known to every process:
#
# ```toml
# [project.entry-points."cocot.methods"]
# countdown = "my_package.countdown:Countdown"
# ```

# %%
run = cocot.train("examples/own_data.yaml", "runs/countdown", curriculum={"method": "countdown"})
run

# %% [markdown]
# Both terms are in the log:

# %%
for entry in run.read_log():
    if "loss_countdown" in entry:
        terms = {name: round(entry[name], 4) for name in ("loss_cross_entropy", "loss_countdown")}
        print(entry["stage"], "step", entry["step"], terms)

# %% [markdown]
# The result is a plain model without the layer, asked like any other:

# %%
problems = cocot.read_problems("examples/problems.jsonl")
evaluation = cocot.evaluate(run, problems=problems)
print(f"{evaluation.metrics.accuracy:.0%} of the {len(problems)} problems that it learned from")
