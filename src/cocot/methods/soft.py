"""Soft thoughts: mixtures of words, learned from the sets of right next words (CoT2, Gozeten et al., arXiv 2505.23648).

A thought is the mean of all word embeddings, weighed by the probabilities that the model's own head gives the words. So
training needs no recurrence: the right mixtures are known, are fed in the places of the thoughts, and one pass learns
to predict each of them from what comes before it, and the answer from all. The right mixture of step k weighs alike
all that a search has reached by then (`Task.frontiers`), or, where a task does not say, the words of step k; that of a
thought behind the last step is the token that follows the thoughts. Answers think with the model's own mixtures, as
many as the stage has, or (`soft_adaptive`) until that token is the likeliest. A model that was trained so can go on to
learn the same behind its own mixtures (`soft_own_mixtures`), which are then made one after the other.
Read next: `methods/base.py`; `modeling/thought_inputs.py` (the mixture).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from cocot.methods.base import (
    CROSS_ENTROPY,
    Asked,
    CurriculumConfig,
    OneStage,
    draw_enough_thoughts,
    register,
    with_thoughts,
)
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor

MIXTURE = "mixture"
"""The name of the term: the cross-entropy of what is predicted for each thought with the right mixture."""


@register
class Soft(OneStage):
    """Thoughts that are mixtures of words, trained on the right ones in one pass."""

    name = "soft"
    summary = "thoughts are mixtures of words, trained in one pass on the sets of right next words"
    filler = LATENT
    needs_steps = True
    asks = frozenset({Asked.FRONTIERS})
    mixes_words = True
    terms = (MIXTURE,)

    def targets(self, said: tuple[int, ...], step: Sequence[int], follows: int, tokenizer: Any) -> tuple[int, ...]:
        """What the task says, else the words of the step; behind the last step what follows the thoughts."""
        return said or tuple(sorted({*step})) or (follows,)

    def mixtures(self, run: Callable[..., Any], model: Any, is_thought: Tensor, targets: Tensor) -> Tensor:
        """What stands in the places of the thoughts: the right mixtures.

        Args:
            run: As `losses` is given it.
            model: The model.
            is_thought: Where thoughts are, (batch, columns), bool.
            targets: Token ids of each thought's set, (thoughts of all rows, most ids), int64; -100 where there is none.

        Returns:
            (thoughts of all rows, width).
        """
        return right_mixtures(model.get_input_embeddings(), targets)

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The cross-entropy of the text after the thoughts, and that of the thoughts themselves."""
        if "thought_targets" not in batch:
            return {CROSS_ENTROPY: run().loss}
        is_thought = batch["input_ids"] == model.config.thoughts["latent_id"]
        targets = batch["thought_targets"]
        targets = targets[targets[..., 0] >= 0]  # row by row, as the placeholders lie
        embedded: Tensor = model.get_input_embeddings()(batch["input_ids"])
        mixtures = self.mixtures(run, model, is_thought, targets).to(embedded)
        output = run(
            input_ids=None,
            inputs_embeds=embedded.masked_scatter(is_thought[..., None], mixtures),
            position_ids=(batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0),
            latent_columns=None,
            loss_positions=None,
        )
        before = output.logits[:, :-1][is_thought[:, 1:]]
        return {CROSS_ENTROPY: output.loss, MIXTURE: mixture_loss(before, targets)}


@register
class SoftAdaptive(Soft):
    """Soft thoughts that end by themselves: as soon as the token that follows them is the likeliest.

    Training examples have as many thoughts as their steps take, or more, so that the answer is learned behind each of
    these numbers; the thoughts behind the last step teach when to stop.
    """

    name = "soft_adaptive"
    summary = "soft that stops as soon as the token behind the thoughts is the likeliest"
    stops_at_end = True

    def draw_thoughts(self, num_steps: int, index: int, config: CurriculumConfig, chance: Random) -> int:
        """As many as the problem's steps take, or more of them, up to the stage's."""
        return draw_enough_thoughts(num_steps, index, config, chance)


@register
class SoftOwnMixtures(Soft):
    """Soft thoughts trained where answers go: behind the mixtures that the model itself would think.

    They are made first, without a gradient, and then stand in the places of the right ones; what is learned there is
    the same. From new weights it has nothing to begin with: it goes on where `soft` ended (`model.path`, or a phase).
    """

    name = "soft_own_mixtures"
    summary = "soft that is trained behind its own mixtures, as answers have them"

    def mixtures(self, run: Callable[..., Any], model: Any, is_thought: Tensor, targets: Tensor) -> Tensor:
        """The model's own."""
        import torch  # recipes are read without it

        with torch.no_grad():
            _, thoughts = with_thoughts(run)
        columns = is_thought.any(dim=0)
        return torch.cat(thoughts, dim=1)[is_thought[:, columns]]


def right_mixtures(table: Any, targets: Tensor) -> Tensor:
    """The mean embedding of every set of words.

    Args:
        table: The input embeddings.
        targets: Token ids of each set, (sets, most ids), int64; -100 where a set has no more.

    Returns:
        (sets, width).
    """
    is_id = (targets >= 0)[..., None]
    sums: Tensor = (table(targets.clamp(min=0)) * is_id).sum(dim=1)
    return (sums / is_id.sum(dim=1)).to(sums.dtype)


def mixture_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the mixtures that weigh the ids of a set alike, mean over the thoughts.

    Args:
        logits: From which each thought is predicted, (thoughts, vocabulary).
        targets: Token ids of each set, (thoughts, most ids), int64; -100 where a set has no more.
    """
    is_id = targets >= 0
    of_ids = logits.float().log_softmax(dim=-1).gather(1, targets.clamp(min=0))
    return -((of_ids * is_id).sum(dim=1) / is_id.sum(dim=1)).mean()
