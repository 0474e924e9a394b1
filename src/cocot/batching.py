"""Examples -> tensors: end-aligned batches, and the data set that a stage of training reads.

*End-aligned*: every row is padded on the left until the text after the thoughts begins in one column for all rows.
Then the thoughts of all rows end together, so a batch takes as few passes as its longest chain of thoughts, and all
labels fall into the last pass. Correctness does not depend on it.

In: `Example`s. Out: `{"input_ids", "attention_mask", "labels"}`, each (batch, columns), int64.
Read next: `model.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cocot.curriculum import IGNORED, Encoder, Example, Stage, tokenize
from cocot.errors import DataError
from cocot.tasks.problem import Problem


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Put examples into one end-aligned batch.

    Args:
        examples: Rows; prompts and texts of any length.
        pad_id: Fills the padding of `input_ids`; never read by the model.

    Returns:
        `input_ids`, `attention_mask` (0 at padding) and `labels` (-100 at padding), each (batch, columns).
    """
    before = max(example.prompt_length for example in examples)
    after = max(len(example.input_ids) - example.prompt_length for example in examples)
    input_ids = torch.full((len(examples), before + after), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        columns = slice(before - example.prompt_length, before - example.prompt_length + len(example.input_ids))
        input_ids[row, columns] = torch.tensor(example.input_ids)
        attention_mask[row, columns] = 1
        labels[row, columns] = torch.tensor(example.labels)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


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
            if self._max_length is not None:
                self._check_lengths(self._max_length)

    def __len__(self) -> int:
        """Problems an epoch."""
        return len(self._problems)

    def __getitem__(self, index: int) -> Example:
        """The problem at `index`, encoded at this epoch."""
        return self._encoder(self._problems[index], self._stage, random.Random(f"{self._seed}/{self.epoch}/{index}"))

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
    """A shuffle that depends on the seed and the data's epoch alone, cut to whole batches.

    Whole batches only, so that every optimizer step weighs as much, with any number of processes. What is left out is
    another handful of problems every epoch.
    """

    def __init__(self, data: StageData, seed: str, batch_size: int) -> None:
        self._data, self._seed = data, seed
        self._length = len(data) // batch_size * batch_size

    def __len__(self) -> int:
        """Problems an epoch that are read."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The order of the data's current epoch."""
        order = list(range(len(self._data)))
        random.Random(f"{self._seed}/order/{self._data.epoch}").shuffle(order)
        return iter(order[: self._length])
