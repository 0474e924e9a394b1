"""Comparisons at equal compute: each training once more, on as many problems as cost what Coconut's training costs.

In: the trials of a study. Out: the same, with the compute of each as a ratio to Coconut's, and further ones.
The compute of a training is counted in operations (`training/operations.py`), and its problems an epoch are scaled; all
else, the curriculum in epochs too, stays as it is.
Read next: `experiments/study.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from cocot.errors import ConfigError
from cocot.experiments.study import METHOD, SEED, Study, Trial
from cocot.training.operations import training_operations
from cocot.training.recipes import override_words, read_recipe

EQUAL = "equal"
"""The axis that these comparisons add: what two rows have in common, problems or compute."""
_BASIS = "coconut"
_ALIKE = 0.02  # trainings whose problems would differ by less are not done twice


def with_equal_compute(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Every trial with its compute, each followed by one at Coconut's compute unless it is at that already.

    Args:
        study: Whose recipe they have.
        trials: All trials of the study.

    Raises:
        ConfigError: the recipe does not generate new problems for every epoch, so that there are no more to train on.
    """
    if not all(trial.config.data.fresh for trial in trials):
        raise ConfigError(
            "at equal compute some methods train on more problems than the recipe says; set data.fresh true, so that "
            "they are generated."
        )
    made: list[Trial] = []
    for trial in tqdm(trials, desc="counting operations", unit="run"):
        basis = read_recipe(study.recipe, [*trial.overrides, f"--{METHOD}", _BASIS])
        compute = training_operations(trial.config) / training_operations(basis)
        made.append(_named(trial, "problems", compute))
        data, size = trial.config.data, trial.config.train.batch_size
        num_train = size * max(1, round(data.num_train / size / compute))
        if abs(num_train / data.num_train - 1) > _ALIKE:
            made.append(_with_problems(study, trial, num_train, compute * num_train / data.num_train))
    return made


def _named(trial: Trial, what: str, compute: float) -> Trial:
    """The trial with its value of the new axis, before that of the seed."""
    row = {**trial.row, EQUAL: what}
    seed = {SEED: trial.values[SEED]} if SEED in trial.values else {}
    return replace(trial, values=row | seed, compute=compute)


def _with_problems(study: Study, trial: Trial, num_train: int, compute: float) -> Trial:
    overrides = [*trial.overrides, *override_words({"data.num_train": num_train})]
    method, *rest = trial.path.parts
    return replace(
        _named(trial, "compute", compute),
        overrides=overrides,
        config=read_recipe(study.recipe, overrides),
        path=Path(f"{method}_equal_compute", *rest),
    )
