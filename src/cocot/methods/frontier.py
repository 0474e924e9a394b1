"""Frontier: Coconut whose every thought is also asked what is known by then.

Beside the cross-entropy, each thought is read through the model's own head, and minus the log of the probability that
falls on the *set* of right words is minimised. For a search in a graph, the set after k thoughts is all nodes that are
k steps from the root: the frontier of a breadth-first search. One set says nothing of which branch is taken, so that a
thought may hold them all. The paper has no such term; arXiv 2509.23365 has it for the last thought only.

Tasks give the sets (`Task.frontiers`). Where a task says nothing, as of any text, the set of a step has one word, what
the step arrives at: its last.
Read next: `methods/base.py`; `data/thought_targets.py` (the sets of a batch).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cocot.methods.base import CROSS_ENTROPY, Asked, Method, register, with_thoughts
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor

FRONTIER = "frontier"
"""The name of the term: minus the log of the probability of a set, mean over the thoughts that have one."""


@register
class Frontier(Method):
    """Coconut with a loss on every thought."""

    name = "frontier"
    summary = "coconut whose every thought is also trained to name what is known by then"
    filler = LATENT
    shares_first_stage = True
    takes_shared_readings = True
    asks = frozenset({Asked.FRONTIERS})
    terms = (FRONTIER,)

    def targets(self, said: tuple[int, ...], step: Sequence[int], follows: int, tokenizer: Any) -> tuple[int, ...]:
        """What the task says, else the last word of the step."""
        return said or last_word(step, tokenizer)

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The cross-entropy, and the term of the thoughts where any of the batch has a set."""
        output, thoughts = with_thoughts(run)
        terms = {CROSS_ENTROPY: output.loss}
        targets = batch.get("thought_targets")
        if targets is not None:
            terms[FRONTIER] = set_loss(model.thought_logits(thoughts), targets)
        return terms


def last_word(step: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """The first token of the last run of letters or digits in a step's tokens; empty where there is none."""
    words = [*re.finditer(r"\w+", tokenizer.decode([*step]))]
    if not words:
        return ()
    begin = words[-1].start()
    return (step[next(n for n in reversed(range(len(step))) if len(tokenizer.decode([*step[:n]])) <= begin)],)


def set_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log of the probability of sets of tokens, mean over the sets that are not empty.

    Args:
        logits: (examples, thoughts, vocabulary).
        targets: Token ids of each set, (examples, thoughts, most), int64; -100 where a set has no more.

    Returns:
        A number, float32.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    is_id = targets >= 0
    of_ids = log_probabilities.gather(2, targets.clamp(min=0)).masked_fill(~is_id, float("-inf"))
    return -of_ids[is_id.any(dim=-1)].logsumexp(dim=-1).mean()
