"""Examples -> tensors: end-aligned batches of like lengths, and the data set that a stage of training reads.

*End-aligned*: every row is padded on the left until the text after the thoughts begins in one column for all rows.
Then the thoughts of all rows end together, so a batch takes as few passes as its longest chain of thoughts, and all
labels fall into the last pass. Correctness does not depend on it.

A batch also says where its thoughts and labels are, so that a step never waits for a device to tell.

In: `Example`s. Out: what `model.Thoughts.forward` takes.
Read next: `modeling/latent_model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cocot.data.examples import IGNORED, Example
from cocot.data.shared_reading import Layout, find_layout, shared_tensors
from cocot.data.thought_targets import ANSWER_PROMPTS, WRITTEN, asked_of_thoughts


def collate(
    examples: Sequence[Example], pad_id: int, latent_id: int, num_splits: int = 0, shares_reading: bool = False
) -> dict[str, Any]:
    """Put examples into one end-aligned batch.

    Args:
        examples: Rows; prompts and texts of any length.
        pad_id: Fills the padding of `input_ids`; never read by the model.
        latent_id: The placeholder of a thought.
        num_splits: Places at least where passes part, thoughts or not: processes that hold a model together must run
            its layers equally often, whatever thoughts their batches have.
        shares_reading: Whether consecutive examples that begin with the same tokens may share a row, where that leaves
            at most three quarters of the positions; not with `num_splits`.

    Returns:
        `input_ids`, `attention_mask` (0 at padding) and `labels` (-100 at padding), each (batch, columns), int64;
        `latent_columns`, the columns that hold a thought in any row, as numbers, with others for `num_splits`; and
        `loss_positions`, as `label_positions` gives it. Where rows are shared also `shared_reading`: columns that the
        questions of a row share, and questions a row (`data/shared_reading.py`); then `latent_columns` has the first
        column of each group of columns, and `loss_positions` counts the columns behind the shared ones.
        Where the method asks for the written solutions also `written`, a batch of these, and in both batches
        `answer_prompts`, of each row the column from which the answer's first token is predicted, (batch,), int64.
    """
    layout = find_layout(examples, latent_id) if shares_reading else None
    if layout is not None:
        return _shared(examples, layout, pad_id, latent_id)
    before = max(example.prompt_length for example in examples)
    after = max(len(example.input_ids) - example.prompt_length for example in examples)
    before = max(before, num_splits + 1 - after)  # the first column is no split

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        in_front = (before - example.prompt_length for example in examples)
        parts = ([fill] * gap + row for gap, row in zip(in_front, rows, strict=True))
        return torch.from_numpy(np.array([part + [fill] * (before + after - len(part)) for part in parts]))

    input_ids = padded([example.input_ids for example in examples], pad_id)
    attention_mask = padded([[1] * len(example.input_ids) for example in examples], 0)
    labels = padded([example.labels for example in examples], IGNORED)
    columns: list[int] = (input_ids == latent_id).any(dim=0).nonzero().flatten().tolist()
    if num_splits > len(columns):
        others = [column for column in range(input_ids.shape[1] - 1, 0, -1) if column not in columns]
        columns = sorted(columns + others[: num_splits - len(columns)])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "latent_columns": columns,
        "loss_positions": label_positions(labels),
        **asked_of_thoughts(examples),
        **_with_written(examples, before, pad_id, latent_id),
    }


def _with_written(examples: Sequence[Example], before: int, pad_id: int, latent_id: int) -> dict[str, Any]:
    """The written solutions as a batch of their own, and in both the column that predicts each row's answer.

    Args:
        examples: The rows.
        before: Columns in front of the text that is learned.
        pad_id: As in `collate`.
        latent_id: As in `collate`.
    """
    written = [example.written for example in examples if example.written]
    if not written:
        return {}
    longest = max(example.prompt_length for example in written)
    batch = collate(written, pad_id, latent_id) | {ANSWER_PROMPTS: _answer_prompts(written, longest)}
    return {WRITTEN: batch, ANSWER_PROMPTS: _answer_prompts(examples, before)}


def _answer_prompts(examples: Sequence[Example], before: int) -> Tensor:
    return torch.tensor([before - example.prompt_length + example.answer_prompt for example in examples])


def _shared(examples: Sequence[Example], layout: Layout, pad_id: int, latent_id: int) -> dict[str, Any]:
    input_ids, attention_mask, labels = shared_tensors(examples, layout, pad_id)
    start, distance = layout.num_shared, layout.num_questions
    in_any_row = (input_ids[:, start:] == latent_id).any(dim=0)
    is_latent = in_any_row.reshape(-1, distance).any(dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "latent_columns": (start + distance * is_latent.nonzero().flatten()).tolist(),
        "loss_positions": label_positions(labels[:, start:], distance),
        "shared_reading": (start, distance),
        **asked_of_thoughts(examples),
    }


def label_positions(labels: Tensor, distance: int = 1) -> Tensor:
    """Where the next token has a loss: positions in the flattened (batch x columns) of `labels`, int64, ascending.

    Args:
        labels: -100 where there is no loss, (batch, columns).
        distance: Columns from a token to the next one.
    """
    has_loss = functional.pad(labels[:, distance:], (0, distance), value=IGNORED) != IGNORED
    return has_loss.flatten().nonzero().flatten()
