"""The data set that a stage of training reads: its problems, encoded when they are read.

Read next: `data/sampler.py` (in which order), `data/collator.py` (examples -> tensors).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch.utils.data import Dataset

from cocot.data.encoding import Tokenized, encode_frontiers, tokenize
from cocot.data.examples import Encoder, Example
from cocot.data.shared_reading import num_common
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
        frontiers: Callable[[Problem], Sequence[Sequence[str]]] | None = None,
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
        self._portions: list[tuple[Portion, list[Tokenized]]] = []
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
        self._portions = [(portion, self._tokenize(portion.problems)) for portion in portions]
        self._problems = [(problem, portion.stage) for portion, cut in self._portions for problem in cut]
        self.group_size = _group_size([problem.question for problem, _ in self._problems])
        self._check_steps()
        if self._max_length is not None:
            self._check_lengths(self._max_length)

    def _tokenize(self, problems: Sequence[Problem]) -> list[Tokenized]:
        tokenizer = self._encoder.tokenizer
        cut = [tokenize(problem, tokenizer) for problem in problems]
        if self._frontiers is None:
            return cut
        frontiers = encode_frontiers(list(map(self._frontiers, problems)), tokenizer)
        return [replace(each, frontiers=sets) for each, sets in zip(cut, frontiers, strict=True)]

    def __len__(self) -> int:
        """Problems an epoch."""
        return len(self._problems)

    def __getitem__(self, index: int) -> Example:
        """The problem at `index`, encoded at this epoch."""
        return self._encoder(*self._problems[index], random.Random(f"{self._seed}/{self.epoch}/{index}"))

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of every problem's prompt and text at this epoch."""
        examples = (self[index] for index in range(len(self)))
        return [(example.prompt_length, len(example.input_ids) - example.prompt_length) for example in examples]

    def _check_steps(self) -> None:
        """A few problems without written steps are part of real data (GSM8k); all of them are a mistake."""
        config = self._encoder.config
        if config.chosen.needs_steps and not any(problem.steps for problem, _ in self._problems):
            raise DataError(
                f"method {config.method!r} learns from written steps and no problem has any; give problems with steps "
                "or use a method that needs none (no_cot, pause, coconut_no_curriculum)."
            )

    def _check_lengths(self, max_length: int) -> None:
        """Refuse, never cut."""
        lengths = [self._encoder.longest(problem, stage) for problem, stage in self._problems]
        too_long = sum(length > max_length for length in lengths)
        if too_long:
            raise DataError(
                f"{too_long} of {len(lengths)} problems are longer than the model's context of {max_length} tokens "
                f"(the longest takes {max(lengths)}, thoughts included). Remove them, or take a longer context."
            )


def _group_size(questions: Sequence[Sequence[int]]) -> int:
    """How long the runs of questions are that begin alike, by half of the shorter one at least; 1 where they differ."""
    starts = [0, *(index for index in range(1, len(questions)) if not _begin_alike(*questions[index - 1 : index + 1]))]
    sizes = {end - start for start, end in pairwise([*starts, len(questions)])}
    return sizes.pop() if len(sizes) == 1 else 1


def _begin_alike(first: Sequence[int], second: Sequence[int]) -> bool:
    shorter = min(len(first), len(second))
    return 2 * num_common(first, second, shorter) >= shorter
