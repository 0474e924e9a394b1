"""Several trainings, asked the same problems: what `cocot compare` and `cocot reproduce` do.

In: a `Study`, a folder. Out: a run folder a trial with its answers, the test sets, `table.json` and `table.md`.
Every training is a process of its own, `cocot train`: the product's own path. The same call resumes where it stopped,
and neither trains nor asks again what is done.
Read next: `experiments/jobs.py` (the processes), `experiments/tables.py` (rows -> a table).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot import tasks
from cocot.errors import ConfigError, RunError
from cocot.evaluation.ablations import AS_TRAINED, ablation_names, run_ablations
from cocot.evaluation.evaluate import (
    Prediction,
    by_steps,
    compute_metrics,
    evaluate,
    read_predictions,
    write_predictions,
)
from cocot.evaluation.statistics import mcnemar, seeds_interval, welch, wilson_interval
from cocot.experiments.jobs import Launcher, ThisMachine, Training, share_stages, train_all
from cocot.experiments.search import of_the_search, rows_of_search, with_best_settings
from cocot.experiments.study import Study, Trial
from cocot.experiments.tables import THOUGHTS, shortcuts_of, write_table
from cocot.methods.tokens import LATENT
from cocot.modeling.generation import answer
from cocot.modeling.loading import load_here
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.problem import Problem
from cocot.training.config import RunConfig
from cocot.training.run_folder import RunFolder, environment, fingerprint
from cocot.training.schedule import problems_of_files

REFERENCES = ("cot", "pause_as_thought")
"""Methods that every other one is tested against, where a study has them."""

Answers = dict[str, dict[str, list[Prediction]]]
"""Test set -> control (`AS_TRAINED` first) -> records."""


def make_trainings(study: Study, trials: Sequence[Trial], out: Path) -> list[Training]:
    """The trainings of a study, in the order of its trials; what several begin with is done once."""
    trainings = [
        Training(str(trial.path), study.recipe, trial.overrides, trial.config, RunFolder(out / trial.path))
        for trial in trials
    ]
    share_stages(trainings)
    return trainings


def compare(
    study: Study,
    trials: Sequence[Trial],
    out: Path,
    launcher: Launcher | None = None,
    test_file: Path | None = None,
) -> dict[str, Any]:
    """Train every trial, ask all the same problems, write `table.json` and `table.md`.

    Args:
        study: What to ask, and the paper's figures.
        trials: What to train.
        out: Folder of the study; the run folders lie inside.
        launcher: Where trainings run; None for this machine, one after the other.
        test_file: A file of problems, as a further test set.

    Returns:
        The content of `table.json`; `docs/reproduce.md` describes it.

    Raises:
        ConfigError: there is nothing to ask.
        RunError: a training failed; its last line is in the message.
        Interrupted: a signal came; the trainings saved their state.
    """
    if not study.tests and not test_file:
        raise ConfigError("this study has no problems of its own to ask; name a file of them with --data.")
    launcher = launcher or ThisMachine(1)
    trials, search = _searched(study, trials, out, launcher)
    tests = [_tests(study, trial, trials[0].config.seed, out, test_file) for trial in trials]
    trainings = make_trainings(study, trials, out)
    train_all(trainings, launcher)
    pairs = tqdm(list(zip(trainings, tests, strict=True)), desc="answers", unit="run")
    answers = [_ask(training, own, study.ablations) for training, own in pairs]
    sets = {path: problems for own in tests for path, problems in own.values()}
    task = tasks.get(trials[0].config.data.task)
    table = {
        "note": study.note,
        "environment": environment(),
        "rows": _rows(study, trials, trainings, answers),
        "search": search,
        "ablations": _ablation_rows(trials, answers),
        "tests": {str(path.relative_to(out)): shortcuts_of(task, problems) for path, problems in sets.items()},
    }
    write_table(table, out)
    return table


def _searched(
    study: Study, trials: Sequence[Trial], out: Path, launcher: Launcher
) -> tuple[Sequence[Trial], list[dict[str, Any]]]:
    """The trials with the settings that their rows keep, trained with all of them before; and what each reached."""
    if not study.search:
        return trials, []
    first = of_the_search(trials)
    trainings = make_trainings(study, first, out)
    train_all(trainings, launcher)
    reached = {trial.path: training.run.validation_accuracy() for trial, training in zip(first, trainings, strict=True)}
    kept = with_best_settings(trials, reached)
    return kept, rows_of_search(trials, reached, kept)


def fresh_problems(config: RunConfig, count: int, seed: int, **settings: Any) -> list[Problem]:
    """Fresh problems like those of validation; no training or validation draws a negative seed."""
    settings = {**config.data.generate, **config.data.valid_generate, **settings}
    return tasks.get(config.data.task).generate(count, seed=-1 - seed, **settings)


def _tests(
    study: Study, trial: Trial, seed: int, out: Path, test_file: Path | None
) -> dict[str, tuple[Path, list[Problem]]]:
    """The test sets of a trial by name, each frozen in a file whose name says what is in it."""
    sets = _own_tests(study, trial.config, seed)
    if test_file is not None:
        sets = {_name_of_file(test_file, sets): read_problems(test_file), **sets}
    frozen = {}
    for name, problems in sets.items():
        path = out / "tests" / f"{name}-{fingerprint(problems)[:8]}.jsonl"
        if not path.exists():
            write_problems(path, problems)
        frozen[name] = path, problems
    return frozen


def _own_tests(study: Study, config: RunConfig, seed: int) -> dict[str, list[Problem]]:
    """What a study asks without a file: fresh problems; of a run that learns from a file, those it is validated on."""
    if config.data.train and study.tests:
        _, valid = problems_of_files(config)
        return {"validation": (valid or [])[: study.num_problems]}
    return {
        name: fresh_problems(config, study.num_problems, seed, **settings) for name, settings in study.tests.items()
    }


def _name_of_file(file: Path, taken: Container[str]) -> str:
    """A name for a user's test set: its file's, and not one of the study's own."""
    name = file.name.partition(".")[0] or "file"
    while name in taken:
        name += "_file"
    return name


