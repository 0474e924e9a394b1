"""`cocot.compare` and `cocot.reproduce`: several trainings, asked the same problems, in one table.

In: a recipe and methods, or the name of a study and a scale. Out: a `Table`, which prints as the command line does.

    table = cocot.compare("demo", ["cot", "coconut"], "runs/two")
    table.rows

Every training is a process of its own. The same call resumes where it stopped.
Read next: `experiments/compare.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from cocot.api.training import default_folder
from cocot.experiments import compare as comparison
from cocot.experiments.clusters import Ray, Share
from cocot.experiments.equal_compute import with_equal_compute
from cocot.experiments.estimates import describe_plan, estimate
from cocot.experiments.jobs import Launcher, ThisMachine
from cocot.experiments.search import in_number
from cocot.experiments.slurm import Slurm
from cocot.experiments.study import METHOD, SEED, Study, Trial, chosen_scale, read_study, trials
from cocot.experiments.tables import Table
from cocot.system.files import write_json
from cocot.system.hardware import allowed_cores
from cocot.training.config import RunConfig
from cocot.training.recipes import Recipe, override_words, recipe_name

_LOGGER = logging.getLogger("cocot")
_METHODS = ("cot", "no_cot", "pause_as_thought", "coconut")


@dataclass(frozen=True)
class _Planned:
    """A study with everything that was left open."""

    study: Study
    trials: list[Trial]
    out: Path
    jobs: int | None
    on: Share | None = None

    @property
    def num_at_a_time(self) -> int:
        """Trainings at a time on this machine."""
        is_on_cpu = self.trials[0].config.train.device == "cpu"
        return self.jobs if self.jobs is not None else allowed_cores() if is_on_cpu else 1

    @property
    def launcher(self) -> Launcher:
        """Where the trainings run."""
        if self.on is None:
            return ThisMachine(self.num_at_a_time)
        return Slurm(self.on, self.jobs) if self.on.cluster == "slurm" else Ray(self.on, self.jobs)


def compare(
    recipe: Recipe,
    methods: Sequence[str] = _METHODS,
    out: str | PathLike[str] | None = None,
    *,
    num_problems: int = 1000,
    test_file: str | PathLike[str] | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
    equal_compute: bool = False,
    jobs: int | None = None,
    on: Share | None = None,
    **overrides: Any,
) -> Table:
    """Train several methods by one recipe, and evaluate them on the same problems.

    Args:
        recipe: Name of a shipped recipe, a YAML file, or a `RunConfig`.
        methods: Names of methods.
        out: Folder of the table and the runs; by default `runs/` and the name of the recipe.
        num_problems: Fresh problems to evaluate on.
        test_file: A file of problems to evaluate on, besides fresh ones.
        search: Settings that are searched, dotted fields of the recipe with their values: every method is trained with
            every combination and the recipe's seed, and keeps the one with the highest accuracy on validation problems.
        equal_compute: Whether each method is also trained on as many problems as cost what Coconut's training costs, in
            operations; for recipes that generate their problems anew (`data.fresh`).
        jobs: Trainings at a time, each with its share of the cores and a GPU; None for one, on a cluster for as many as
            it has room for.
        on: What each training gets of a Ray or Slurm cluster; None to train on this machine.
        **overrides: Settings that differ from the recipe, as for `train`.

    Returns:
        The table, also in `table.json` and `table.md`.

    Raises:
        ConfigError: no such recipe or method, an unknown setting, or there is nothing to ask.
        RunError: a training failed; its last line is in the message.
        Interrupted: a signal came; the trainings saved their state, and the same call resumes them.
    """
    folder = default_folder(out, recipe_name(recipe))
    if isinstance(recipe, RunConfig):
        name = str(folder / "recipe.yaml")  # for the processes that train
        write_json(Path(name), asdict(recipe))
    else:
        name = fspath(recipe)
    study = Study(name, {METHOD: list(methods)}, num_problems=num_problems).with_search(search or {})
    chosen = _trials(study, overrides, equal_compute)
    at_a_time = 1 if jobs is None and on is None else jobs
    return _made(_Planned(study, chosen, folder, at_a_time, on), test_file)


def reproduce(
    study: str,
    scale: str | None = None,
    out: str | PathLike[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    num_problems: int | None = None,
    test_file: str | PathLike[str] | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
    equal_compute: bool = False,
    jobs: int | None = None,
    on: Share | None = None,
    **overrides: Any,
) -> Table:
    """Make a table of results: one of the paper's, or one of our own studies.

    Args:
        study: prosqa, prontoqa, gsm8k (the paper's Table 1), methods, depth or mixing.
        scale: Name of a scale of the study, such as demo, cpu, gpu or paper; None for its first.
        out: Folder of the table and the runs; by default `runs/STUDY_SCALE`.
        methods: Names of methods; None for all of the study.
        axes: Other values of axes of the study, by their short names: `{"layers": [2, 4]}`.
        seeds: Trainings a method, with the seeds 0, 1, ...
        num_problems: Problems a test set; None for as many as the study says.
        test_file: A file of problems, as a further test set.
        search: Settings that are searched, dotted fields of the recipe with their values: every row is trained with
            every combination and seed 0, and keeps the one with the highest accuracy on validation problems.
        equal_compute: Whether each method is also trained on as many problems as cost what Coconut's training costs, in
            operations; for recipes that generate their problems anew (`data.fresh`).
        jobs: Trainings at a time; None for one for each core on a CPU, else 1, and on a cluster for as many as it has
            room for.
        on: What each training gets of a Ray or Slurm cluster; None to train on this machine.
        **overrides: Settings that differ from the study's recipe, as for `train`.

    Returns:
        The table, also in `table.json` and `table.md`.

    Raises:
        ConfigError: no such study, scale, method or axis, or an unknown setting.
        RunError: a training failed; its last line is in the message.
        Interrupted: a signal came; the trainings saved their state, and the same call resumes them.
    """
    planned = _planned(
        study,
        scale,
        out,
        methods=methods,
        axes=axes,
        seeds=seeds,
        num_problems=num_problems,
        search=search,
        equal_compute=equal_compute,
        jobs=jobs,
        on=on,
        **overrides,
    )
    return _made(planned, test_file)


def describe_study(
    study: str, scale: str | None = None, out: str | PathLike[str] | None = None, **settings: Any
) -> str:
    """The runs of `reproduce` with the minutes that they will take, measured in a pilot run of each.

    Args:
        study: As for `reproduce`.
        scale: As for `reproduce`.
        out: As for `reproduce`; the estimates are kept there, so that a second call measures nothing again.
        **settings: Whatever else `reproduce` takes, but for `test_file`.

    Raises:
        ConfigError: as `reproduce`.
        RunError: a pilot run failed, as the training itself would.
        Interrupted: a signal came.
    """
    planned = _planned(study, scale, out, **settings)
    trainings = comparison.make_trainings(planned.study, in_number(planned.trials), planned.out)
    _LOGGER.info("measuring the speed of every run on a few steps ...")
    estimates = estimate(trainings, planned.num_at_a_time, planned.out)
    head = f"{study} at scale {chosen_scale(study, scale)}: {planned.study.note}"
    return f"{head}\n\n{describe_plan(planned.study, trainings, estimates, planned.num_at_a_time)}"


def _planned(
    name: str,
    scale: str | None,
    out: str | PathLike[str] | None,
    methods: Sequence[str] | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    num_problems: int | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
    equal_compute: bool = False,
    jobs: int | None = None,
    on: Share | None = None,
    **overrides: Any,
) -> _Planned:
    study = read_study(name, scale).with_axis(SEED, range(seeds))
    for axis, values in {**({"method": methods} if methods else {}), **(axes or {})}.items():
        study = study.with_values(axis, values)
    if num_problems is not None:
        study = replace(study, num_problems=num_problems)
    study = study.with_search(search or {})
    chosen = _trials(study, overrides, equal_compute)
    return _Planned(study, chosen, default_folder(out, f"{name}_{chosen_scale(name, scale)}"), jobs, on)


def _trials(study: Study, overrides: Mapping[str, Any], equal_compute: bool) -> list[Trial]:
    found = trials(study, override_words(overrides))
    return with_equal_compute(study, found) if equal_compute else found


def _made(planned: _Planned, test_file: str | PathLike[str] | None) -> Table:
    file = None if test_file is None else Path(test_file)
    content = comparison.compare(planned.study, planned.trials, planned.out, planned.launcher, file)
    return Table(planned.out, content)
