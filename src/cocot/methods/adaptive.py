"""Thoughts that end by themselves: Coconut with a decision after each of them whether it was the last.

The paper names a classifier on the thoughts as one way to end them (arXiv 2412.06769, section 3; by reinforcement,
arXiv 2511.21581). Here two logits are read off every thought: go on, or stop. They learn to stop as soon as the
thoughts are as many as the problem's steps take. Each training example has a number of thoughts drawn from as many as
its steps take to as many as the stage has, so that the answer does not depend on stopping in time.

An answer's number of thoughts is then the most it may take: a budget.
Read next: `methods/base.py`; `modeling/early_stop.py` (the decision at answering time).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from cocot.methods.base import (
    CROSS_ENTROPY,
    STOP,
    Asked,
    CurriculumConfig,
    Method,
    draw_enough_thoughts,
    register,
    with_thoughts,
)
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
class Adaptive(Method):
    """Coconut that also learns when its thoughts are enough."""

    name = "adaptive"
    summary = "coconut that decides after each thought whether it was the last"
    filler = LATENT
    keeps_modules = True
    takes_shared_readings = True
    asks = frozenset({Asked.STOPS})
    terms = (STOP,)

    def num_thoughts(self, num_steps: int, index: int, config: CurriculumConfig) -> int:
        """The most that a problem can have at a stage."""
        return index * config.thoughts_per_step

    def draw_thoughts(self, num_steps: int, index: int, config: CurriculumConfig, chance: Random) -> int:
        """As many as the problem's steps take, or more of them, up to the stage's."""
        return draw_enough_thoughts(num_steps, index, config, chance)

    def modules(self, model: Any) -> nn.Module:
        """Two logits of a thought: go on, stop."""
        from torch import nn  # recipes are read without it

        return nn.Sequential(OrderedDict({STOP: nn.Linear(model.config.get_text_config().hidden_size, 2)}))

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The cross-entropy, and that of the decisions where the batch has thoughts."""
        output, thoughts = with_thoughts(run)
        terms = {CROSS_ENTROPY: output.loss}
        if "stop_targets" in batch:
            terms[STOP] = stop_loss(model.method_modules.stop, thoughts, batch["stop_targets"])
        return terms


def stop_loss(stop: nn.Module, thoughts: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of the decisions, mean over the thoughts.

    Args:
        stop: Makes two logits of a thought.
        thoughts: In order, each (rows, examples of a row, width).
        targets: 1 where a thought is the last that is needed, or behind it, 0 before; -100 where there is no thought;
            (examples, thoughts), int64.
    """
    import torch
    from torch.nn.functional import cross_entropy

    decisions: Tensor = stop(torch.stack([thought.flatten(0, 1) for thought in thoughts], dim=1))
    return cross_entropy(decisions.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
