"""The problems of a run: read or generated, to train and to validate on.

In: a `RunConfig`. Out: `Data`, which gives the problems of any stage and epoch; a sample that holds every word of them.

    data = prepare_data(config)
    portions = data.train(stages[0], 0)

Read next: `training/run.py`, which learns from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from random import Random
from typing import Any

from cocot import tasks
from cocot.data.dataset import Portion
from cocot.tasks.problem import Problem
from cocot.training.config import RunConfig
from cocot.training.schedule import PlannedStage, describe_set_aside, problems_of_files

_ENOUGH = 2000
"""Generated problems that surely hold every word of their generator."""


@dataclass(frozen=True)
class Data:
    """The problems of a run.

    Attributes:
        valid: For validation.
        train: Problems of a stage and an epoch: `train(planned, epoch)`.
        valid_of: Problems to validate a stage on: a phase is validated on problems of its own kind.
        note: One line on problems that were set aside, human-readable; may be empty.
    """

    valid: Sequence[Problem]
    train: Callable[[PlannedStage, int], Sequence[Portion]]
    valid_of: Callable[[PlannedStage], Sequence[Problem]]
    note: str = ""


def prepare_data(config: RunConfig) -> Data:
    """Read or generate the problems; generated ones depend on the seed, the stage and the epoch alone."""
    settings = config.data
    own, valid = problems_of_files(config)
    generator = _Generator(config)
    if valid is None:
        valid = generator.named(settings.num_valid, "valid", {**settings.generate, **settings.valid_generate})
    if own is None:
        return Data(valid, generator.portions, partial(generator.valid_of, run=valid))
    note = "" if settings.valid else describe_set_aside(config, len(own), len(valid))
    return Data(valid, lambda planned, epoch: [Portion(planned.stage, own)], lambda planned: valid, note)


class _Generator:
    """Makes the problems of a run."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._task = config, tasks.get(config.data.task)
        self._made = lru_cache(maxsize=2)(self._make)  # what comes again is the same object

    def named(self, count: int, name: str, how: dict[str, Any]) -> list[Problem]:
        return self._made(count, name, json.dumps(how))

    def _make(self, count: int, name: str, how: str) -> list[Problem]:
        seed = Random(f"{self._config.seed}/{name}").getrandbits(48)
        return self._task.generate(count, seed=seed, **json.loads(how))

    def portions(self, planned: PlannedStage, epoch: int) -> list[Portion]:
        """The problems of an epoch: of a phase's own kind, and of an earlier phase's if it mixes them in."""
        data = self._config.data
        name = f"{planned.stage.name}/{epoch}" if data.fresh else "easier" if planned.phase else "train"
        earlier, num_earlier = self._earlier(planned, epoch)
        parts = [(planned, data.num_train - num_earlier, name), (earlier, num_earlier, f"{name}/{earlier.stage.name}")]
        return [Portion(kind.stage, self.named(count, name, kind.generate)) for kind, count, name in parts if count]

    def _earlier(self, planned: PlannedStage, epoch: int) -> tuple[PlannedStage, int]:
        """Which earlier phase an epoch's problems are mixed with, and how many are of it: whole batches."""
        if planned.phase is None or not planned.before:
            return planned, 0
        config = self._config
        num_batches = round(planned.phase.earlier * (config.data.num_train // config.train.batch_size))
        chance = Random(f"{config.seed}/{planned.stage.name}/{epoch}/earlier")
        return chance.choice(planned.before), num_batches * config.train.batch_size

    def valid_of(self, planned: PlannedStage, run: Sequence[Problem]) -> Sequence[Problem]:
        """Problems of a phase's own kind; of a stage, those that the whole `run` is validated on."""
        if planned.phase is None:
            return run
        return self.named(self._config.data.num_valid, f"valid/{planned.stage.name}", planned.generate)


def vocabulary_sample(data: Data, stages: Sequence[PlannedStage]) -> list[Sequence[Problem]]:
    """Problems that hold every word of a run: those of each stage's first epochs, and those of validation."""
    lists = [data.valid, *map(data.valid_of, stages)]
    lists += chain.from_iterable(_first_epochs(data, planned) for planned in stages)
    return list({id(problems): problems for problems in lists}.values())


def _first_epochs(data: Data, planned: PlannedStage) -> Iterator[Sequence[Problem]]:
    """As many epochs as it takes to see every word: one, where an epoch is large."""
    count = 0
    for epoch in range(planned.stage.num_epochs):
        portions = data.train(planned, epoch)
        yield from (portion.problems for portion in portions)
        count += sum(len(portion.problems) for portion in portions)
        if count >= _ENOUGH:
            return
