"""Tests of tasks from outside: a name is enough, what is optional may be missing, an installed package is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs_support import environment, tiny_config, write_recipe

from cocot import tasks
from cocot.cli import main
from cocot.errors import ConfigError
from cocot.tasks import Problem, Task

PROBLEMS = [Problem(f"{n} {n + 1} ?", (f"{n} ;",), str(n)) for n in range(40)]
CHESS = """
from cocot.tasks import Problem, Task

class Chess(Task):
    name = "chess"

    def generate(self, count, *, seed, **settings):
        return [Problem(f"move {seed + n}", (), "mate") for n in range(count)]
"""


class Mine(Task):
    """A task with a name alone."""

    name = "mine"


@pytest.fixture
def mine() -> Iterator[Task]:
    """`Mine`, registered for one test."""
    tasks.register(Mine)
    yield tasks.get("mine")
    del tasks.TASKS._known["mine"]


def test_a_name_is_enough(mine: Task) -> None:
    """Without a grader answers are right word for word; no frontiers; a missing generator is an error."""
    assert mine.is_correct(PROBLEMS[7], " 7\n")
    assert not mine.is_correct(PROBLEMS[7], "70")
    assert mine.statistics(PROBLEMS) == {"steps": 1}
    assert mine.frontiers(PROBLEMS[0]) == ()
    with pytest.raises(ConfigError, match=r"mine has no generator; name files of problems: data\.train"):
        mine.generate(3, seed=0)


def test_the_tasks_of_cocot_come_first() -> None:
    """Every name is listed; an unknown one is refused with the nearest."""
    assert list(tasks.TASKS)[:3] == ["prosqa", "prontoqa", "gsm8k"]
    with pytest.raises(ConfigError, match=r"unknown task 'gsm8'.*Did you mean 'gsm8k'\?"):
        tasks.get("gsm8")


def test_a_class_needs_a_name_of_its_own(mine: Task) -> None:
    """No name, or that of another class, is refused; the same class again, as a notebook defines it, replaces it."""

    class Nameless(Task):
        pass

    class Other(Task):
        name = "mine"

    with pytest.raises(ConfigError, match="Nameless has no name"):
        tasks.register(Nameless)
    with pytest.raises(ConfigError, match=r"the task 'mine' is .*Mine already"):
        tasks.register(Other)
    tasks.register(Mine)
    assert tasks.get("mine") is not mine


def test_a_task_without_a_generator_learns_from_files(
    mine: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on a file and asked what was set aside of it; without a file, one line and no folder."""
    tasks.write_problems(tmp_path / "mine.jsonl", PROBLEMS)
    data = {"task": "mine", "train": str(tmp_path / "mine.jsonl"), "fresh": False, "generate": {}}
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data=data))
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run)]) == 0
    out = tmp_path / "e.jsonl"
    assert main(["eval", str(run), "--max-new-tokens", "4", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "graded as: mine (the model's config.json)" in shown
    asked = [json.loads(line)["question"] for line in out.read_text().splitlines()]
    assert asked
    assert set(asked) < {problem.question for problem in PROBLEMS}
    table = tmp_path / "table"
    assert main(["compare", str(recipe), "--methods", "cot", "--out", str(table)]) == 2, "another process"
    assert "unknown task 'mine'" in capsys.readouterr().err
    for command in (
        ["train", str(recipe), "--data.train", "null", "--out", str(tmp_path / "no")],
        ["data", "mine", "--out", str(tmp_path / "no")],
    ):
        assert main(command) == 2
        assert "the task mine has no generator" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def installed(folder: Path, group: str, value: str, text: str) -> Path:
    """A folder as `pip install --target` leaves it, with one package."""
    (folder / "chess.py").write_text(text)
    about = folder / "chess-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: chess\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\nchess = {value}\n")
    return folder


def in_its_world(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process that has the packages of `folder`, too."""
    around = environment()
    around["PYTHONPATH"] = f"{folder}{os.pathsep}{around.get('PYTHONPATH', '')}"
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=around, timeout=60)


def test_an_installed_package_brings_a_task(tmp_path: Path) -> None:
    """An entry point of `cocot.tasks` is known to the command line, and is loaded only when names are asked for."""
    folder = installed(tmp_path, "cocot.tasks", "chess:Chess", CHESS)
    done = in_its_world(folder, "-m", "cocot", "data", "chess", "-n", "3", "--out", str(tmp_path / "p.jsonl"))
    assert done.returncode == 0, done.stderr
    assert [problem.answer for problem in tasks.read_problems(tmp_path / "p.jsonl")] == ["mate"] * 3
    listed = "import sys; from cocot import tasks; tasks.get('prosqa'); print('chess' in sys.modules, *tasks.TASKS)"
    assert in_its_world(folder, "-c", listed).stdout.split() == ["False", "prosqa", "prontoqa", "gsm8k", "chess"]


def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """One line that names the package's module; what comes with cocot works on."""
    folder = installed(tmp_path, "cocot.tasks", "chess:Chess", "import no_such_module")
    done = in_its_world(folder, "-m", "cocot", "data", "chess", "--out", str(tmp_path / "p.jsonl"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the task 'chess' of an installed package, chess:Chess, cannot be loaded" in done.stderr
    done = in_its_world(folder, "-m", "cocot", "data", "prosqa", "-n", "2", "--out", str(tmp_path / "p.jsonl"))
    assert done.returncode == 0, done.stderr
