"""The order in which problems are read: a shuffle into batches of like lengths.

Read next: `data/collator.py`.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch.utils.data import Sampler

from cocot.data.dataset import StageData

_CHUNK = 128
"""Batches of like lengths are looked for among so many: enough for little padding, few enough to vary."""
_WINDOW = 2**17
"""Problems, or a few more, whose batches are put into an order of chance together: further ahead nobody looks."""


Lengths = Mapping[int, tuple[int, int]] | Sequence[tuple[int, int]]


class EpochSampler(Sampler[int]):
    """A shuffle into batches of like lengths, which depends on the data's epoch and the seed alone.

    Whole batches only, so that every optimizer step weighs as much, with any number of processes. What is left out is
    another handful of problems every epoch.
    """

    def __init__(
        self, data: StageData, seed: str, batch_size: int, by_length: bool, device_batch_size: int = 1
    ) -> None:
        """Sample from `data`.

        Args:
            data: The problems.
            seed: Names the stream of chance.
            batch_size: Problems an optimizer step.
            by_length: Whether problems of like lengths share a batch.
            device_batch_size: Problems that a device reads at once. Those whose questions begin alike stay side by
                side in one such batch, if it holds whole groups of them.
        """
        self._device_batch_size = device_batch_size
        self._data, self._seed, self._batch_size, self._by_length = data, seed, batch_size, by_length
        self._length = len(data) // batch_size * batch_size

    def __len__(self) -> int:
        """Problems an epoch that are read."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The order of the data's current epoch."""
        chance, size = random.Random(f"{self._seed}/order/{self._data.epoch}"), self._group_size()
        order = array("q", range(len(self._data) // size))
        chance.shuffle(order)
        del order[self._length // size :]
        groups = chain.from_iterable(self._batches(order, size, chance)) if self._by_length else order
        return (index for group in groups for index in range(group * size, (group + 1) * size))

    def _batches(self, order: Sequence[int], size: int, chance: random.Random) -> Iterator[list[int]]:
        """Groups of `size` problems in batches of like lengths."""
        batch_size = self._batch_size // size
        chunk = _CHUNK * batch_size
        for window in _pieces(order, -(-_WINDOW // (chunk * size)) * chunk):
            batches: list[list[int]] = []
            for groups in _pieces(window, chunk):
                batches += bucketed(list(groups), self._lengths_of(groups, size), batch_size)
            chance.shuffle(batches)
            yield from batches

    def _lengths_of(self, groups: Sequence[int], size: int) -> Lengths:
        """The longest prompt and text of every group of `size` problems."""
        lengths = self._data.lengths([index for group in groups for index in range(group * size, (group + 1) * size)])
        members = (lengths[start : start + size] for start in range(0, len(lengths), size))
        longest = [(max(prompt for prompt, _ in group), max(text for _, text in group)) for group in members]
        return dict(zip(groups, longest, strict=True))

    def _group_size(self) -> int:
        """Consecutive problems that stay together: their order is that of groups, not of problems."""
        if self._device_batch_size == 1:
            return 1
        size = self._data.group_size
        return size if self._device_batch_size % size == self._batch_size % size == 0 else 1


def _pieces(order: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    return (order[start : start + length] for start in range(0, len(order), length))


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
