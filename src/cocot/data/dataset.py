"""The data set that a stage of training reads: its problems, encoded when they are read.

Read next: `data/sampler.py` (in which order), `data/collator.py` (examples -> tensors).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from torch.utils.data import Dataset

from cocot.data.encoding import Tokenized
from cocot.data.examples import Encoder, Example
from cocot.data.shared_reading import num_common
from cocot.data.token_table import Frontiers, many, sizes, tokenized
from cocot.errors import DataError
from cocot.methods import Stage
from cocot.tasks.problem import Problem


@dataclass(frozen=True, slots=True)
class Portion:
    """Problems that are encoded at one stage; an epoch has one or several."""

    stage: Stage
    problems: Sequence[Problem]


class StageData(Dataset[Example]):
    """The problems of one stage, encoded when they are read.

    What is read depends on the seed, the epoch and the index alone, so that a resumed run sees what an uninterrupted
    one would.

    Attributes:
        epoch: Whose problems it holds.
        group_size: Consecutive problems that ask about one text, the same number in all groups of the epoch; else 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        seed: str,
        problems_of_epoch: Callable[[int], Sequence[Portion]],
        max_length: int | None,
        frontiers: Frontiers | None = None,
    ) -> None:
        """Serve the problems of `problems_of_epoch(epoch)`, each encoded at the stage of its portion.

        Args:
            encoder: Puts problems together.
            seed: Names the stream of chance; differs from stage to stage.
            problems_of_epoch: The problems of an epoch, always as many. A list of problems that comes again, the same
                object, is not cut into tokens again.
            max_length: Tokens that the model can read; None for no limit.
            frontiers: What is right after each step of a problem (`Task.frontiers`); None where nobody asks.

        Raises:
            DataError: a problem is longer than the model's context or lacks what the method needs.
        """
        self._encoder, self._seed, self._frontiers = encoder, seed, frontiers
        self._problems_of_epoch, self._max_length = problems_of_epoch, max_length
        self._portions: list[tuple[Portion, Sequence[Tokenized]]] = []
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the problems of `epoch`."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        portions = self._problems_of_epoch(epoch)
        if [id(portion.problems) for portion in portions] == [id(portion.problems) for portion, _ in self._portions]:
            return
        tokenizer, frontiers = self._encoder.tokenizer, self._frontiers
        self._portions = [(portion, tokenized(portion.problems, tokenizer, frontiers)) for portion in portions]
        self.group_size = _group_size(problem.question for problem in self._problems())
        self._check_steps()
        if self._max_length is not None:
            self._check_lengths(self._max_length)

    def _problems(self) -> Iterable[Tokenized]:
        return chain.from_iterable(cut for _, cut in self._portions)

    def __len__(self) -> int:
        """Problems an epoch."""
        return sum(len(cut) for _, cut in self._portions)

    def __getitem__(self, index: int) -> Example:
        """The problem at `index`, encoded at this epoch."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The problems at those indices, in their order: PyTorch asks for a batch at once."""
        found: dict[int, Example] = {}
        start = 0
        for portion, cut in self._portions:
            own = [index for index in indices if start <= index < start + len(cut)]
            for index, problem in zip(own, many(cut, [index - start for index in own]), strict=True):
                chance = random.Random(f"{self._seed}/{self.epoch}/{index}")
                found[index] = self._encoder(problem, portion.stage, chance)
            start += len(cut)
        return [found[index] for index in indices]

    def lengths(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Tokens of the prompt and of the text of the problems at those indices, at this epoch."""
        examples = self.__getitems__(indices)
        return [(example.prompt_length, len(example.input_ids) - example.prompt_length) for example in examples]

    def _check_steps(self) -> None:
        """A few problems without written steps are part of real data (GSM8k); all of them are a mistake."""
        config = self._encoder.config
        if config.chosen.needs_steps and not any(problem.steps for problem in self._problems()):
            raise DataError(
                f"method {config.method!r} learns from written steps and no problem has any; give problems with steps "
                "or use a method that needs none (no_cot, pause, coconut_no_curriculum)."
            )

    def _check_lengths(self, max_length: int) -> None:
        """Refuse, never cut. Only those are put together that could be too long: an epoch may be of millions."""
        lengths = list[int]()
        for portion, cut in self._portions:
            suspects = self._could_exceed(max_length, cut, portion.stage)
            lengths += [self._encoder.longest(problem, portion.stage) for problem in many(cut, suspects)]
        too_long = sum(length > max_length for length in lengths)
        if too_long:
            raise DataError(
                f"{too_long} of {len(self)} problems are longer than the model's context of {max_length} tokens "
                f"(the longest takes {max(lengths)}, thoughts included). Remove them, or take a longer context."
            )

    def _could_exceed(self, max_length: int, cut: Sequence[Tokenized], stage: Stage) -> list[int]:
        """The problems whose pieces, with as many thoughts as they may get, are longer than that."""
        num_tokens, num_steps = sizes(cut)
        added = np.zeros_like(num_tokens)
        for count in np.unique(num_steps).tolist():
            added[num_steps == count] = self._encoder.most_added(count, stage)
        return np.flatnonzero(num_tokens + added > max_length).tolist()


def _group_size(questions: Iterable[Sequence[int]]) -> int:
    """How long the runs of questions are that begin alike, by half of the shorter one at least; 1 where they differ."""
    sizes, size = set[int](), 1
    for first, second in pairwise(questions):
        if _begin_alike(first, second):
            size += 1
            continue
        sizes.add(size)
        if size == 1 or len(sizes) > 1:
            return 1
        size = 1
    return size if sizes <= {size} else 1


def _begin_alike(first: Sequence[int], second: Sequence[int]) -> bool:
    shorter = min(len(first), len(second))
    return 2 * num_common(first, second, shorter) >= shorter
