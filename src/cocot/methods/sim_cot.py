"""SIM-CoT: Coconut whose thoughts are also made to write the steps that they stand for (arXiv 2509.20317).

Beside the cross-entropy, a decoder reads the thoughts of step k, and nothing else, and is trained to write that step.
It is the model itself, with the same weights, so that nothing has to be dropped for answers; or, as in the paper, a
copy of it (`sim_cot_copy`), or only the first layer of a copy (`sim_cot_small`), which are. Where no text is left, the
last thoughts write all the steps that remain. Behind each the end of the text is written, so that thoughts can be read
(`interpret/thought_words.py`).
Read next: `methods/base.py`; `data/thought_targets.py` (the steps of a batch).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cocot.methods.base import CROSS_ENTROPY, Asked, Method, register, with_thoughts
from cocot.methods.codi import Codi
from cocot.methods.tokens import LATENT

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = "steps"
"""The name of the term: minus the log of the probability of the removed steps, mean over their tokens."""
DECODER = "decoder"
"""The part of the method's modules that reads the thoughts, if it is not the model itself."""
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
        return terms | step_terms(model, thoughts, batch)


@register
class SimCotCopy(SimCot):
    """SIM-CoT with a second decoder, a copy of the model's as training begins; the result does not have it."""

    name = "sim_cot_copy"
    summary = "sim_cot whose steps are written by a copy of the model, which answers do not need"
    num_decoder_layers: int | None = None
    """The layers of the copy; None for all of the model's."""

    def modules(self, model: Any) -> nn.Module:
        """The copy; its embeddings and its head are the model's."""
        from torch import nn  # recipes are read without it

        return nn.Sequential(OrderedDict({DECODER: model.copy_decoder(self.num_decoder_layers)}))


@register
class SimCotSmall(SimCotCopy):
    """SIM-CoT with a second decoder of one layer, the first of the model's as training begins."""

    name = "sim_cot_small"
    summary = "sim_cot whose steps are written by one layer beside the model, which answers do not need"
    num_decoder_layers = 1


@register
class CodiSimCot(Codi):
    """CODI whose student's thoughts are also made to write the steps."""

    name = "codi_sim_cot"
    summary = "codi whose thoughts are also trained to write the steps that they replace"
    keeps_modules = True
    asks = Codi.asks | SimCot.asks
    terms = (*Codi.terms, STEPS)

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The three terms of `codi`, and that of the steps."""
        losses = super().losses
        terms: dict[str, Tensor]
        terms, thoughts = with_thoughts(lambda **hook: losses(partial(run, **hook), model, batch))
        return terms | step_terms(model, thoughts, batch)


def step_terms(model: Any, thoughts: Sequence[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
    """The term of the steps, where the batch has removed any."""
    if "removed_steps" not in batch:
        return {}
    return {STEPS: step_loss(model, thoughts, batch["removed_steps"], batch["removed_thoughts"])}


def step_loss(model: Any, thoughts: Sequence[Tensor], steps: Tensor, places: Tensor) -> Tensor:
    """Minus the log of the probability of written steps, each behind its thoughts alone, mean over their tokens.

    Args:
        model: The model; its part `DECODER`, if it has one, reads the thoughts in its place.
        thoughts: As a `thought_hook` is given them, each (rows, examples of a row, width), all of one shape.
        steps: Token ids of each step, (steps, longest), int64; -100 where a step has no more.
        places: Of each step the thoughts that stand for it, in the flattened (examples x thoughts): (steps, thoughts a
            step), int64.

    Returns:
        A number.
    """
    import torch  # recipes are read without it
    from torch.nn.functional import cross_entropy

    embedded = model.get_input_embeddings()(steps.clamp(min=0))
    read = torch.stack([thought.flatten(0, 1) for thought in thoughts], dim=1).flatten(0, 1)[places].to(embedded)
    labels = torch.cat([torch.full_like(places, IGNORED), steps], dim=1)
    mask = torch.cat([torch.ones_like(places), (steps >= 0).long()], dim=1)
    inputs = {"inputs_embeds": torch.cat([read, embedded], dim=1), "attention_mask": mask}
    decoder = getattr(getattr(model, "method_modules", None), DECODER, None)
    if decoder is None:
        own: Tensor = model(**inputs, labels=labels).loss
        return own
    logits = model.head_logits(decoder(**inputs).last_hidden_state)
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
