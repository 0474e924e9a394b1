"""What a run will do, before it does it: the stages with their rates and sizes, and a human-readable print of them.

In: a `RunConfig`. Out: `PlannedStage`s, which training follows and `cocot train --dry-run` prints.
Read next: `training/run.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from random import Random
from typing import Any

from cocot.data.encoding import tokenize
from cocot.data.examples import IGNORED, Encoder
from cocot.errors import ConfigError, DataError
from cocot.methods import METHODS, Method, Phase, Stage
from cocot.system.console import align
from cocot.tasks.files import open_problems, read_problems, set_aside
from cocot.tasks.problem import Problem
from cocot.training.config import RunConfig


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage and everything that is particular to it.

    Attributes:
        stage: Which reasoning is removed, for how many epochs by epochs.
        generate: The generator's settings for its problems.
        learning_rate_factor: Factor of every learning rate.
        advance_at: Validation accuracy that ends it early; None for epochs alone.
        method: Whose loss it has.
        phase: The phase of the recipe that it is; None for a stage of the method's own schedule.
        before: The phases before this one, where problems of theirs are mixed in.
    """

    stage: Stage
    generate: dict[str, Any]
    learning_rate_factor: float
    advance_at: float | None
    method: Method
    phase: Phase | None = None
    before: tuple[PlannedStage, ...] = ()

    def is_over(self, num_epochs: float, accuracy: float) -> bool:
        """Whether the stage ends after that many epochs, with that validation accuracy."""
        has_advanced = self.advance_at is not None and accuracy >= self.advance_at
        return has_advanced or num_epochs >= self.stage.num_epochs


@dataclass(frozen=True, slots=True)
class Batches:
    """How a global batch is reached: `size` = `per_device` x `accumulation` x `world_size`."""

    size: int
    per_device: int
    accumulation: int
    world_size: int

    def __str__(self) -> str:
        """One line, human-readable."""
        return (
            f"batch of {self.size} = {self.per_device} on a device"
            f" x {self.accumulation} accumulated x {self.world_size} processes"
        )


def plan(config: RunConfig) -> list[PlannedStage]:
    """The stages of a run, its phases first; the last one always ends by epochs.

    Raises:
        ConfigError: `train.stage_learning_rate` names a stage that the run does not have.
    """
    stages = config.curriculum.stages
    planned = _phases(config)
    planned += [
        PlannedStage(
            stage,
            config.data.generate,
            config.train.stage_learning_rate.get(stage.name, 1.0),
            config.curriculum.advance_at if stage is not stages[-1] else None,
            config.curriculum.chosen,
        )
        for stage in stages
    ]
    # a recipe serves every method, so it may name stages that only some of them have
    every = {"final", *(f"stage_{index}" for index in range(config.curriculum.max_stage + 1))}
    unknown = sorted(set(config.train.stage_learning_rate) - every)
    if unknown:
        raise ConfigError(
            f"train.stage_learning_rate names {unknown}; the stages of this run are "
            f"{[item.stage.name for item in planned]}."
        )
    return planned


def _phases(config: RunConfig) -> list[PlannedStage]:
    planned: list[PlannedStage] = []
    for phase in config.curriculum.phases:
        planned.append(
            PlannedStage(
                config.curriculum.stage_of(phase),
                {**config.data.generate, **phase.generate},
                phase.learning_rate,
                phase.advance_at,
                METHODS[phase.method] if phase.method else config.curriculum.chosen,
                phase,
                tuple(planned) if phase.earlier else (),
            )
        )
    return planned


def num_shared_stages(first: RunConfig, second: RunConfig) -> int:
    """How many stages at the start of two runs are the same work: same model, problems, texts and rates.

    Runs of several methods by one recipe differ from the stage on in which the methods do.
    """
    alike = replace(first, curriculum=replace(first.curriculum, method=second.curriculum.method)) == second
    methods = first.curriculum.chosen, second.curriculum.chosen
    if not alike or (methods[0].filler is None) != (methods[1].filler is None):
        return 0
    if methods[0] is not methods[1] and not all(map(_shares_first_stage, methods)):
        return 0
    pairs = zip(plan(first), plan(second), strict=False)
    return sum(takewhile(bool, (_is_same_work(mine, other) for mine, other in pairs)))


def _is_same_work(mine: PlannedStage, other: PlannedStage) -> bool:
    """Whether two methods train alike at a stage: it removes nothing, and neither has a loss of its own there."""
    whole = replace(mine, method=other.method) == other and mine.stage.index == 0 and not mine.stage.is_final
    return whole and (mine.method is other.method or all(_shares_first_stage(item.method) for item in (mine, other)))


def _shares_first_stage(method: Method) -> bool:
    return bool(vars(type(method)).get("shares_first_stage"))


