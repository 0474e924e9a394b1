"""The hidden states of every layer, while a model trains: what distillation between two readings compares.

    with layer_states(model) as states:
        loss = model(**batch).loss
    before = states.at(columns, num_columns)      # one (rows, width) a layer

Read next: `methods/codi.py`.
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
