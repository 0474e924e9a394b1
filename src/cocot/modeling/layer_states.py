"""The layers of a decoder: their hidden states while a model trains, and a decoder with its first layers alone.

Distillation between two readings compares the hidden states of every layer:

    with layer_states(model) as states:
        loss = model(**batch).loss
    before = states.at(columns, num_columns)      # one (rows, width) a layer

Read next: `methods/codi.py`, which does so; `methods/sim_cot.py`, whose second decoder may have a single layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from cocot.errors import ModelError
from cocot.modeling.recurrence import decoder_of


@dataclass
class LayerStates:
    """What each decoder layer gave in the last pass of a call: the text behind the thoughts lies there.

    Attributes:
        by_layer: By the layer's number, (rows, columns of the last pass, width). Those of the last layer are the ones
            before the final norm.
    """

    by_layer: dict[int, Tensor] = field(default_factory=dict)

    def at(self, columns: Tensor, num_columns: int) -> list[Tensor]:
        """One position of each row.

        Args:
            columns: Of a column in the last pass, (rows,), int64.
            num_columns: Columns of the whole call.

        Returns:
            For each layer, (rows, width).
        """
        rows = torch.arange(len(columns), device=columns.device)
        return [self.by_layer[number][rows, columns - num_columns] for number in sorted(self.by_layer)]


@contextmanager
def layer_states(model: Any) -> Iterator[LayerStates]:
    """Keep what the layers of `model` give meanwhile; one call of it.

    Raises:
        ModelError: its layers are of no kind that transformers knows.
    """
    layers = _layers(decoder_of(model))
    if not layers:
        raise ModelError(f"the layers of {type(model).__name__} are not found, so their hidden states cannot be read.")
    states = LayerStates()
    with ExitStack() as stack:
        for number, layer in enumerate(layers):

            def keep(module: nn.Module, inputs: Any, output: Any, number: int = number) -> None:
                states.by_layer[number] = output[0] if isinstance(output, tuple) else output

            stack.callback(layer.register_forward_hook(keep).remove)
        yield states


def _layers(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's layers, in order; what lies within one is none."""
    found: list[nn.Module] = []
    for part in decoder.children():
        found += [part] if isinstance(part, GradientCheckpointingLayer) else _layers(part)
    return found


@torch.no_grad()
def keep_first_layers(decoder: Any, num_layers: int) -> None:
    """Take all layers but the first from a decoder, in place; its final norm stays.

    Args:
        decoder: What turns embeddings into hidden states; a copy, with a config of its own.
        num_layers: How many layers stay; all where it has fewer.

    Raises:
        ModelError: its layers are not found, or it does not run with so few.
    """
    layers = {*_layers(decoder)}
    stacks = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and layers & {*part}]
    reason = "they do not lie in one list"
    if len(stacks) == 1 and layers == {*stacks[0]}:
        del stacks[0][num_layers:]
        decoder.config.num_hidden_layers = len(stacks[0])
        try:
            words = decoder.get_input_embeddings()
            decoder(inputs_embeds=words(torch.zeros(1, 2, dtype=torch.long, device=words.weight.device)))
            return
        except Exception as error:  # of many kinds: a class may count on any of its layers
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    raise ModelError(f"{type(decoder).__name__} cannot be cut down to {num_layers} of its layers: {reason}.")
