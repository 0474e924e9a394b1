"""How long trainings will take, by doing a little of each: the same processes, side by side, on the same machine.

In: trainings that are to be done. Out: seconds of each.

Every training is first done as a pilot run: a few optimizer steps an epoch, two epochs a stage. The second epoch of
each stage says what a step costs there (making the problems included) and what a validation costs; what is left of the
process's time is its start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from cocot.evaluation.ablations import ablation_names
from cocot.experiments.jobs import ThisMachine, Training, train_all
from cocot.experiments.study import Study
from cocot.methods import Phase
from cocot.methods.tokens import LATENT
from cocot.system.console import align
from cocot.system.files import read_json, unfinished, write_json
from cocot.system.hardware import allowed_cores
from cocot.tasks.files import write_problems
from cocot.training.config import RunConfig
from cocot.training.recipes import read_recipe
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import num_steps, plan, problems_of_files, steps_per_epoch

_STEPS, _EPOCHS = 8, 2


@dataclass(frozen=True)
class Estimate:
    """Seconds that a training will take.

    Attributes:
        training: From the start of its process to its end, without stages that another training does.
        answering: Of one question at the last stage, in validation.
    """

    training: float
    answering: float


def estimate(trainings: Sequence[Training], jobs: int, folder: Path) -> list[Estimate]:
    """Measure every training in a pilot run, unless it was measured here before.

    Args:
        trainings: What is to be done.
        jobs: How many at a time.
        folder: Folder of the study. The estimates are kept in `estimates.json`, the pilot runs are not.

    Raises:
        RunError: one of them fails, as the training itself would.
        Interrupted: a signal came.
    """
    file = folder / "estimates.json"
    known = read_json(file) if file.exists() else {}
    keys = [_key(training, jobs) for training in trainings]
    new = [training for training, key in zip(trainings, keys, strict=True) if key not in known]
    with unfinished(folder) as place:
        pilots = [_pilot_run(training, place) for training in new]
        if pilots:
            train_all(pilots, ThisMachine(jobs))
        known |= {
            _key(whole, jobs): asdict(_scale_up(whole, little)) for whole, little in zip(new, pilots, strict=True)
        }
    write_json(file, known)
    return [Estimate(**known[key]) for key in keys]


def _key(training: Training, jobs: int) -> str:
    """What an estimate depends on."""
    values = [asdict(training.config), training.num_shared, jobs, allowed_cores()]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _pilot_run(training: Training, folder: Path) -> Training:
    config = training.config
    size = _STEPS * config.train.batch_size
    path = folder / training.name
    settings: dict[str, object] = {
        "curriculum.advance_at": "null",
        "data.num_train": size,
        "train.logging_steps": _STEPS,
    }
    # a stage that the run does not have stays away
    settings["curriculum.epochs_per_stage"] = [_EPOCHS if epochs else 0 for epochs in config.curriculum.stage_epochs]
    if config.curriculum.num_first_epochs:
        settings["curriculum.first_epochs"] = _EPOCHS
    if config.curriculum.final_epochs:
        settings["curriculum.final_epochs"] = _EPOCHS
    if config.curriculum.phases:
        settings["curriculum.phases"] = json.dumps([_briefly(phase) for phase in config.curriculum.phases])
    if config.data.train:
        train, valid = problems_of_files(config)
        # a small file is read several times over
        for name, problems in (("train", list(islice(cycle(train or []), size))), ("valid", valid or [])):
            settings[f"data.{name}"] = path.with_suffix(f".{name}.jsonl")
            write_problems(path.with_suffix(f".{name}.jsonl"), problems)
    overrides = [*training.overrides, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
    return Training(training.name, training.recipe, overrides, read_recipe(training.recipe, overrides), RunFolder(path))


def _briefly(phase: Phase) -> dict[str, Any]:
    return {**asdict(phase), "epochs": _EPOCHS, "advance_at": None}


def _scale_up(whole: Training, little: Training) -> Estimate:
    seconds = little.seconds
    validation = 0.0
    for index, (planned, done) in enumerate(zip(plan(whole.config), plan(little.config), strict=True)):
        step, validation = _costs(little.run, done.stage.name)
        seconds -= done.stage.num_epochs * (_STEPS * step + validation)
        if index >= whole.num_shared:
            seconds += planned.stage.num_epochs * (steps_per_epoch(whole.config) * step + validation)
    return Estimate(seconds, validation / _num_valid(whole.config))


def _costs(run: RunFolder, stage: str) -> tuple[float, float]:
    """Seconds of a step and of a validation, once warm."""
    entries = [entry for entry in run.read_log() if entry["stage"] == stage and entry["step"] > _STEPS]
    steps = (entry["step_seconds"] for entry in entries if "step_seconds" in entry)
    return fmean(steps), fmean(entry["eval_seconds"] for entry in entries if "eval_seconds" in entry)


def _num_valid(config: RunConfig) -> int:
    _, valid = problems_of_files(config)
    return config.data.num_valid if valid is None else len(valid)


def describe_plan(study: Study, trainings: Sequence[Training], estimates: Sequence[Estimate], jobs: int) -> str:
    """Every run with its optimizer steps and minutes, and all of them together."""
    rows = [("run", "steps", "minutes", "")]
    left = list[float]()
    for training, one in zip(trainings, estimates, strict=True):
        is_done = training.run.model.exists()
        left += [] if is_done else [one.training]
        copied = f"stages copied from {training.prefix_run.name}: {training.num_shared}" if training.prefix_run else ""
        state = "done" if is_done else copied
        rows.append((training.name, f"{num_steps(training.config):,}", f"{one.training / 60:.1f}", state))
    train = max(sum(left) / jobs, max(left, default=0.0)) / 60
    ask = sum(one.answering * _num_answers(study, item) for item, one in zip(trainings, estimates, strict=True)) / 60
    return f"{align(rows)}\nabout {train + ask:.1f} minutes, {jobs} runs at a time; {ask:.1f} of them for the answers"


def _num_answers(study: Study, training: Training) -> int:
    """Questions that a model is asked in the end, with other thoughts too."""
    curriculum = training.config.curriculum
    has_ablations = study.ablations and curriculum.chosen.filler == LATENT and curriculum.num_thoughts > 0
    times = 1 + len(ablation_names(curriculum.num_thoughts)) if has_ablations else 1
    return times * len(study.tests) * study.num_problems
