"""What is right after each thought, for a batch: sets of token ids as one tensor.

In: `Example`s with `targets`. Out: a tensor that lies as the thoughts of an end-aligned batch do.
Read next: `methods/frontier.py`, which learns from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cocot.data.examples import IGNORED, Example

THOUGHT_TARGETS = "thought_targets"
"""Their name in a batch: for a method's loss, none of the model's inputs."""


def thought_targets(examples: Sequence[Example]) -> Tensor | None:
    """The sets of the thoughts of a batch.

    Args:
        examples: Rows of the batch. Their thoughts end together: one with fewer begins later.

    Returns:
        (examples, most thoughts, most ids of a set), int64, -100 where there is none; None where no example has any.
    """
    most_ids = max((len(ids) for example in examples for ids in example.targets), default=0)
    if most_ids == 0:
        return None
    most = max(example.num_thoughts for example in examples)
    targets = torch.full((len(examples), most, most_ids), IGNORED)
    for row, example in enumerate(examples):
        first = most - example.num_thoughts
        for number, ids in enumerate(example.targets, first):
            targets[row, number, : len(ids)] = torch.tensor(ids)
    return targets
