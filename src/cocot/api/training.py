"""`cocot.train`: a model by a recipe. `cocot.describe_training`: what that will do.

In: a recipe and what differs from it. Out: a `RunFolder`, which shows its training curve in a notebook.

    run = cocot.train("demo", "runs/mine", seed=1, curriculum={"method": "cot"})
    model, tokenizer = cocot.load(run)

Read next: `training/run.py`, which trains.
"""

from __future__ import annotations

import logging
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from cocot.training import run as trainings
from cocot.training.config import RunConfig
from cocot.training.problems import prepare_data, vocabulary_sample
from cocot.training.recipes import Overrides, Recipe, read_recipe, recipe_name
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import describe_encoding, describe_plan, plan
from cocot.training.starting_model import prepare_tokenizer

_LOGGER = logging.getLogger("cocot")


def train(
    recipe: Recipe,
    out: str | PathLike[str] | None = None,
    *,
    shares_with: str | PathLike[str] | None = None,
    **overrides: Any,
) -> RunFolder:
    """Train a model, or resume a run that was stopped; a finished run is left as it is.

    Args:
        recipe: Name of a shipped recipe, a YAML file, or a `RunConfig`.
        out: The run folder, made if it is not there; by default `runs/` and the name of the recipe.
        shares_with: Another run folder, whose first stages are taken over as far as they are done and the same work.
        **overrides: Settings that differ from the recipe, in groups or dotted: `seed=1, train={"learning_rate": 1e-4}`
            or `**{"train.learning_rate": 1e-4}`.

    Returns:
        The run folder; its `model` is the folder of the result.

    Raises:
        ConfigError: no such recipe, an unknown setting, or settings that contradict each other.
        DataError: a problem cannot be used.
        ModelError: the model cannot think.
        RunError: the folder belongs to another run, the loss is not a number, or the disk is full.
        Interrupted: a signal came; the same call resumes the run.
    """
    config = configured(recipe, overrides)
    other = None if shares_with is None else Path(shares_with)
    return trainings.train(config, default_folder(out, recipe_name(recipe)), other)


def describe_training(recipe: Recipe, **overrides: Any) -> str:
    """The schedule of a training, and one problem as every stage encodes it; nothing is trained.

    Args:
        recipe: Name of a shipped recipe, a YAML file, or a `RunConfig`.
        **overrides: As for `train`.

    Raises:
        ConfigError: no such recipe, an unknown setting, or settings that contradict each other.
        DataError: a problem cannot be used.
    """
    config = configured(recipe, overrides)
    data = prepare_data(config)
    stages = plan(config)
    problems = data.train(stages[-1], 0)[0].problems
    kinds = [data.train(planned, 0)[0].problems if planned.phase else problems for planned in stages]
    longest = [max(own, key=lambda problem: len(problem.steps)) for own in kinds]
    tokenizer = prepare_tokenizer(config, chain.from_iterable(vocabulary_sample(data, stages)))
    head = f"method {config.curriculum.method}: {config.curriculum.chosen.summary}\n"
    note = [data.note] if data.note else []
    schedule = [describe_plan(config, len(problems)), *note, ""]
    return "\n".join([head, *schedule, describe_encoding(config, longest, tokenizer)])


def configured(recipe: Recipe, overrides: Overrides) -> RunConfig:
    """The settings of a run; says so if its results will not compare with the recipe's."""
    config = read_recipe(recipe, overrides)
    size, meant = config.train.batch_size, read_recipe(recipe).train.batch_size
    if size != meant:
        _LOGGER.warning(
            "train.batch_size is %d, the recipe's is %d; results will not compare. "
            "To save memory, lower train.device_batch_size instead.",
            size,
            meant,
        )
    return config


def default_folder(out: str | PathLike[str] | None, name: str) -> Path:
    """Where a run or a study lies: as its user says, else in `runs/` under its own name."""
    return Path("runs") / name if out is None else Path(out)
