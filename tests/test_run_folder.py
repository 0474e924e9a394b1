"""Tests of the run folder: one run each, one writer each, whole files only, and a log that can be cut back."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_support import environment as child_environment
from runs_support import tiny_config, write_recipe
from safetensors import SafetensorError

import cocot
from cocot.assets import is_bundled, locate
from cocot.cli import main
from cocot.errors import RunError
from cocot.methods import Phase
from cocot.system.files import new_folder, write_json, write_text
from cocot.system.manifest import write_manifest
from cocot.system.write_errors import cannot_write
from cocot.tasks.prosqa import ProsQA
from cocot.training.checkpoints import complete_checkpoints, prune_checkpoints
from cocot.training.run import prepare_data, train
from cocot.training.run_folder import RunFolder, environment, fingerprint
from cocot.training.schedule import plan

CONFIG = tiny_config()


def test_a_folder_is_taken_up_by_the_same_run(tmp_path: Path) -> None:
    """The same settings open a run's folder again; settings survive their way through config.yaml."""
    phases = [Phase("small", {"stage_0": 1.0, "final": 2.0}, generate={"layers": [1, 2]})]
    config = tiny_config(curriculum={"phases": phases})
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


HOLDER = """
import sys, time
from cocot.training.recipes import read_recipe
from cocot.training.run_folder import RunFolder
run = RunFolder(sys.argv[1])
run.open(read_recipe(sys.argv[2]))
print("open", flush=True)
time.sleep(60)
"""
"""A process that trains in a folder, as far as others can see."""


@pytest.mark.distributed
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """Two real processes: the second is refused while the first lives, and gets the folder after its SIGKILL."""
    recipe = write_recipe(tmp_path / "mine.yaml", CONFIG)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert not RunFolder(tmp_path / "run").is_free()
        second = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
        assert "RunError: another process is training in" in second.stderr
        holder.send_signal(signal.SIGKILL)
    run = RunFolder(tmp_path / "run")
    assert run.is_free()
    run.open(CONFIG)
    run.close()


