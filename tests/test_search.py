"""Tests of the search of settings: as many tries for every row, chosen on validation problems, then the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs_support import environment

from cocot.api.pages import report
from cocot.cli import main
from cocot.experiments.search import in_number, of_the_search, rows_of_search, with_best_settings
from cocot.experiments.study import METHOD, SEED, Study, trials
from cocot.experiments.tables import SEARCH, Table, cells, cells_of_search

RATE = "train.learning_rate"
STUDY = Study("demo", {METHOD: ["cot", "coconut"], SEED: [3, 4]}).with_search({RATE: [0.001, 0.003]})
TRIALS = trials(STUDY, [])


def accuracies(*values: float) -> dict[Path, float]:
    """Of the trials of the search, in their order."""
    first = of_the_search(TRIALS)
    assert len(first) == len(values)
    return {trial.path: value for trial, value in zip(first, values, strict=True)}


def test_every_row_is_tried_with_every_combination() -> None:
    """As often as any other, each in a folder of its own, and with the first seed alone."""
    first = of_the_search(TRIALS)
    assert [(trial.group, trial.config.seed, trial.config.train.learning_rate) for trial in first] == [
        (("cot",), 3, 0.001),
        (("cot",), 3, 0.003),
        (("coconut",), 3, 0.001),
        (("coconut",), 3, 0.003),
    ]
    two = trials(STUDY.with_search({RATE: [0.1, 0.2], "train.batch_size": [16, 32, 64]}), [])
    assert len(of_the_search(two)) == 2 * 6
    assert len({trial.path for trial in two}) == len(two) == 2 * 2 * 6


@pytest.mark.parametrize(
    ("reached", "kept"),
    [((0.5, 0.7, 0.9, 0.8), ("0.003", "0.001")), ((0.5, 0.5, 0.0, 0.0), ("0.001", "0.001"))],
    ids=["the highest", "the first of equal ones"],
)
def test_each_row_keeps_its_own_settings_for_all_seeds(reached: tuple[float, ...], kept: tuple[str, str]) -> None:
    """Also for seeds that the search did not see."""
    chosen = with_best_settings(TRIALS, accuracies(*reached))
    expected = [(method, seed, rate) for method, rate in zip(("cot", "coconut"), kept, strict=True) for seed in (3, 4)]
    assert [(trial.group[0], trial.config.seed, trial.settings["learning_rate"]) for trial in chosen] == expected


def test_a_plan_counts_every_training_once() -> None:
    """The search, and one training for each further seed, whichever settings it will have."""
    planned = in_number(TRIALS)
    assert len({trial.path for trial in planned}) == len(planned) == 4 + 2
    assert all(trial in planned for trial in of_the_search(TRIALS))


def test_the_table_shows_what_was_tried_and_what_was_kept() -> None:
    """A line a row of the study, a column a combination, the one that was kept in brackets."""
    reached = accuracies(0.5, 0.75, 1.0, 0.25)
    rows = rows_of_search(TRIALS, reached, with_best_settings(TRIALS, reached))
    assert cells_of_search(rows) == [
        ("method", "learning_rate 0.001", "learning_rate 0.003"),
        ("cot", "50.0%", "[75.0%]"),
        ("coconut", "[100.0%]", "25.0%"),
    ]
    assert cells_of_search([]) == []


def test_no_run_folder_of_a_search_lies_inside_one_without() -> None:
    """So the same folder takes the study with a search and without, in either order."""
    plain = trials(Study("demo", STUDY.axes), [])
    assert not [
        (one.path, other.path)
        for one in (*TRIALS, *plain)
        for other in (*TRIALS, *plain)
        if one.path in other.path.parents
    ]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_test_is_asked_of_what_was_kept_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real search: every combination is trained, but only what was kept has answers; again, nothing is trained."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    tiny = ["--data.num_train", "64", "--data.num_valid", "4", "--model.init.width", "16"]
    command = ["reproduce", "methods", "--methods", "cot,coconut", "--seeds", "2", "--problems", "10", "--jobs", "2"]
    command += ["--search", f"{RATE}=1e-3,3e-3", "--out", str(tmp_path), *tiny]
    assert main(command) == 0
    table = Table.read(tmp_path)
    models = {path.parent.relative_to(tmp_path) for path in tmp_path.glob("*/*/*/model")}
    assert len(models) == 2 * (2 + 1)
    asked = {path.parent.relative_to(tmp_path) for path in tmp_path.glob("*/*/*/answers")}
    kept = {row["values"]["method"]: row["settings"]["learning_rate"] for row in table.rows}
    assert asked == {
        Path(method, f"learning_rate_{rate}", f"seed_{seed}") for method, rate in kept.items() for seed in (0, 1)
    }
    assert [row["is_kept"] for row in table.search].count(True) == 2
    assert cells(table.rows)[0][:2] == ("method", "learning_rate")
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text(), report(tmp_path).read_text()):
        assert SEARCH in text
    assert SEARCH in table._repr_html_()
    whole: dict[str, Any] = json.loads((tmp_path / "table.json").read_text())
    monkeypatch.setattr("cocot.experiments.jobs.ThisMachine.start", None)
    assert main(command) == 0
    assert json.loads((tmp_path / "table.json").read_text()) == whole
