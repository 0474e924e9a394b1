"""Promises of the run folder: one run each, one writer each, whole files only, and a log that can be cut back."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs_support import tiny_config, write_recipe

from cocot.checksums import seal
from cocot.cli import main
from cocot.config import WarmupConfig
from cocot.errors import RunError
from cocot.runs import (
    RunFolder,
    complete_checkpoints,
    environment,
    fingerprint,
    own_copy,
    prune_checkpoints,
)
from cocot.tasks.prosqa import ProsQA
from cocot.training import train
from cocot.writing import new_folder, write_json, write_text

CONFIG = tiny_config()


def test_a_folder_is_taken_up_by_the_same_run(tmp_path: Path) -> None:
    """The same settings open a run's folder again; settings survive their way through config.yaml."""
    config = tiny_config(data={"warmup": WarmupConfig(generate={"layers": [1, 2]})})
    for _ in range(2):
        run = RunFolder(tmp_path / "run")
        run.open(config)
        run.close()


def test_another_runs_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    """Other settings are a RunError that lists each of them, old and new, and no other."""
    run = RunFolder(tmp_path)
    run.open(CONFIG)
    run.close()
    other = replace(CONFIG, seed=3, train=replace(CONFIG.train, learning_rate=0.5, stage_learning_rate={"final": 0.5}))
    with pytest.raises(RunError) as caught:
        RunFolder(tmp_path).open(other)
    listed = str(caught.value).split("belongs to another run: ")[1].split(". Choose another --out")[0]
    assert sorted(listed.split("; ")) == [
        "seed was 0, is now 3",
        "train.learning_rate was 0.003, is now 0.5",
        "train.stage_learning_rate.final was None, is now 0.5",
    ]


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A folder with somebody's files is no place for a run; nothing is written into it."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        RunFolder(tmp_path).open(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_data_are_refused(tmp_path: Path) -> None:
    """A run that was begun on some data does not go on with other data; the first description stays."""
    run = RunFolder(tmp_path)
    run.describe(CONFIG, "a" * 64)
    before = (tmp_path / "run.json").read_bytes()
    run.describe(CONFIG, "a" * 64)
    with pytest.raises(RunError, match="begun on other data \\(fingerprint aaaaaaaaaaaa, now bbbbbbbbbbbb\\)"):
        run.describe(CONFIG, "b" * 64)
    assert (tmp_path / "run.json").read_bytes() == before


def test_the_fingerprint_knows_problems_and_their_order() -> None:
    """The same problems have the same fingerprint; another problem or another order has another."""
    problems = ProsQA().generate(3, seed=0)
    assert fingerprint(problems) == fingerprint(list(problems))
    assert fingerprint(problems[::-1]) != fingerprint(problems)
    assert fingerprint([*problems[:2], replace(problems[2], steps=())]) != fingerprint(problems)


def test_two_cannot_train_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While one holds the folder another is refused in one line, with exit code 2; afterwards it is free."""
    run = RunFolder(tmp_path / "run")
    run.open(CONFIG)
    recipe = write_recipe(tmp_path / "mine.yaml", CONFIG)
    with closing(run):
        assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cocot: another process is training in ")
    assert message.count("\n") == 1
    again = RunFolder(tmp_path / "run")
    again.open(CONFIG)
    again.close()


def test_a_checkpoint_counts_once_it_is_whole(tmp_path: Path) -> None:
    """Checkpoints are found in the order of their steps, unfinished ones not at all; pruning keeps the newest."""
    for step in (2, 10, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10, 9):
        seal(tmp_path / f"checkpoint-{step}")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    prune_checkpoints(tmp_path / "checkpoint-10", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    for step in (12, 14):  # damaged, and so passed over: the run went on from 10
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    seal(tmp_path / "checkpoint-11")
    prune_checkpoints(tmp_path / "checkpoint-11", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def test_what_lies_beside_checkpoints_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    """A copy that a user keeps, sealed as it is, notes, and a file by a checkpoint's name."""
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-2-copy", "checkpoint-best", "notes"):
        (tmp_path / name).mkdir()
        seal(tmp_path / name)
    for name in ("checkpoint-3", "checkpoint-2.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    prune_checkpoints(tmp_path / "checkpoint-2", keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-2-copy",
        "checkpoint-2.tar",
        "checkpoint-3",
        "checkpoint-best",
        "notes",
    ]


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", ".cocot-here-1-0.partial"]])
def test_a_run_that_was_killed_before_its_settings_were_written_begins(tmp_path: Path, left: list[str]) -> None:
    """What it left in its folder is no other run, and nobody's files."""
    for name in left:
        (tmp_path / name).touch()
    run = RunFolder(tmp_path)
    run.open(CONFIG)
    run.close()
    assert run.config.is_file()


