"""Tests of the models that come with cocot: every one answers, shows its search and leaves, as its page says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import cocot
from cocot.assets import bundled_models, locate
from cocot.cli import main
from cocot.evaluation.evaluate import compute_metrics, read_predictions
from cocot.training.evaluation_problems import select_problems

DATA = Path(os.environ.get("COCOT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "bundled_models.md").read_text(encoding="utf-8")

LEAST = {"prosqa-small": 0.95, "prosqa-full": 0.6, "prosqa-full-symbolic": 0.75}
"""Accuracy on a hundred problems as those it was validated on. Measured on a thousand: 1.0, about 0.8, and 0.84; a
hundred of them vary by 0.04."""
PUBLISHED = {"prosqa-full": [], "prosqa-full-symbolic": ["--rendering", "symbolic"]}
"""How the models of full size are asked a published problem."""


@pytest.mark.parametrize("name", bundled_models())
def test_it_is_as_good_as_the_page_says(name: str) -> None:
    """On fresh problems; asked to write words in the place of its thoughts, it is worse."""
    assert f"## `{name}`" in PAGE
    whole = cocot.evaluate(name, count=100).metrics.accuracy
    without = cocot.evaluate(name, count=100, num_thoughts=0).metrics.accuracy
    assert whole >= LEAST[name]
    assert without < whole


@pytest.mark.parametrize("name", bundled_models())
def test_every_command_takes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eval`, `ask`, `probe` with its page, `export`; the package stays as it is."""
    monkeypatch.chdir(tmp_path)
    package = Path(locate(name))
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    question = select_problems(name, count=1).problems[0].question
    assert main(["ask", name, question]) == 0
    assert "###" in capsys.readouterr().out
    assert main(["eval", name, "-n", "20", "--ablations"]) == 0
    assert main(["probe", name, "-n", "3", "--show", "0", "--out", "search"]) == 0
    assert main(["report", "search"]) == 0
    assert (tmp_path / "search" / "report.html").is_file()
    assert main(["export", name, "exported"]) == 0
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in bundled_models()])
def test_it_answers_the_published_problems(name: str, tmp_path: Path) -> None:
    """As many of the 300 of the published validation file, none of which it was trained on, as the page says."""
    file = DATA / "prosqa_valid.json"
    if not file.is_file():
        pytest.skip(f"no published ProsQA data at {file}: set COCOT_DATA to the folder that holds it")
    assert main(["eval", name, "--data", str(file), *PUBLISHED[name], "--out", str(tmp_path / "e.jsonl")]) == 0
    found = compute_metrics(read_predictions(tmp_path / "e.jsonl"))
    section = PAGE.partition(f"## `{name}`")[2].partition("\n## ")[0]
    (said,) = re.findall(r"^\| published .*?\| ([\d.]+) %", section, re.MULTILINE)
    # another processor's rounding can turn an answer or two
    assert abs(100 * found.accuracy - float(said)) < 1.0
