"""A model's own head and loss, around hidden states that were computed elsewhere.

What a class does behind its decoder (one matrix product, soft caps, scales, a loss of its own) is written in its
`forward` alone. So that `forward` runs, on a copy of the model that shares every weight and whose decoder returns what
it is given. Nothing of the model itself changes, and other threads may use it meanwhile.

In: a model, its class's `forward`, what the decoder would return. Out: what `forward` makes of it.
Read next: `modeling/latent_model.py`, `modeling/self_test.py`, which use it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .recurrence import decoder_of


def run_head(model: Any, forward: Callable[..., Any], decoder_output: Any, **kwargs: Any) -> Any:
    """Run `forward` as if the decoder had returned `decoder_output`.

    Args:
        model: A causal language model.
        forward: The `forward` of its class, as a function of the model.
        decoder_output: What the decoder would return; `last_hidden_state` is (batch, columns, width).
        **kwargs: Passed to `forward`: `labels`, (batch, columns), and what goes with them.

    Returns:
        What `forward` returns: logits, (batch, columns, vocabulary), and with `labels` a loss.
    """
    decoder = decoder_of(model)
    path = next(name for name, part in model.named_modules() if part is decoder)
    given = _shallow(decoder)
    given.__dict__.update(
        forward=lambda *args, **kwargs: decoder_output, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict()
    )
    # Of the embeddings only the shape is read: the decoder's work is done.
    return forward(
        _with(model, path, given), inputs_embeds=decoder_output.last_hidden_state, return_dict=True, **kwargs
    )


def logits_of(model: Any, forward: Callable[..., Any], hidden: Tensor) -> Tensor:
    """What the head makes of hidden states alone.

    Args:
        model: A causal language model.
        forward: The `forward` of its class, as a function of the model.
        hidden: After the decoder's final norm, (batch, columns, width).

    Returns:
        (batch, columns, vocabulary).
    """
    logits: Tensor = run_head(model, forward, _HiddenStates(last_hidden_state=hidden)).logits
    return logits


class _HiddenStates(BaseModelOutputWithPastAndCrossAttentions):
    """What any decoder returns, of which only the last hidden states are known: classes pass on the rest as it is."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _with(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """A copy of `module` with `part` at a dotted path; all else is shared."""
    name, _, rest = path.partition(".")
    twin, child = _shallow(module), module.get_submodule(name)
    twin._modules[name] = _with(child, rest, part) if rest else part
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    twin: nn.Module = object.__new__(type(module))  # `copy` would initialise a model again that FSDP shares out
    twin.__dict__.update(module.__dict__)
    twin._modules = dict(module._modules)
    return twin
