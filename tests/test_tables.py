"""Tests of tables: a column that nobody fills is left out, every test set has its accuracy, spread is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cocot.errors import RunError
from cocot.experiments.tables import (
    SCHEMA,
    Row,
    cells,
    cells_by_steps,
    cells_of_ablations,
    cells_side_by_side,
    read_table,
    shortcuts,
    write_table,
)


def result(**more: Any) -> dict[str, Any]:
    """What a test set gave."""
    return {
        "accuracy": 0.5,
        "low": 0.25,
        "high": 0.75,
        "tokens": 4.0,
        "seconds_per_question": 0.002,
        "problems": 1000,
        **more,
    }


def test_columns_that_nobody_fills_are_left_out() -> None:
    """A bare evaluation has neither training, nor tests against others, nor a paper."""
    head, row = cells([{"values": {"model": "mine"}, "tests": {"test": result()}}])
    assert head == ("model", "accuracy", "95 % interval", "tokens", "ms a question", "problems")
    assert row == ("mine", "50.0%", "25.0% to 75.0%", "4.0", "2.00", "1,000")


def test_cut_answers_are_shown_where_there_are_any() -> None:
    """Every test set that has some gets a column; old tables, which do not count them, are shown as they were."""
    rows = [{"values": {"model": "mine"}, "tests": {"a": result(cut=0), "b": result(cut=1200), "c": result()}}]
    head, row = (dict(zip(cells(rows)[0], line, strict=True)) for line in cells(rows))
    assert row["b: cut"] == "1,200"
    assert [name for name in head if "cut" in name] == ["b: cut"]


def test_a_study_shows_all_it_knows() -> None:
    """Spread over seeds, every test set, p-values where there is a rival, the paper's figures where it has them."""
    first = result(sd=0.0123, by_seed=[0.4877, 0.5123], p_values={"cot": 0.0004, "pause_as_thought": 0.25})
    rows = [
        {
            "values": {"method": "coconut", "layers": "2"},
            "tests": {"released": first, "balanced": result(accuracy=0.25)},
            "train_problems": 76800.0,
            "train_seconds": 90.0,
            "paper": {"accuracy": 0.97, "tokens": 14.2},
        },
        {
            "values": {"method": "cot", "layers": "2"},
            "tests": {"released": result(p_values={}), "balanced": result()},
            "train_problems": 76800.0,
            "paper": {"accuracy": 0.775},
        },
    ]
    head, coconut, cot = (dict(zip(cells(rows)[0], line, strict=True)) for line in cells(rows))
    assert list(head)[:3] == ["method", "layers", "released: accuracy"]
    assert coconut["released: accuracy"] == "50.0% ± 1.2"
    assert (coconut["released: each seed"], cot["released: each seed"]) == ("48.8, 51.2", "")
    assert coconut["balanced: accuracy"] == "25.0%"
    assert (coconut["p (cot)"], coconut["p (pause)"]) == ("< 0.001", "0.250")
    assert (cot["p (cot)"], cot["p (pause)"]) == ("", "")
    assert (coconut["trained on"], coconut["paper"], coconut["paper's tokens"]) == ("76,800", "97.0%", "14.2")
    assert (coconut["training"], cot["training"]) == ("1.5 min", "")
    assert (cot["paper"], cot["paper's tokens"]) == ("77.5%", "")


def test_a_study_shows_how_accuracy_falls_with_the_steps() -> None:
    """A column for each test set and number of steps; empty cells and no table where nothing is known."""
    both = {"a": result(by_steps={"3": 0.9, "4": 0.75}), "b": result(by_steps={})}
    other = {"a": result(by_steps={"3": 0.5}), "b": result()}
    rows = [{"values": {"method": name}, "tests": tests} for name, tests in (("coconut", both), ("cot", other))]
    assert cells_by_steps(rows) == [("method", "3", "4"), ("coconut", "90.0%", "75.0%"), ("cot", "50.0%", "")]
    both["b"]["by_steps"] = {"7": 0.25}
    assert cells_by_steps(rows)[0] == ("method", "a: 3", "a: 4", "b: 7")
    assert cells_by_steps([{"values": {"method": "old"}, "tests": {"a": result()}}]) == []


