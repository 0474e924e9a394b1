"""Tests of what `cocot` offers: every name is found, commands and functions do the same, results show themselves."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from runs_support import environment, tiny_config, write_recipe

import cocot
from cocot.cli import main
from cocot.errors import ConfigError, ModelError, RunError
from cocot.experiments.tables import write_table
from cocot.modeling.thought_settings import set_thought_settings, thought_settings

SMALL: dict[str, Any] = {"mode": "balanced", "rendering": "symbolic", "layers": 2, "width": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> cocot.RunFolder:
    """A finished tiny run; read it, do not change it."""
    folder = tmp_path_factory.mktemp("api") / "run"
    return cocot.train(tiny_config(data={"num_train": 8}), folder)


def printed(command: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that succeeds prints."""
    assert main([str(part) for part in command]) == 0
    return capsys.readouterr().out


def drawings(html: str) -> list[ElementTree.Element]:
    """The drawings of a notebook's HTML, which is well-formed and has no script."""
    assert "<script" not in html
    root = ElementTree.fromstring(html)
    return list(root.iter("{http://www.w3.org/2000/svg}svg"))


def test_editors_see_what_is_imported() -> None:
    """The imports for type checkers name the table's names and modules, no more and no fewer."""
    tree = ast.parse(Path(cocot.__file__).read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and re.match(r"cocot(?!\.version$)", node.module or ""):
            for alias in node.names:
                assert alias.asname == alias.name, "else it is not exported"
                found[alias.name] = f"cocot.{alias.name}" if node.module == "cocot" else node.module
    assert found == cocot._HOMES


def test_what_the_issue_names_is_there() -> None:
    """`dir(cocot)`, which completion shows, has every public name and nothing of how it is made."""
    names = set(dir(cocot))
    assert {"train", "evaluate", "answer", "probe", "compare", "reproduce", "report", "export"} <= names
    assert {"load", "give_thoughts", "tasks", "methods", "errors", "read_recipe", "RunConfig", "CocotError"} <= names
    assert {name for name in names if not name.startswith("_")} == set(cocot.__all__)
    assert all(getattr(cocot, name).__doc__ for name in cocot.__all__)


def test_evaluate_is_the_command(run: cocot.RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place, a model in memory and `cocot eval` give the same predictions, text and files."""
    out = printed(["eval", run.path, "-n", 6, "--max-new-tokens", 5, "--out", tmp_path / "cli.jsonl"], capsys)
    evaluation = cocot.evaluate(run, count=6, max_new_tokens=5)
    again = cocot.evaluate(*cocot.load(run), cocot.select_problems(run, count=6), max_new_tokens=5)
    evaluation.write(tmp_path / "api.jsonl")
    first, second = (
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / name).read_text().splitlines()]
        for name in ("cli.jsonl", "api.jsonl")
    )
    assert first == second == [{**one.to_json(), "seconds": 0} for one in again.predictions]
    assert out.splitlines()[2] == str(evaluation).splitlines()[2], "what decides the numbers"
    assert f"{evaluation.metrics.accuracy:.1%}" in evaluation._repr_html_()
    assert "problems: 6 generated with seed 1000000" in evaluation._repr_html_()


def test_a_loaded_model_is_asked_what_its_run_learned(run: cocot.RunFolder) -> None:
    """Without problems and task: those of the run that the model was loaded from."""
    model, _ = cocot.load(run)
    assert cocot.select_problems(model, count=3).problems == cocot.select_problems(run, count=3).problems
    assert cocot.select_problems(model, count=3).problems == cocot.tasks.get("prosqa").generate(
        3, seed=1_000_000, **SMALL
    )


def test_ablations_come_one_by_one(run: cocot.RunFolder, tmp_path: Path) -> None:
    """Each result is shown when it is there; every ablation is a row, and a file of its own."""
    seen: list[int] = []
    evaluation = cocot.evaluate(
        run, count=4, ablations=True, max_new_tokens=3, on_result=lambda now: seen.append(len(now.results))
    )
    names = ["as trained", "zeros", "noise", "shuffled", "mean", "k=0"]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [row["values"]["thoughts"] for row in evaluation.rows] == names
    assert "shortcut: " in str(evaluation)
    evaluation.write(tmp_path / "e.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {f"e.{name.replace(' ', '_')}.jsonl" for name in names}


def test_problems_of_ones_own(tmp_path: Path) -> None:
    """A list, a file and a selection are the same problems; a grader can be an object of a class of one's own."""

    class AlwaysRight(cocot.Task):
        name = "always_right"

        def is_correct(self, problem: cocot.Problem, text: str) -> bool:
            return True

    problems = cocot.tasks.get("prosqa").generate(3, seed=1, **SMALL)
    cocot.write_problems(tmp_path / "p.jsonl", problems)
    model, tokenizer = cocot.load("prosqa-small")
    for given in (problems, tmp_path / "p.jsonl", str(tmp_path / "p.jsonl")):
        evaluation = cocot.evaluate(model, tokenizer, given, task=AlwaysRight(), max_new_tokens=4)
        assert [one.question for one in evaluation.predictions] == [one.question for one in problems]
        assert evaluation.metrics.accuracy == 1
        assert evaluation.conditions["graded as"] == "always_right (as asked)"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda model, tokenizer: cocot.evaluate(model), "given together with its tokenizer"),
        (lambda model, tokenizer: cocot.probe(model), "given together with its tokenizer"),
        (lambda model, tokenizer: cocot.export(model, "new"), "exported with its tokenizer"),
        (
            lambda model, tokenizer: cocot.evaluate(
                model, tokenizer, cocot.select_problems(model, count=2), task="gsm8k"
            ),
            "leave task=",
        ),
        (
            lambda model, tokenizer: cocot.evaluate(model, tokenizer, ablations=True, num_thoughts=1),
            "leave num_thoughts",
        ),
        (lambda model, tokenizer: cocot.train("demo", "new", tran={"seed": 1}), "did you mean 'train'"),
        (lambda model, tokenizer: cocot.train("demo", "new", train={"lr": 1}), "unknown key 'train.lr'"),
        (lambda model, tokenizer: cocot.compare("demo", ["magic"], "new"), "unknown method 'magic'"),
        (lambda model, tokenizer: cocot.reproduce("demo"), "no study 'demo'"),
        (lambda model, tokenizer: cocot.report([]), "at least one folder"),
        (lambda model, tokenizer: cocot.report("prosqa-small"), "say where to with --out"),
        (lambda model, tokenizer: next(cocot.benchmark(shapes=["huge"])), "names 'huge'"),
    ],
)
def test_a_mistake_is_an_error_of_ours(act: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to do, before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        act(*cocot.load("prosqa-small"))
    assert not list(tmp_path.iterdir())


def test_train_takes_what_the_command_takes(tmp_path: Path) -> None:
    """Overrides in groups, dotted, or of the group's class; a `RunConfig`, a file; the same run as the command's."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config())
    one = cocot.read_recipe(recipe, {"seed": 3, "train": {"learning_rate": 1e-4}, "curriculum.method": "cot"})
    words = ["--seed", "3", "--train.learning_rate", "1e-4", "--curriculum.method", "cot"]
    assert one == cocot.read_recipe(str(recipe), words)
    changes = {"seed": 3, "train.learning_rate": 1e-4, "curriculum": one.curriculum}
    assert one == cocot.read_recipe(tiny_config(), changes)
    data = {"generate": {"layers": (1, 2)}, "train": tmp_path / "x.jsonl", "fresh": False}
    layers = cocot.read_recipe(recipe, {"data": data})
    assert layers.data.generate == {"layers": [1, 2]}, "a mapping that is no group is replaced as a whole"
    assert layers.data.train == str(tmp_path / "x.jsonl")
    run = cocot.train(recipe, tmp_path / "run", seed=3, curriculum={"method": "cot"}, train={"learning_rate": 1e-4})
    assert run.read_config() == one
    assert cocot.train(one, run).path == run.path, "finished: left as it is"
    model, _ = cocot.load(run)
    assert not model.training


def test_the_schedule_is_that_of_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    """`describe_training` is what `cocot train --dry-run` prints."""
    out = printed(["train", "demo", "--dry-run", "--curriculum.method", "cot"], capsys)
    assert out == cocot.describe_training("demo", curriculum={"method": "cot"}) + "\n"


def test_a_run_shows_its_course(run: cocot.RunFolder, tmp_path: Path) -> None:
    """Stages with their accuracy, a curve of the loss and one of the accuracy; an empty folder has neither."""
    html = run._repr_html_()
    loss, accuracy = drawings(html)
    for drawing, points in ((loss, 3), (accuracy, 3)):
        (line,) = drawing.iter("{http://www.w3.org/2000/svg}polyline")
        assert len(line.get("points", "").split()) == points
    assert re.findall(r">(stage_0|stage_1|final)</td>", html) == ["stage_0", "stage_1", "final"]
    assert "finished" in html
    empty = cocot.RunFolder(tmp_path / "<new>")._repr_html_()
    assert not drawings(empty)
    assert "&lt;new&gt;: not finished" in empty


def test_a_search_draws_itself(run: cocot.RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Every table and a tree for each number of thoughts; a node a ring; printed as `cocot probe` prints it."""
    command = ["probe", run.path, "-n", 4, "--max-new-tokens", 5, "--out", run.path.parent / "search", "--show", 2]
    out = printed(command, capsys)
    search = cocot.probe(run, count=4, max_new_tokens=5)
    assert out.startswith(str(search))
    assert str(search.tree(2)).splitlines()[0].rstrip() in out
    problem = search.problems[2]
    trees = drawings(search.tree(2)._repr_html_())
    assert len(trees) == len(search.values) == 2
    assert problem.graph
    for k, tree in enumerate(trees):
        texts = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
        values = search.values[k][search.problem == 2]
        assert sorted(texts[1::2]) == sorted(f"{value:.2f}" for value in values)
        assert sorted(texts[::2]) == sorted(problem.graph.symbols)
    assert search._repr_html_().count("<table") == out.count("\n\n")
    assert repr(search) == f"SearchTree(4 problems, {search.node.size} nodes, after 0 to 1 thoughts)"
    with pytest.raises(ConfigError, match="no problem 4: the problems are 0 to 3"):
        search.tree(4)


def test_odd_texts_are_texts() -> None:
    """Markup and control characters in a problem are shown, not read."""
    odd = '<script>alert("no")</script> & \x07'
    (problem,) = cocot.tasks.get("prosqa").generate(1, seed=0, **SMALL)
    search = cocot.probe("prosqa-small", problems=[problem], max_new_tokens=2)
    assert problem.graph
    graph = replace(problem.graph, symbols=(odd, *problem.graph.symbols[1:]))
    texts = {"problems": [replace(problem, question=odd, graph=graph)], "outputs": [[odd]] * len(search.values)}
    shown = cocot.SearchTree(**{**vars(search), **texts})
    assert all(drawings(tree) for tree in [shown.tree(0)._repr_html_().replace("\x07", "")])
    for html in (shown._repr_html_(), shown.tree(0)._repr_html_()):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_a_table_is_what_its_file_holds(tmp_path: Path) -> None:
    """`Table.read` prints the rows, shows them, and says so where there are none."""
    result = {"accuracy": 0.5, "low": 0.2, "high": 0.8, "tokens": 3.0, "seconds_per_question": 0.1, "problems": 4}
    rows = [{"values": {"method": name}, "tests": {"test": result}} for name in ("cot", "<coconut>")]
    ablations = [{"values": {"method": "cot", "thoughts": "zeros"}, "tests": {"test": result}}]
    content = {"note": "small", "rows": rows, "ablations": ablations, "tests": {"t.jsonl": {"shortcut": 0.25}}}
    content["environment"] = {"versions": {"cocot": "1", "torch": "2"}, "commit": None}
    write_table(content, tmp_path)
    table = cocot.Table.read(tmp_path)
    heads = [line.split()[0] for line in str(table).splitlines() if line]
    assert heads == ["method", "cot", "<coconut>", "Accuracy", "method", "cot", "t:"]
    assert table._repr_html_().count("<table") == 2
    assert "&lt;coconut&gt;" in table._repr_html_()
    assert table.rows == rows
    with pytest.raises(RunError, match=r"holds no table\.json"):
        cocot.Table.read(tmp_path / "none")


def test_a_model_in_memory_is_exported_unchanged(tmp_path: Path) -> None:
    """As from its folder; the model, its generation settings and its tokenizer are as they were."""
    model, tokenizer = cocot.load("prosqa-small")
    before = thought_settings(model), tokenizer.chat_template, model.generation_config
    assert cocot.export(model, tmp_path / "memory", tokenizer) == tmp_path / "memory"
    assert (thought_settings(model), tokenizer.chat_template, model.generation_config) == before
    cocot.export("prosqa-small", str(tmp_path / "folder"))
    names = ["config.json", "generation_config.json", "model.safetensors", "custom_generate/generate.py"]
    for name in [*names, "chat_template.jinja"]:
        assert (tmp_path / "memory" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    other, _ = cocot.load("prosqa-small")
    cocot.give_thoughts(other, tokenizer)
    set_thought_settings(other, replace(thought_settings(other), num_thoughts=None))
    with pytest.raises(ModelError, match="was not trained to think"):
        cocot.export(other, tmp_path / "no", tokenizer)


@pytest.mark.slow
@pytest.mark.distributed
def test_compare_and_reproduce_from_python(tmp_path: Path) -> None:
    """A comparison of settings made here is a table; its page is written beside it; the plan is told first."""
    code = """
import sys, cocot
from runs_support import tiny_config
config = tiny_config(data={"num_train": 8})
table = cocot.compare(config, ["cot", "coconut"], "out", num_problems=5, jobs=2, seed=2)
assert [row["values"]["method"] for row in table.rows] == ["cot", "coconut"]
assert all(row["seeds"] == [2] for row in table.rows)
assert str(cocot.Table.read("out")) == str(table)
assert cocot.report(table).name == "report.html"
"""
    around = environment()
    around["PYTHONPATH"] = f"{Path(__file__).parent}:{around.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=around, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stderr
