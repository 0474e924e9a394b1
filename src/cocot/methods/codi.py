"""CODI: the reasoning in words teaches the reasoning in thoughts, in one model (Shen et al., arXiv 2502.21074).

The same weights read every problem twice. The *teacher* reads the question and the written steps but the last, and
learns to write the steps and the answer. The *student* reads the question and its thoughts, and learns to write the
answer. At the one position from which both predict the answer's first word, the student's hidden states learn to be
the teacher's. There are no stages.

In: batches with the written solution of every problem beside it. Out: three terms of the loss.
Read next: `methods/base.py`; `data/examples.py` (the teacher's text); `modeling/layer_states.py` (the hidden states).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cocot.methods.base import CROSS_ENTROPY, PROJECTION, Asked, OneStage, register
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor, nn

TEACHER = "teacher"
"""The name of the teacher's term: minus the log of the probability of steps and answer, mean over their tokens."""
DISTILLATION = "distillation"
"""The name of the term between the two: how far the student's hidden states are from the teacher's."""


@register
class CodiWithoutProjection(OneStage):
    """Self-distillation; a thought is the last hidden state itself, as in Coconut."""

    name = "codi_without_projection"
    summary = "codi whose thoughts are fed back as they are"
    filler = LATENT
    needs_steps = True
    asks = frozenset({Asked.SOLUTIONS})
    terms: tuple[str, ...] = (TEACHER, DISTILLATION)

    def check(self, model: Any) -> None:
        """The states of the layers must be found."""
        with model.layer_states():
            pass

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The student's cross-entropy, the teacher's, and the distance of their states before the answer."""
        written: dict[str, Any] = dict(batch["written"])
        before_answer = written.pop("answer_prompts")
        with model.layer_states() as student:
            loss = run().loss
        with model.layer_states() as teacher:
            teacher_loss = model(**written).loss
        distance = distillation_loss(
            student.at(batch["answer_prompts"], batch["input_ids"].shape[1]),
            teacher.at(before_answer, written["input_ids"].shape[1]),
        )
        return {CROSS_ENTROPY: loss, TEACHER: teacher_loss, DISTILLATION: distance}


@register
class Codi(CodiWithoutProjection):
    """Self-distillation; every thought goes through a small network before it is fed back."""

    name = "codi"
    summary = "a model that reasons in words teaches itself to reason in thoughts"
    keeps_modules = True

    def modules(self, model: Any) -> nn.Module:
        """The projection: Linear, GELU, Linear, LayerNorm, all of the model's width."""
        from torch import nn  # recipes are read without it

        width = model.config.get_text_config().hidden_size
        layers = nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        return nn.Sequential(OrderedDict({PROJECTION: nn.Sequential(*layers)}))  # peft takes no ModuleDict


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Smooth L1 between hidden states, in units of the teacher's standard deviation, mean over layers and rows.

    The standard deviation is that of one row's state over its width: no row depends on its batch mates.

    Args:
        student: The state of every layer, each (rows, width).
        teacher: The same; no gradient reaches it.
    """
    import torch
    from torch.nn.functional import smooth_l1_loss

    ours, theirs = torch.stack([*student]).float(), torch.stack([*teacher]).float().detach()
    apart = smooth_l1_loss(ours, theirs, reduction="none").mean(dim=-1)
    return (apart / theirs.std(dim=-1)).mean()