def test_controls_stand_beside_each_other() -> None:
    """A line a model and seed, a column a control and test set; numbers of thoughts last, empty where there is none."""

    def row(method: str, thoughts: str, **accuracies: float) -> Row:
        tests = {name: result(accuracy=value) for name, value in accuracies.items()}
        return {"values": {"method": method, "seed": "0", "thoughts": thoughts}, "tests": tests}

    one = [row("coconut", "as trained", a=1.0), row("coconut", "k=2", a=0.5), row("soft", "k=10", a=0.25)]
    more = [row("soft", "k=1", a=0.75), row("soft", "zeros", a=0.0)]
    assert cells_of_ablations([*one, *more]) == [
        ("method", "seed", "as trained", "zeros", "k=1", "k=2", "k=10"),
        ("coconut", "0", "100.0%", "", "", "50.0%", ""),
        ("soft", "0", "", "0.0%", "75.0%", "", "25.0%"),
    ]
    two = [row("coconut", "k=0", z=1.0, a=0.5), row("coconut", "zeros", z=0.25, a=0.75)]
    assert cells_of_ablations(two) == [
        ("method", "seed", "z: zeros", "z: k=0", "a: zeros", "a: k=0"),
        ("coconut", "0", "25.0%", "100.0%", "75.0%", "50.0%"),
    ]
    assert cells_of_ablations([]) == []


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    """`table.json` keeps every value; `table.md` has the note, the ablations, the shortcuts and the versions."""
    rows = [{"values": {"method": "cot"}, "tests": {"test": result(by_steps={"3": 0.75, "4": 0.25})}}]
    table = {
        "note": "Small.",
        "rows": rows,
        "ablations": [{"values": {"method": "coconut", "thoughts": "zeros"}, "tests": {"test": result()}}],
        "tests": {"tests/test-1a.jsonl": {"shortcut_last": 0.914}, "tests/other-2b.jsonl": {}},
        "environment": {"commit": "abc", "versions": {"cocot": "0.1", "torch": "2"}},
    }
    write_table(table, tmp_path)
    assert read_table(tmp_path) == {"schema": SCHEMA, **table}
    assert shortcuts(table) == ["test-1a: shortcut last 91.4%"]
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("Small.\n\n| method | accuracy |")
    assert "\n| method | 3 | 4 |\n| --- | ---: | ---: |\n| cot | 75.0% | 25.0% |\n" in text
    for part in (
        "| method | zeros |\n| --- | ---: |\n| coconut | 50.0% |",
        "- test-1a: shortcut last 91.4%",
        "cocot abc, torch 2.\n",
    ):
        assert part in text


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    """The message says which schema it is of and what to do; a folder without a table has none."""
    assert read_table(tmp_path) is None
    (tmp_path / "table.json").write_text(json.dumps({"schema": 99, "rows": []}))
    with pytest.raises(RunError, match=f"of schema 99, and this version reads {SCHEMA}; the command that made it"):
        read_table(tmp_path)


def test_studies_stand_side_by_side() -> None:
    """A line a row that any has, a column a study and test set; rows that all have are ranked, equal ones alike."""

    def rows(tests: tuple[str, ...], **accuracies: float) -> list[Row]:
        return [
            {"values": {"method": name}, "tests": {test: {"accuracy": value} for test in tests}}
            for name, value in accuracies.items()
        ]

    studies = {"a": rows(("x",), cot=0.5, soft=0.9, codi=1.0, coconut=0.9), "b": rows(("x", "y"), soft=0.1, cot=0.2)}
    assert cells_side_by_side(studies) == [
        ("method", "a", "b, x", "b, y", "mean rank"),
        ("cot", "50.0%", "20.0%", "20.0%", "1.3"),
        ("soft", "90.0%", "10.0%", "10.0%", "1.7"),
        ("codi", "100.0%", "", "", ""),
        ("coconut", "90.0%", "", "", ""),
    ]
    assert [line[-1] for line in cells_side_by_side({"a": studies["a"], "b": studies["a"]})[1:]] == [
        *("4.0", "2.5", "1.0", "2.5")
    ]
    assert cells_side_by_side({"a": studies["a"]}) == cells_side_by_side({}) == []
    other = [{"values": {"layers": "2"}, "tests": {"x": {"accuracy": 1.0}}}]
    assert cells_side_by_side({"a": studies["a"], "b": other}) == []