def problems_of_files(config: RunConfig) -> tuple[Sequence[Problem] | None, list[Problem] | None]:
    """The problems to train and to validate on, as far as they come from files; None for those that are generated.

    Without a file for validation, some problems of the training file are set aside for it.

    Raises:
        DataError: a file cannot be read, or holds too few questions to set some aside.
    """
    data = config.data
    valid = read_problems(data.valid) if data.valid else None
    if not data.train:
        return None, valid
    train = open_problems(data.train)
    if valid is not None:
        return train, valid
    try:
        return set_aside(train, data.valid_share, data.num_valid, config.seed)
    except ValueError as error:
        raise DataError(f"{data.train} {error}; give problems to validate on with data.valid.") from error


def describe_set_aside(config: RunConfig, num_train: int, num_valid: int) -> str:
    """One line on the problems that are not trained on because nothing else was given to validate on."""
    data = config.data
    return (
        f"{num_valid:,} of the {num_train + num_valid:,} problems in {data.train} are set aside for validation "
        f"and never trained on (data.valid_share {data.valid_share:g}); name other problems with data.valid."
    )


def steps_per_epoch(config: RunConfig) -> int:
    """Optimizer steps an epoch; a file of problems is read for it.

    Raises:
        ConfigError: an epoch is smaller than a batch.
    """
    train, _ = problems_of_files(config)
    return num_batches(config, config.data.num_train if train is None else len(train))


def num_batches(config: RunConfig, num_problems: int) -> int:
    """Optimizer steps of an epoch of so many problems.

    Raises:
        ConfigError: there is none.
    """
    if num_problems < config.train.batch_size:
        raise ConfigError(
            f"an epoch of {num_problems} problems holds no batch of {config.train.batch_size}; "
            "lower train.batch_size or give more problems."
        )
    return num_problems // config.train.batch_size


def num_steps(config: RunConfig) -> int:
    """Optimizer steps of a run by epochs: the same for every method."""
    return sum(item.stage.num_epochs for item in plan(config)) * steps_per_epoch(config)


def split_batch(size: int, device_batch_size: int, world_size: int) -> Batches:
    """Reach the recipe's batch with the largest device batch that divides it.

    Raises:
        ConfigError: the batch cannot be shared out evenly among the processes.
    """
    if size % world_size:
        raise ConfigError(f"train.batch_size {size} cannot be shared by {world_size} processes; choose a multiple.")
    share = size // world_size
    per_device = max(part for part in range(1, min(device_batch_size, share) + 1) if share % part == 0)
    return Batches(size, per_device, share // per_device, world_size)


def describe_plan(config: RunConfig, num_problems: int) -> str:
    """The resolved schedule as a table: epochs, thoughts, steps left, learning rate, examples, optimizer steps."""
    rows = [("stage", "epochs", "thoughts", "steps left", "learning rate", "examples", "optimizer steps")]
    epoch = 0
    steps_per_epoch = num_batches(config, num_problems)
    for item in plan(config):
        stage = item.stage
        rows.append(
            (
                stage.name,
                f"{epoch + 1}-{epoch + stage.num_epochs}",
                str(num_thoughts(config, stage)),
                describe_left(config, stage),
                f"{config.train.learning_rate * item.learning_rate_factor:g}",
                f"{steps_per_epoch * config.train.batch_size * stage.num_epochs:,}",
                f"{steps_per_epoch * stage.num_epochs:,}",
            )
        )
        epoch += stage.num_epochs
    return align(rows)


def num_thoughts(config: RunConfig, stage: Stage) -> int:
    """Thoughts (or pauses) that a problem gets at `stage`."""
    curriculum = config.curriculum
    return curriculum.chosen.num_thoughts(stage.index, stage.index, curriculum)


def describe_left(config: RunConfig, stage: Stage) -> str:
    """What a stage leaves of the written chain; of a mixture, each part with its share."""
    method, whole = config.curriculum.chosen, sum(weight for _, weight in stage.mixture)
    if not stage.mixture:
        return method.describe_left(stage, config.curriculum)
    parts = [(method.describe_left(part, config.curriculum), weight / whole) for part, weight in stage.mixture]
    return ", ".join(f"{left} ({share:.0%})" for left, share in parts)


def describe_encoding(config: RunConfig, problems: Sequence[Problem], tokenizer: Any) -> str:
    """One problem of each stage, token by token; what is learned stands in [brackets].

    Args:
        config: The recipe.
        problems: A problem for each stage of the plan.
        tokenizer: The run's.
    """
    encoder = Encoder(replace(config.curriculum, stage_mix=0.0), tokenizer)
    blocks = []
    for item, problem in zip(plan(config), problems, strict=True):
        stage = replace(item.stage, mixture=())
        example = encoder(tokenize(problem, tokenizer), stage, Random(0))
        words = [
            name if label == IGNORED else f"[{name}]"
            for name, label in zip(_names(example.input_ids, tokenizer), example.labels, strict=True)
        ]
        num_learned = sum(label != IGNORED for label in example.labels)
        head = f"{item.stage.name}: {len(words)} tokens, {example.num_thoughts} thoughts, loss on {num_learned}"
        blocks.append(f"{head}\n  {' '.join(words)}")
    return "\n".join(blocks)


def _names(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token's text; white space is made visible."""
    return [tokenizer.decode([token]).replace("\n", "\\n").replace(" ", "_") for token in ids]
