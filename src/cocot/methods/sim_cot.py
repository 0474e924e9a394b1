"""SIM-CoT: Coconut whose thoughts are also made to write the steps that they stand for (arXiv 2509.20317).

Beside the cross-entropy, a decoder reads the thoughts of step k, and nothing else, and is trained to write that step.
Here the decoder is the model itself, with the same weights: nothing is added, and nothing has to be dropped for
answers. Where no text is left, the last thoughts write all the steps that remain.
Read next: `methods/base.py`; `data/thought_targets.py` (the steps of a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cocot.methods.base import CROSS_ENTROPY, Asked, Method, register, with_thoughts
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor

STEPS = "steps"
"""The name of the term: minus the log of the probability of the removed steps, mean over their tokens."""
IGNORED = -100


@register
class SimCot(Method):
    """Coconut with a loss on what each thought can be written down as."""

    name = "sim_cot"
    summary = "coconut whose thoughts are also trained to write the steps that they replace"
    filler = LATENT
    shares_first_stage = True
    takes_shared_readings = True
    asks = frozenset({Asked.STEPS})
    terms = (STEPS,)

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The cross-entropy, and the term of the steps where the batch has removed any."""
        output, thoughts = with_thoughts(run)
        terms = {CROSS_ENTROPY: output.loss}
        if "removed_steps" in batch:
            terms[STEPS] = step_loss(model, thoughts, batch["removed_steps"], batch["removed_thoughts"])
        return terms


def step_loss(model: Any, thoughts: Sequence[Tensor], steps: Tensor, places: Tensor) -> Tensor:
    """Minus the log of the probability of written steps, each behind its thoughts alone, mean over their tokens.

    Args:
        model: The decoder.
        thoughts: As a `thought_hook` is given them, each (rows, examples of a row, width), all of one shape.
        steps: Token ids of each step, (steps, longest), int64; -100 where a step has no more.
        places: Of each step the thoughts that stand for it, in the flattened (examples x thoughts): (steps, thoughts a
            step), int64.

    Returns:
        A number.
    """
    import torch  # recipes are read without it

    embedded = model.get_input_embeddings()(steps.clamp(min=0))
    read = torch.stack([thought.flatten(0, 1) for thought in thoughts], dim=1).flatten(0, 1)[places].to(embedded)
    labels = torch.cat([torch.full_like(places, IGNORED), steps], dim=1)
    mask = torch.cat([torch.ones_like(places), (steps >= 0).long()], dim=1)
    loss: Tensor = model(inputs_embeds=torch.cat([read, embedded], dim=1), attention_mask=mask, labels=labels).loss
    return loss
