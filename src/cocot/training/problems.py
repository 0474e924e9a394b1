"""The problems of a run: read or generated, to train and to validate on.

In: a `RunConfig`. Out: `Data`, which gives the problems of any stage and epoch; a sample that holds every word of them.

    data = prepare_data(config)
    problems = data.train(stages[0], 0)

Read next: `training/run.py`, which learns from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from random import Random
from typing import Any

from cocot import tasks
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
        note: One line on problems that were set aside, human-readable; may be empty.
    """

    valid: Sequence[Problem]
    train: Callable[[PlannedStage, int], Sequence[Problem]]
    note: str = ""


def prepare_data(config: RunConfig) -> Data:
    """Read or generate the problems; generated ones depend on the seed, the stage and the epoch alone."""
    settings = config.data
    task = tasks.get(settings.task)

    def generate(count: int, name: str, how: dict[str, Any]) -> list[Problem]:
        return task.generate(count, seed=Random(f"{config.seed}/{name}").getrandbits(48), **how)

    problems, valid = problems_of_files(config)
    if problems is not None and valid is not None:
        own, note = problems, ""
        if not settings.valid:
            note = describe_set_aside(config, len(own), len(valid))
        return Data(valid, lambda planned, epoch: own, note)
    if valid is None:
        valid = generate(settings.num_valid, "valid", {**settings.generate, **settings.valid_generate})

    @lru_cache(maxsize=1)
    def named(name: str, how: str) -> list[Problem]:
        return generate(settings.num_train, name, json.loads(how))

    def problems_of(planned: PlannedStage, epoch: int) -> list[Problem]:
        kind = "easier" if planned.stage.name == "warmup" else "train"
        name = f"{planned.stage.name}/{epoch}" if settings.fresh else kind
        return named(name, json.dumps(planned.generate))

    return Data(valid, problems_of)


def vocabulary_sample(data: Data, stages: Sequence[PlannedStage]) -> list[Problem]:
    """Problems that hold every word of a run: those of each stage's first epochs, and those of validation."""
    lists = [data.valid, *chain.from_iterable(_first_epochs(data, planned) for planned in stages)]
    distinct = {id(problems): problems for problems in lists}
    return [problem for problems in distinct.values() for problem in problems]


def _first_epochs(data: Data, planned: PlannedStage) -> Iterator[Sequence[Problem]]:
    """As many epochs as it takes to see every word: one, where an epoch is large."""
    count = 0
    for epoch in range(planned.stage.num_epochs):
        problems = data.train(planned, epoch)
        yield problems
        count += len(problems)
        if count >= _ENOUGH:
            return