def _ask(training: Training, tests: Mapping[str, tuple[Path, list[Problem]]], ablations: bool) -> Answers:
    """The answers of a trained model; they go beside it, and what lies there already is not asked again."""
    config = training.config
    names = [AS_TRAINED]
    if ablations and config.curriculum.chosen.filler == LATENT and config.curriculum.num_thoughts:
        names += ablation_names(config.curriculum.num_thoughts)

    @cache
    def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_here(training.run.model, cpu=config.train.device == "cpu")

    answers: Answers = {}
    for test, (path, problems) in tests.items():
        folder = training.run.path / "answers" / path.stem
        files = {name: folder / f"{name.replace(' ', '_')}.jsonl" for name in names}
        if not all(file.exists() for file in files.values()):
            _ask_model(*loaded(), config, problems, files)
        answers[test] = {name: read_predictions(file) for name, file in files.items()}
    return answers


def _ask_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    problems: Sequence[Problem],
    files: Mapping[str, Path],
) -> None:
    task = tasks.get(config.data.task)
    settings: dict[str, Any] = {
        "batch_size": config.train.eval_batch_size,
        "max_new_tokens": config.train.eval_max_new_tokens,
    }
    first = [problem.question for problem in problems[: config.train.eval_batch_size]]
    answer(model, tokenizer, first, **settings)  # warms up, for the timing's sake
    if len(files) == 1:
        write_predictions(files[AS_TRAINED], evaluate(model, tokenizer, task, problems, **settings))
        return
    for name, records in run_ablations(model, tokenizer, task, problems, **settings):
        write_predictions(files[name], records)


def _rows(
    study: Study, trials: Sequence[Trial], trainings: Sequence[Training], answers: Sequence[Answers]
) -> list[dict[str, Any]]:
    """One row a group of trials that differ in their seeds alone."""
    own = {trial.group: [index for index, other in enumerate(trials) if other.group == trial.group] for trial in trials}

    def records(group: tuple[str, ...], test: str) -> list[list[Prediction]]:
        return [answers[index][test][AS_TRAINED] for index in own[group]]

    def row(group: tuple[str, ...]) -> dict[str, Any]:
        first = own[group][0]
        rivals = {name: (name, *group[1:]) for name in REFERENCES}
        results = {}
        for test in answers[first]:
            mine = records(group, test)
            p_values = {
                name: _p_value(mine, records(rival, test))
                for name, rival in rivals.items()
                if rival in own and rival != group
            }
            results[test] = {**_summary(mine), "p_values": p_values}
        return {
            "values": trials[first].row,
            "settings": trials[first].settings,
            "seeds": [trials[index].config.seed for index in own[group]],
            "tests": results,
            "train_problems": fmean(_train_problems(trainings[index]) for index in own[group]),
            "train_seconds": fmean(trainings[index].step_seconds() for index in own[group]),
            "compute": trials[first].compute,
            "paper": dict(study.paper.get(group[0], {})),
        }

    return [row(group) for group in own]


def _summary(seeds: Sequence[Sequence[Prediction]]) -> dict[str, Any]:
    """Means over seeds, their spread, and an interval that covers both: chance among problems and among seeds."""
    parts = [compute_metrics(records) for records in seeds]
    accuracies = [part.accuracy for part in parts]
    flat = [record for records in seeds for record in records]
    low, high = wilson_interval(sum(record.is_correct for record in flat), len(flat))
    if len(accuracies) > 1:
        seeds_low, seeds_high = seeds_interval(accuracies)
        low, high = min(low, seeds_low), max(high, seeds_high)
    return {
        "accuracy": fmean(accuracies),
        "sd": stdev(accuracies) if len(accuracies) > 1 else None,
        "low": low,
        "high": high,
        "tokens": fmean(part.tokens for part in parts),
        "seconds_per_question": fmean(part.seconds_per_question for part in parts),
        "problems": parts[0].problems,
        "cut": sum(part.cut for part in parts),
        "by_seed": accuracies,
        "by_steps": {str(steps): compute_metrics(own).accuracy for steps, own in by_steps(flat).items()},
    }


def _p_value(mine: Sequence[Sequence[Prediction]], theirs: Sequence[Sequence[Prediction]]) -> float:
    """McNemar's on all answers, pairs of one seed; with several seeds Welch's on their accuracies if that is larger."""
    pairs = mine, theirs
    first, second = ([record.is_correct for records in seeds for record in records] for seeds in pairs)
    answers = mcnemar(first, second)
    if len(mine) == 1:
        return answers
    return max(answers, welch(*([compute_metrics(records).accuracy for records in seeds] for seeds in pairs)))


def _train_problems(training: Training) -> int:
    steps = training.progress()[0]
    if not steps:
        raise RunError(f"{training.run.metrics} holds no steps of a run that is finished; put it back from a copy.")
    return steps * training.config.train.batch_size


def _ablation_rows(trials: Sequence[Trial], answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """One row a model that thinks and a control, seeds apart: a control belongs to its model."""
    return [
        {
            "values": {**trial.values, **trial.settings, THOUGHTS: name},
            "tests": {test: _summary([found[name]]) for test, found in own.items()},
        }
        for trial, own in zip(trials, answers, strict=True)
        for name in next(iter(own.values()))
        if len(next(iter(own.values()))) > 1
    ]
