"""What a hidden state becomes before it is fed back as a thought.

Coconut feeds it back as it is. CODI sends it through a small network. Soft thinking reads it through the model's own
head, and feeds back the mean of all word embeddings, weighed by the probabilities of the words.

In: a model, its class's `forward`, the network if there is one. Out: a `ThoughtHook` for `think`.
This file is copied into exported folders, as it is. Read next: `modeling/recurrence.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .own_head import logits_of
from .recurrence import ThoughtHook

Change = Callable[[Tensor], Tensor]
"""Of hidden states, (batch, n, width), to thoughts of the same shape."""


def thought_inputs(
    model: Any, forward: Callable[..., Any], project: Change | None, is_mixture: bool, hook: ThoughtHook | None = None
) -> ThoughtHook | None:
    """What becomes of a hidden state: through the network, to a mixture of words, then what the caller's hook makes.

    Args:
        model: The model.
        forward: The `forward` of its class, as a function of the model.
        project: The network; None for none.
        is_mixture: Whether thoughts are mixtures of word embeddings.
        hook: The caller's; None for none.

    Returns:
        A hook that does all of it; None where nothing is done.
    """
    changes = [change for change in (project, _mixture(model, forward) if is_mixture else None) if change is not None]
    if not changes:
        return hook

    def changed(number: int, thought: Tensor) -> Tensor:
        for change in changes:
            thought = change(thought)
        return thought if hook is None else hook(number, thought)

    return changed


def _mixture(model: Any, forward: Callable[..., Any]) -> Change:
    """The mean of the embeddings of all words, weighed by their probabilities."""
    table = model.get_input_embeddings()
    words = table(torch.arange(table.weight.shape[0], device=table.weight.device))

    def mix(hidden: Tensor) -> Tensor:
        logits = logits_of(model, forward, hidden)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
        mixture: Tensor = probabilities @ words[: probabilities.shape[-1]].to(probabilities)
        return mixture.to(hidden.dtype)

    return mix