def test_a_checkpoint_counts_once_it_is_whole(tmp_path: Path) -> None:
    """Checkpoints are found in the order of their steps, unfinished ones not at all; pruning keeps the newest."""
    for step in (2, 10, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10, 9):
        write_manifest(tmp_path / f"checkpoint-{step}")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    prune_checkpoints(tmp_path / "checkpoint-10", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    for step in (12, 14):  # damaged, and so passed over: the run went on from 10
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_manifest(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    write_manifest(tmp_path / "checkpoint-11")
    prune_checkpoints(tmp_path / "checkpoint-11", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def test_what_lies_beside_checkpoints_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    """A copy that a user keeps, sealed as it is, notes, and a file by a checkpoint's name."""
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-2-copy", "checkpoint-best", "notes"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name)
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
    run.truncate_log("stage_1", 4)
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
    """By its name, in Python and on the command line; nothing is written, here or in the package, but where told to."""
    monkeypatch.chdir(tmp_path)
    package = Path(locate("prosqa-small"))
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    model, tokenizer = cocot.load("prosqa-small")
    question = "4 2 ; 4 9 ; 1 5 ; 0 6 ; 1 7 ; 7 3 ; 5 8 ; 0 4 ; ? 9 8 0"
    assert cocot.answer(model, tokenizer, [question])[0].text == "9"
    assert main(["ask", "prosqa-small", question]) == 0
    assert capsys.readouterr().out.split() == ["###", "9"]
    assert main(["eval", "prosqa-small", "-n", "60"]) == 0
    out = capsys.readouterr().out
    assert "100.0%" in out
    assert out.endswith("records: not written (--out says where to)\n")
    assert main(["probe", "prosqa-small", "-n", "10", "--show", "0"]) == 0
    assert capsys.readouterr().out.endswith("search: not written (--out says where to)\n")
    assert main(["report", "prosqa-small"]) == 2
    assert "say where to with --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["eval", "prosqa-small", "-n", "5", "--out", "e.jsonl"]) == 0
    assert main(["export", "prosqa-small", "exported"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"e.jsonl", "exported"}
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a bundled model's name in the current folder is what its name means there."""
    monkeypatch.chdir(tmp_path)
    assert is_bundled(locate("prosqa-small"))
    (tmp_path / "prosqa-small").mkdir()
    assert locate("prosqa-small") == "prosqa-small"
    assert locate("gpt2") == "gpt2"
    assert not is_bundled("prosqa-small")


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "binary": b"\xff\x00\x80",
    "list": b"[1]",
    "other object": b'{"a": 1}\n{"a": 1}\n',
    "half": b'{"finished_st',
    "deep": b"[" * 10_000,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("file", ["config.yaml", "run.json", "state.json"])
def test_a_damaged_file_of_a_run_is_named(
    file: str, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in a file of the run folder, training resumes or says in one line that it is corrupted."""
    run = RunFolder(tmp_path / "run")
    run.open(tiny_config())
    run.close()
    data = prepare_data(tiny_config())
    run.describe(tiny_config(), fingerprint(data.train(plan(tiny_config())[0], 0)[0].problems, data.valid))
    run.finish_stage({"name": "stage_0", "epochs": 1, "accuracy": 0.5, "checkpoint": "stages/stage_0/checkpoint-4"})
    assert run.finished_stages()[0]["accuracy"] == 0.5
    (run.path / file).write_bytes(BROKEN[broken])
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    recipe = write_recipe(tmp_path / "r.yaml", tiny_config())
    assert main(["train", str(recipe), "--out", str(run.path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cocot: ")
    assert err.count("\n") == 1, err
    assert file in err
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_log_is_read_up_to_where_it_was_cut_off(tmp_path: Path) -> None:
    """The last line may be half a line; any other line that is no entry is damage."""
    run = RunFolder(tmp_path)
    entry = b'{"stage": "a", "step": 1}\n'
    for text, count in ((b"", 0), (entry, 1), (entry + entry[:9], 1)):
        run.metrics.write_bytes(text)
        assert len(run.read_log()) == count
    for line in (entry[:9] + b"\n", b"5\n", b'{"step": 1}\n', b"\xff\n", b'{"stage": "a", "step": "b"}\n'):
        run.metrics.write_bytes(entry + line + entry)
        with pytest.raises(RunError, match="line 2 is no log entry"):
            run.read_log()


@pytest.mark.parametrize("checkpoint", ["/etc", "../other", "a/../../b"])
def test_a_checkpoint_lies_in_its_run(checkpoint: str, tmp_path: Path) -> None:
    """A state.json that names a folder elsewhere is refused."""
    run = RunFolder(tmp_path)
    run.finish_stage({"name": "a", "epochs": 1, "accuracy": 0.5, "checkpoint": checkpoint})
    with pytest.raises(RunError, match="outside the run folder"):
        run.finished_stages()


FAILURES: dict[str, tuple[Exception, str]] = {
    **{
        errno.errorcode[number]: (
            OSError(number, os.strerror(number), "x/optimizer.pt"),
            r"the disk is full.*make room",
        )
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    },
    **{
        errno.errorcode[number]: (
            OSError(number, os.strerror(number), "x"),
            r"read-only for this user.*make it writable",
        )
        for number in (errno.EACCES, errno.EPERM, errno.EROFS)
    },
    "safetensors, full": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        r"the disk is full.*No space left",
    ),
    "safetensors, read-only": (
        SafetensorError("I/O error: Permission denied (os error 13)"),
        "read-only for this user",
    ),
    "safetensors, other": (SafetensorError("invalid dtype"), "SafetensorError: invalid dtype"),
    "PyTorch's writer": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 60800 vs 60692"),
        r"RuntimeError: .*unexpected pos.*PyTorch does not say why; [\d,]+ MiB are free there",
    ),
    "EIO": (OSError(errno.EIO, os.strerror(errno.EIO), "x"), "OSError: .*Input/output error"),
    "ENOTDIR": (NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "x"), "NotADirectoryError: .*Not a dir"),
    "no number": (ConnectionResetError("peer is gone"), "ConnectionResetError: peer is gone"),
    "CUDA": (
        torch.AcceleratorError("CUDA error: an illegal memory access"),
        "AcceleratorError: CUDA error: an illegal",
    ),
    "GPU memory": (
        torch.OutOfMemoryError("CUDA out of memory.\nTried to"),
        "OutOfMemoryError: CUDA out of memory. Tried",
    ),
    "a bug": (KeyError("moment"), "KeyError: 'moment'"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_kept_a_file_from_being_written_is_named(tmp_path: Path, kind: str) -> None:
    """In one line: a full disk, a read-only folder, or the error's own kind and text, and never a guess."""
    error, expected = FAILURES[kind]
    message = str(cannot_write(tmp_path / "checkpoint-3", error))
    assert message.startswith(f"could not write {tmp_path / 'checkpoint-3'}: ")
    assert re.search(expected, message), message
    assert "\n" not in message
    for text in ("disk is full", "read-only"):
        assert (text in message) == (text in expected), message


def test_the_number_of_an_error_behind_an_error_counts() -> None:
    """A library's own error, raised from one of the operating system."""
    error = ValueError("cannot save")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert "the disk is full" in str(cannot_write(Path("x"), error))
