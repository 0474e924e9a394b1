"""Several questions about one text in a row: where their tokens stand.

A row holds the text, padded on the left, and behind it the questions' own tokens *interleaved by column*: the first of
every question, then the second of every question, and so on. So one thought of each question takes adjacent columns,
which one pass reads.

In: a mask of the padding. Out: positions, and columns sorted by question, with which every question's numbers are those
of a row of its own.
Read next: `data/shared_reading.py` (which makes such batches), `modeling/shared_passes.py` (whose passes read them).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SharedReading(NamedTuple):
    """How a row is laid out.

    Attributes:
        num_columns: Columns of the text that the questions share, padding on its left included.
        num_questions: Questions about it.
    """

    num_columns: int
    num_questions: int


def positions_in(attention_mask: Tensor, reading: SharedReading) -> Tensor:
    """Positions by which each question's tokens continue the count of the text, (rows, columns), padding not counted.

    Args:
        attention_mask: 0 at padding, (rows, columns).
        reading: The layout.
    """
    shared, own = attention_mask.long().split_with_sizes(_widths(attention_mask, reading), dim=1)
    shared = shared.cumsum(dim=1)
    by_question = torch.unflatten(own, 1, (-1, reading.num_questions)).cumsum(dim=1) + shared[:, -1:, None]
    return (torch.cat([shared, by_question.flatten(1)], dim=1) - 1).clamp(min=0)


def by_question(tensor: Tensor, num_questions: int) -> Tensor:
    """Interleaved columns sorted by question: (..., columns, width) -> (..., questions, columns of each, width)."""
    return torch.unflatten(tensor, -2, (-1, num_questions)).transpose(-3, -2)


def interleaved(tensor: Tensor) -> Tensor:
    """The inverse of `by_question`."""
    return tensor.transpose(-3, -2).flatten(-3, -2)


def _widths(attention_mask: Tensor, reading: SharedReading) -> list[int]:
    return [reading.num_columns, attention_mask.shape[1] - reading.num_columns]
