"""Which problems a model is asked, and which task grades it: what the command line says, then what the model says.

In: a model's place, what was said of task and problems. Out: a `Selection`, which also says where it comes from.

    chosen = select_problems("runs/mine", data="test.jsonl")
    records = evaluate(model, tokenizer, chosen.task, chosen.problems)

Read next: `evaluation/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from cocot import tasks
from cocot.assets import locate
from cocot.errors import ConfigError, RunError
from cocot.modeling.loading import saved_settings
from cocot.modeling.thought_settings import thought_settings
from cocot.system.files import read_json
from cocot.tasks.base import Task
from cocot.tasks.files import read_problems
from cocot.tasks.problem import Problem
from cocot.training.config import RunConfig
from cocot.training.run_folder import RunFolder, fingerprint, run_of
from cocot.training.schedule import problems_of_files

_DEFAULT_TASK = "prosqa"


@dataclass(frozen=True)
class Selection:
    """Problems and their grader.

    Attributes:
        task: Grades the answers.
        problems: What to ask.
        grader: The task's name and who named it, human-readable.
        source: Where the problems come from, human-readable.
    """

    task: Task
    problems: list[Problem]
    grader: str
    source: str


def select_problems(
    model: Any = None,
    *,
    task: str | Task | None = None,
    data: str | PathLike[str] | Sequence[Problem] | None = None,
    count: int = 1000,
    seed: int = 1_000_000,
    **settings: Any,
) -> Selection:
    """Choose problems and their grader.

    The grader is the task that is named; else the one that the model was trained for. The problems are those of the
    file; else those that the model's run was validated on, if they come from a file, too; else generated ones of the
    run's own kind. A task or a mode begins again, since the run's settings may not go with it.

    Args:
        model: A run folder, a model folder, the id of a model on the Hub, or a model that was loaded from one of
            these; None for no model.
        task: A task, or the name of one.
        data: Problems, or a file of them.
        count: How many to generate.
        seed: Of the generator.
        **settings: Of the generator, such as `mode="balanced"`. `rendering` also goes with problems that are given, if
            their task can write them down again (`Task.render`).

    Raises:
        DataError: the file cannot be read.
        ConfigError: there is no such task, its generator has no such setting, or the setting is not for given problems.
        ModelError: there is no such model.
        RunError: the run's own file was changed after the training.
    """
    given = dict(settings)
    place = model if model is None or isinstance(model, str | PathLike) else model.name_or_path
    run = run_of(Path(locate(place))) if place else None
    config = run.read_config() if run else None
    name, grader = _grader(task, model, config)
    grading = task if isinstance(task, Task) else tasks.get(name)
    if isinstance(data, str | PathLike):
        problems = read_problems(fspath(data))
        return _written(Selection(grading, problems, grader, f"{len(problems):,} of {fspath(data)}"), seed, **settings)
    if data is not None:
        return _written(Selection(grading, list(data), grader, f"{len(data):,} given"), seed, **settings)
    if task is None and run and config:
        if not given and (config.data.train or config.data.valid):
            problems, source = _validated_on(run, config)
            return Selection(grading, problems, grader, source)
        if "mode" not in given:
            given = {**config.data.generate, **config.data.valid_generate, **given}
    problems = grading.generate(count, seed=seed, **given)
    return Selection(grading, problems, grader, f"{len(problems):,} generated with seed {seed}")


def _written(given: Selection, seed: int, rendering: str | None = None, **settings: Any) -> Selection:
    """Problems that were not generated here, written down in another rendering if one is asked for.

    Raises:
        ConfigError: a setting is of generated problems, or the task has one rendering only.
        DataError: a problem has nothing from which it could be written again.
    """
    if settings:
        raise ConfigError(f"{', '.join(settings)}: for generated problems alone, and these are given; leave it out.")
    if rendering is None:
        return given
    problems = [given.task.render(problem, rendering, seed) for problem in given.problems]
    return replace(given, problems=problems, source=f"{given.source}, written as {rendering} with seed {seed}")


def _grader(task: str | Task | None, model: Any, config: RunConfig | None) -> tuple[str, str]:
    """The task's name, and the same with who named it."""
    if task is not None:
        name = task.name if isinstance(task, Task) else task
        return name, f"{name} (as asked)"
    if model is None or isinstance(model, str | PathLike):
        saved = None if model is None else saved_settings(model).get("task")
    else:
        saved = thought_settings(model).task
    if saved is not None:
        return saved, f"{saved} (the model's config.json)"
    if config is not None:  # a run from before models knew their task
        return config.data.task, f"{config.data.task} (the run's config.yaml)"
    return _DEFAULT_TASK, f"{_DEFAULT_TASK} (the default, as nothing names another; --task does)"


def _validated_on(run: RunFolder, config: RunConfig) -> tuple[list[Problem], str]:
    """The problems that a run was validated on, if they come from a file.

    Raises:
        RunError: the file is not what it was, so that some of them may have been trained on.
    """
    train, valid = problems_of_files(config)
    assert valid is not None
    if config.data.valid:
        return valid, f"the run's validation file, {len(valid):,} of {config.data.valid}"
    about = read_json(run.about, "data_fingerprint")
    if about["data_fingerprint"] != fingerprint(train or [], valid):
        raise RunError(
            f"{config.data.train} was changed after {run.path} was trained on it, so what was set aside is not known; "
            "put the old file back, or name problems with --data."
        )
    return valid, f"the {len(valid):,} of {config.data.train} that were set aside from training"