@pytest.mark.parametrize("change", ["removed", "moved", "replaced"])
def test_a_run_folder_that_is_gone_is_not_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Removed, moved or replaced while it trains: a RunError, and nothing new at the place."""
    place, log = tmp_path / "run", RunFolder.log

    def log_then_go(run: RunFolder, entry: dict[str, Any]) -> None:
        log(run, entry)
        if entry["step"] == 2:
            place.rename(tmp_path / "old")
            if change == "removed":
                shutil.rmtree(tmp_path / "old")
            if change == "replaced":
                shutil.copytree(tmp_path / "old", place)

    monkeypatch.setattr(RunFolder, "log", log_then_go)
    with pytest.raises(RunError, match=r"run was removed or moved while the run was training there"):
        train(CONFIG, place)
    assert place.exists() == (change == "replaced")
    if change == "replaced":
        assert (place / "metrics.jsonl").read_bytes() == (tmp_path / "old" / "metrics.jsonl").read_bytes()
        assert not list(place.glob("stages/*/checkpoint-3"))


def test_the_log_is_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    """Later entries of the stage go, those of other stages stay, and so does a line that a kill cut off not."""
    run = RunFolder(tmp_path)
    for stage, step in (("stage_0", 8), ("stage_1", 3), ("stage_1", 4), ("stage_1", 5)):
        run.log({"stage": stage, "step": step})
    with run.metrics.open("a") as file:
        file.write('{"stage": "sta')
    assert len(run.read_log()) == 4
    run.rewind_log("stage_1", 4)
    run.log({"stage": "stage_1", "step": 5, "again": True})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("stage_0", 8),
        ("stage_1", 3),
        ("stage_1", 4),
        ("stage_1", 5),
    ]
    assert lines[-1]["again"]


def test_files_and_folders_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """When writing fails half-way the old file and folder are as they were; else the new ones stand alone."""
    file, folder = tmp_path / "state.json", tmp_path / "best"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "b" * 9999 + "\ud800")
    assert json.loads(file.read_text()) == {"a": 1}
    for attempt, content in enumerate(("old", "lost", "new")):
        try:
            with new_folder(folder) as partial:
                (partial / f"{content}.txt").write_text(content)
                if content == "lost":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert attempt == 1
            assert [path.name for path in folder.iterdir()] == ["old.txt"]
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    write_text(file, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "state.json"]


def test_the_environment_block_names_what_bug_reports_need() -> None:
    """Versions of every package that decides numbers, Python, platform, commit."""
    block = environment()
    assert set(block["versions"]) >= {"cocot", "torch", "transformers", "accelerate", "tokenizers"}
    assert "not installed" not in block["versions"].values()
    assert block["commit"] is None or len(block["commit"].rstrip("+")) >= 12


def test_a_model_comes_with_cocot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name, without training: it answers its own kind of problems; what is written goes into a copy in runs/."""
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "prosqa-small", "-n", "60"]) == 0
    assert "100.0%" in capsys.readouterr().out
    copy = tmp_path / "runs" / "prosqa-small"
    assert (copy / "eval.jsonl").is_file()
    (copy / "mine").touch()
    assert own_copy("prosqa-small") == "runs/prosqa-small"
    assert (copy / "mine").exists(), "a copy that is there is not replaced"
    (tmp_path / "prosqa-small").mkdir()
    assert own_copy("prosqa-small") == "prosqa-small", "a folder of that name comes first"
    assert own_copy("gpt2") == "gpt2"
