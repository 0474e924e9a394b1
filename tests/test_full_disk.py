"""Tests of writing: a disk that is full is one line, nothing old is lost, and the same command resumes with room.

The disk is a real one, of 8 MiB in memory; it takes the right to mount. What is left free grows from nothing until the
command succeeds, so that the failure falls on every file that the command writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs_support import cocot, tiny_config, write_recipe

from cocot.cli import main
from cocot.evaluation.evaluate import read_predictions
from cocot.interpret.search_tree import SearchTree
from cocot.tasks.files import read_problems
from cocot.training.run import train
from cocot.training.run_folder import RunFolder

SMALL = ["--mode", "balanced", "--rendering", "symbolic", "--layers", "2", "--width", "1"]
BLOCK = 4096
Room = Callable[[int | None], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk that is full takes the right to mount one")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def leave(disk: Path, room: int | None) -> None:
    """Fill the disk but for `room` bytes; None to empty it again."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    if room is None:
        return
    with ballast.open("wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(BLOCK, free.f_bavail * free.f_frsize - room))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder but the ballast."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "ballast")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; read it, do not change it."""
    folder = tmp_path_factory.mktemp("full") / "run"
    train(tiny_config(data={"num_train": 8}), folder)
    return folder


def one_line(err: str) -> str:
    """The line with which the command ends; notes on what it does may stand before it."""
    lines = [line for line in err.splitlines() if line.startswith("cocot: ")]
    assert sum("could not write" in line for line in lines) <= 1
    assert "Traceback" not in err
    return lines[-1]


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["eval", "{trained}", "-n", "200", "--max-new-tokens", "4", "--out", "{disk}/e.jsonl", *SMALL], "e.jsonl"),
        (["eval", "{trained}", "--ablations", "-n", "60", "--max-new-tokens", "4", "--out", "{disk}/c.jsonl"], "c."),
        (["probe", "{trained}", "-n", "60", "--max-new-tokens", "4", "--out", "{disk}/search", *SMALL], "search"),
        (["report", "{trained}", "--out", "{disk}/report.html"], "report.html"),
        (["export", "{trained}", "{disk}/exported"], "exported"),
        (["export", "{trained}", "{disk}/embeds", "--embeds", "-n", "60", *SMALL], "embeds"),
        (["data", "prosqa", "-n", "300", "--out", "{disk}/d.jsonl"], "d.jsonl"),
    ],
)
def test_a_full_disk_loses_nothing_of_the_old(
    disk: Path, trained: Path, capsys: pytest.CaptureFixture[str], command: list[str], out: str
) -> None:
    """At every size of the free room: exit code 2, one line that names the place, the old output bit for bit there."""
    words = [word.format(trained=trained, disk=disk) for word in command]
    is_new = command[0] == "export"
    if not is_new:
        assert main(words) == 0
    before = contents(disk)
    sizes = {name: len(content) for name, content in before.items()}
    capsys.readouterr()
    num_failed = 0
    for blocks in [0, 2, 4, 8, 12, 16, 20, 24, 32, 64, 96, 256, 1024]:
        leave(disk, blocks * BLOCK)
        code = main(words)
        err = capsys.readouterr().err
        if code == 0:
            break
        num_failed += 1
        assert code == 2
        assert f"could not write {disk}/{out}" in one_line(err)
        if "--ablations" not in words:  # a file each: those that had room are new
            assert contents(disk) == before
        assert {name: len(content) for name, content in contents(disk).items()} == sizes
    leave(disk, None)
    assert code == 0
    assert num_failed > 1
    assert all(path.name.startswith(out) for path in disk.iterdir())
    if out == "e.jsonl":
        assert len(read_predictions(disk / out)) == 200
    if out == "search":
        assert len(SearchTree.read(disk / out).problems) == 60
    if out == "d.jsonl":
        assert len(read_problems(disk / out)) == 300


@pytest.mark.slow
def test_training_resumes_wherever_the_disk_was_full(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A little more room each time: every call is one line and resumes; the result is that of an undisturbed run."""
    config = tiny_config(curriculum={"epochs_per_stage": 2})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    train(config, tmp_path / "whole")
    words = ["train", str(recipe), "--out", str(disk / "run")]
    places = set[str]()
    for room in range(0, 200 * BLOCK, 3 * BLOCK):
        leave(disk, room)
        code = main(words)
        err = capsys.readouterr().err
        if code == 0:
            break
        assert code == 2
        line = next(line for line in err.splitlines() if line.startswith("cocot: could not"))
        places.add(line.split(":")[1].rpartition("/")[2])
    leave(disk, None)
    assert main(words) == 0
    assert len(places) >= 3, f"the disk was full at {places} only"
    ours, theirs = (
        [{name: value for name, value in entry.items() if not name.endswith("_seconds")} for entry in log]
        for log in (RunFolder(path).read_log() for path in (disk / "run", tmp_path / "whole"))
    )
    assert ours == theirs
    for name in ("model/model.safetensors", "state.json", "config.yaml"):
        assert (disk / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_comparison_resumes_after_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """Its trainings are processes of their own, whose disk is full as well: one line; with room, the table."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config())
    words = ["compare", recipe, "--methods", "cot", "--problems", "9", "--out", disk / "out"]
    leave(disk, 40 * BLOCK)
    done = cocot(*words, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "could not write" in one_line(done.stderr)
    leave(disk, None)
    done = cocot(*words, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((disk / "out" / "table.json").read_text())["rows"]
