"""Examples -> tensors: end-aligned batches of like lengths, and the data set that a stage of training reads.

*End-aligned*: every row is padded on the left until the text after the thoughts begins in one column for all rows.
Then the thoughts of all rows end together, so a batch takes as few passes as its longest chain of thoughts, and all
labels fall into the last pass. Correctness does not depend on it.

A batch also says where its thoughts and labels are, so that a step never waits for a device to tell.

In: `Example`s. Out: what `model.Thoughts.forward` takes.
Read next: `modeling/latent_model.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from cocot.data.curriculum import IGNORED, Encoder, Example, Stage
from cocot.data.encoding import tokenize
from cocot.errors import DataError
from cocot.modeling.recurrence import latent_columns
from cocot.tasks.problem import Problem

_CHUNK = 128
"""Batches of like lengths are looked for among so many: enough for little padding, few enough to vary."""

Lengths = Sequence[tuple[int, int]]


def collate(examples: Sequence[Example], pad_id: int, latent_id: int, num_splits: int = 0) -> dict[str, Any]:
    """Put examples into one end-aligned batch.

    Args:
        examples: Rows; prompts and texts of any length.
        pad_id: Fills the padding of `input_ids`; never read by the model.
        latent_id: The placeholder of a thought.
        num_splits: Places at least where passes part, thoughts or not: processes that hold a model together must run
            its layers equally often, whatever thoughts their batches have.

    Returns:
        `input_ids`, `attention_mask` (0 at padding) and `labels` (-100 at padding), each (batch, columns), int64;
        `latent_columns`, the columns that hold a thought in any row, as numbers, with others for `num_splits`; and
        `loss_positions`, as `label_positions` gives it.
    """
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
    columns = latent_columns(input_ids == latent_id)
    if num_splits > len(columns):
        others = [column for column in range(input_ids.shape[1] - 1, 0, -1) if column not in columns]
        columns = sorted(columns + others[: num_splits - len(columns)])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "latent_columns": columns,
        "loss_positions": label_positions(labels),
    }


def label_positions(labels: Tensor) -> Tensor:
    """Where the next token has a loss: positions in the flattened (batch x columns) of `labels`, int64, ascending."""
    return (functional.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED).flatten().nonzero().flatten()


class StageData(Dataset[Example]):
    """The problems of one stage, encoded when they are read.

    What is read depends on the seed, the epoch and the index alone, so that a resumed run sees what an uninterrupted
    one would.
    """

    def __init__(
        self,
        encoder: Encoder,
        stage: Stage,
        seed: str,
        problems_of_epoch: Callable[[int], Sequence[Problem]],
        max_length: int | None,
    ) -> None:
        """Serve `problems_of_epoch(epoch)`, encoded at `stage`.

        Args:
            encoder: Puts problems together.
            stage: The stage.
            seed: Names the stream of chance; differs from stage to stage.
            problems_of_epoch: The problems of an epoch, always as many. What it returns anew, the same object, is not
                cut into tokens again.
            max_length: Tokens that the model can read; None for no limit.

        Raises:
            DataError: a problem is longer than the model's context or lacks what the method needs.
        """
        self._encoder, self._stage, self._seed = encoder, stage, seed
        self._problems_of_epoch, self._max_length = problems_of_epoch, max_length
        self._source: Sequence[Problem] | None = None
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the problems of `epoch`."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        problems = self._problems_of_epoch(epoch)
        if problems is not self._source:
            self._source = problems
            self._problems = [tokenize(problem, self._encoder.tokenizer) for problem in problems]
            self._check_steps()
            if self._max_length is not None:
                self._check_lengths(self._max_length)

    def __len__(self) -> int:
        """Problems an epoch."""
        return len(self._problems)

    def __getitem__(self, index: int) -> Example:
        """The problem at `index`, encoded at this epoch."""
        return self._encoder(self._problems[index], self._stage, random.Random(f"{self._seed}/{self.epoch}/{index}"))

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of every problem's prompt and text at this epoch."""
        examples = (self[index] for index in range(len(self)))
        return [(example.prompt_length, len(example.input_ids) - example.prompt_length) for example in examples]

    def _check_steps(self) -> None:
        """A few problems without written steps are part of real data (GSM8k); all of them are a mistake."""
        config = self._encoder.config
        if config.row.removal != "all" and not any(problem.steps for problem in self._problems):
            raise DataError(
                f"method {config.method!r} learns from written steps and no problem has any; give problems with steps "
                "or use a method that needs none (no_cot, pause, coconut_no_curriculum)."
            )

    def _check_lengths(self, max_length: int) -> None:
        """Refuse, never cut."""
        lengths = [self._encoder.longest(problem, self._stage) for problem in self._problems]
        too_long = sum(length > max_length for length in lengths)
        if too_long:
            raise DataError(
                f"{too_long} of {len(lengths)} problems are longer than the model's context of {max_length} tokens "
                f"(the longest takes {max(lengths)}, thoughts included). Remove them, or take a longer context."
            )


class EpochSampler(Sampler[int]):
    """A shuffle into batches of like lengths, which depends on the data's epoch and the seed alone.

    Whole batches only, so that every optimizer step weighs as much, with any number of processes. What is left out is
    another handful of problems every epoch.
    """

    def __init__(self, data: StageData, seed: str, batch_size: int, by_length: bool) -> None:
        """Sample from `data`.

        Args:
            data: The problems.
            seed: Names the stream of chance.
            batch_size: Problems an optimizer step.
            by_length: Whether problems of like lengths share a batch.
        """
        self._data, self._seed, self._batch_size, self._by_length = data, seed, batch_size, by_length
        self._length = len(data) // batch_size * batch_size

    def __len__(self) -> int:
        """Problems an epoch that are read."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The order of the data's current epoch."""
        chance = random.Random(f"{self._seed}/order/{self._data.epoch}")
        order = list(range(len(self._data)))
        chance.shuffle(order)
        order = order[: self._length]
        if not self._by_length:
            return iter(order)
        lengths, chunk = self._data.lengths(), _CHUNK * self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            batches += bucketed(order[start : start + chunk], lengths, self._batch_size)
        chance.shuffle(batches)
        return chain.from_iterable(batches)


def bucketed(indices: list[int], lengths: Lengths, batch_size: int) -> list[list[int]]:
    """Cut `indices` into batches with little padding.

    A batch is padded in front to its longest prompt and behind to its longest text. So the indices are cut in two where
    it saves most, along one of these lengths, and each part again.

    Args:
        indices: What to cut; a multiple of `batch_size`. Those of equal lengths keep their order.
        lengths: Tokens of prompt and text by index.
        batch_size: Indices a batch.
    """
    num_batches = len(indices) // batch_size
    if num_batches <= 1:
        return [indices]
    ways = [sorted(indices, key=lambda index: lengths[index][0]), sorted(indices, key=lambda index: lengths[index][1])]
    cuts = {max(1, num_batches * quarter // 4) for quarter in (1, 2, 3)} | {num_batches - 1}
    halves = [(way[: cut * batch_size], way[cut * batch_size :]) for way in ways for cut in sorted(cuts)]
    low, high = min(halves, key=lambda pair: sum(_padded(half, lengths) for half in pair))
    return [*bucketed(low, lengths, batch_size), *bucketed(high, lengths, batch_size)]


def _padded(indices: list[int], lengths: Lengths) -> int:
    """Tokens, padding included, of one batch of `indices`."""
    return len(indices) * sum(max(lengths[index][side] for index in indices) for side in (0, 1))
