"""A search of settings that is the same for every row of a study, so that no method has more tries than another.

In: the trials of a study, each row with every combination of the settings that are searched. Out: those with the
settings that the row keeps, and what every combination reached.

Each row is trained with every combination and the first seed; it keeps the one with the highest accuracy on its
validation problems, the first of those that are equal. Test problems are not asked before that. Further seeds are
trained with the settings that were kept.
Read next: `experiments/compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocot.experiments.study import Trial


def of_the_search(trials: Sequence[Trial]) -> list[Trial]:
    """Those that are trained before anything is chosen: all of the first seed."""
    return [trial for trial in trials if trial.config.seed == trials[0].config.seed]


def with_best_settings(trials: Sequence[Trial], accuracies: Mapping[Path, float]) -> list[Trial]:
    """The trials of all seeds with the settings that their row keeps.

    Args:
        trials: With all combinations of the settings.
        accuracies: Of the trials of the search on their validation problems, by their paths.
    """
    best: dict[tuple[str, ...], Trial] = {}
    for trial in of_the_search(trials):
        if trial.group not in best or accuracies[trial.path] > accuracies[best[trial.group].path]:
            best[trial.group] = trial
    return [trial for trial in trials if trial.settings == best[trial.group].settings]


def in_number(trials: Sequence[Trial]) -> list[Trial]:
    """As many trials as will be trained, before it is known which: further seeds with the first combination."""
    first = of_the_search(trials)
    blind = with_best_settings(trials, {trial.path: 0.0 for trial in first})
    return [trial for trial in trials if trial in first or trial in blind]


def rows_of_search(
    trials: Sequence[Trial], accuracies: Mapping[Path, float], kept: Sequence[Trial]
) -> list[dict[str, Any]]:
    """What every combination reached, for `table.json`: a row of the study and a combination each."""
    return [
        {
            "values": trial.row,
            "settings": trial.settings,
            "accuracy": accuracies[trial.path],
            "is_kept": trial in kept,
        }
        for trial in of_the_search(trials)
    ]
