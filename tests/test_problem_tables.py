"""Tests of problems on disk: a training set that is larger than the memory gives what a list of its problems gives."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from runs_support import NO_DROPOUT_INIT, Finish, environment, interrupted_in, tiny_config, weights, write_recipe
from test_files import EXAMPLE, ORIGINAL
from test_processes import launch

from cocot.data import sampler
from cocot.data.encoding import Tokenized
from cocot.data.sampler import EpochSampler
from cocot.data.token_table import TokenTable, many, sizes, tokenized
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError
from cocot.tasks import files
from cocot.tasks.files import open_problems, read_problems, set_aside, write_problems
from cocot.tasks.problem import Problem
from cocot.tasks.problem_table import ProblemTable, num_seen
from cocot.tasks.prosqa import ProsQA
from cocot.training.run import train
from cocot.training.run_folder import RunFolder, fingerprint

pytest.importorskip("datasets", reason="the package datasets is not installed")

PROBLEMS = ProsQA().generate(60, seed=3, mode="balanced", rendering="symbolic", layers=2, width=1)


@pytest.fixture(autouse=True)
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every file is taken for a large one; the folder in which its table lies."""
    from datasets import config, disable_progress_bars

    cache = tmp_path / "cache"
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(files, "_MOST_BYTES", 0)
    disable_progress_bars()
    return cache


def put(folder: Path, problems: Sequence[Problem] = PROBLEMS) -> Path:
    """A file of problems."""
    path = folder / "problems.jsonl"
    write_problems(path, problems)
    return path


LINES = {
    "own": "".join(json.dumps(problem.to_json()) + "\n" for problem in PROBLEMS),
    "windows": "".join(json.dumps(problem.to_json()) + "\r\n" for problem in PROBLEMS),
    "marked": "\ufeff" + json.dumps({"question": "a\u2028b", "steps": ["c"], "answer": "d"}) + "\n\n \n",
    "icot": "Two and two?||<<2+2=4>> #### 4\n  One?||<<1+0=1>> #### 1",
    "gsm8k": json.dumps({"question": "Two?", "answer": "It is <<1+1=2>>2.\n#### 2"}) + "\n",
    "codi": json.dumps({"question": "Two?", "cot": "<<1+1=2>>", "answer": "2"}),
    "original": json.dumps(ORIGINAL),
}
"""Every format that has a problem on each line."""


@pytest.mark.parametrize("name", LINES)
def test_a_table_is_the_list_of_its_problems(name: str, tmp_path: Path) -> None:
    """Each problem, any slice, their order, what is set aside, what is known again and their fingerprint."""
    path = tmp_path / "problems.jsonl"
    path.write_text(LINES[name], encoding="utf-8", newline="")
    table, problems = open_problems(path), read_problems(path)
    assert isinstance(table, ProblemTable)
    assert len(table) == len(problems)
    assert list(table) == problems == [table[index] for index in range(len(table))]
    assert table[-1] == problems[-1]
    assert table[1:30:3] == problems[1:30:3]
    assert fingerprint(table) == fingerprint(problems)
    assert num_seen(problems[::2], table) == num_seen(problems[::2], problems) == len(problems[::2])
    assert num_seen(PROBLEMS[:7], open_problems(put(tmp_path, PROBLEMS[5:]))) == 2
    if len(problems) > 1:
        (left, aside), expected = set_aside(table, 0.2, 7, seed=1), set_aside(problems, 0.2, 7, seed=1)
        assert isinstance(left, ProblemTable)
        assert (list(left), aside) == expected
        assert fingerprint(left) == fingerprint(expected[0])


def test_what_cannot_be_read_line_by_line_is_read_whole(tmp_path: Path) -> None:
    """A list in JSON, ProntoQA's object, and no file at all: as `read_problems`."""
    path = tmp_path / "list.json"
    for text in (json.dumps([ORIGINAL]), json.dumps({"example1": {"test_example": EXAMPLE}})):
        path.write_text(text)
        assert open_problems(path) == read_problems(path)
    with pytest.raises(DataError, match="cannot read problems from"):
        open_problems(tmp_path / "absent.jsonl")


def test_a_large_data_set_of_the_hub_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is loaded once where it is small."""
    import datasets

    lines = [{"question": problem.question, "steps": problem.steps, "answer": problem.answer} for problem in PROBLEMS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, loaded = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train"), list[str]()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: loaded.append(name) or rows)
    plain = [replace(problem, graph=None) for problem in PROBLEMS]
    table = open_problems("hub:me/mine:train")
    assert isinstance(table, ProblemTable)
    assert list(table) == plain
    loaded.clear()
    monkeypatch.setattr(files, "_MOST_BYTES", 2**29)
    assert open_problems("hub:me/mine:train") == plain
    assert loaded == ["me/mine"]


def test_a_bad_line_is_named_and_leaves_no_table(tmp_path: Path, on_disk: Path) -> None:
    """As in memory: the file and the line; once mended, the file is read from its beginning."""
    path = put(tmp_path)
    good = path.read_text()
    for bad, what in ((b'{"question": 3}\n', "field 'question' is missing"), (b"\xff\n", "cannot read problems")):
        path.write_bytes(good.encode() + bad)
        with pytest.raises(DataError, match=f"{path}.*{what}|{what}.*{path}") as raised:
            open_problems(path)
        with pytest.raises(DataError) as expected:
            read_problems(path)
        assert str(raised.value).split(" codec")[0] == str(expected.value).split(" codec")[0]
    path.write_text(good)
    assert list(open_problems(path)) == PROBLEMS


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run finds the table; another file in the same place has another."""
    path = put(tmp_path)
    first = open_problems(path)
    monkeypatch.setattr(files, "_problem", lambda item, where: pytest.fail("it was read again"))
    assert list(open_problems(path)) == list(first)
    monkeypatch.undo()
    write_problems(path, PROBLEMS[:50])
    monkeypatch.setattr(files, "_MOST_BYTES", 0)
    assert list(open_problems(path)) == PROBLEMS[:50]


def test_without_datasets_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'cocot\[hub\]'"):
        open_problems(put(tmp_path))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which folder to name otherwise."""
    from datasets import Dataset

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    path = put(tmp_path)
    table = open_problems(path)
    monkeypatch.setattr(Dataset, "from_generator", full)
    monkeypatch.setattr(Dataset, "map", full)
    with pytest.raises(DataError, match=r"No space left.*HF_DATASETS_CACHE"):
        open_problems(path)
    with pytest.raises(DataError, match=r"No space left.*HF_DATASETS_CACHE"):
        tokenized(table, build_tokenizer(PROBLEMS), None)


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("num_cores", [1, 3])
def test_tokens_on_disk_are_those_in_memory(
    num_cores: int, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one process and by several, with and without frontiers; another tokenizer or task has tokens of its own."""
    monkeypatch.setattr("cocot.data.token_table.allowed_cores", lambda: num_cores)
    frontiers = ProsQA().frontiers if asks else None
    tokenizer = build_tokenizer(PROBLEMS)
    table = open_problems(put(tmp_path))
    parts = set_aside(table, 0.2, 7, seed=1)[0], set_aside(PROBLEMS, 0.2, 7, seed=1)[0]
    for ours, theirs in ((table, PROBLEMS), parts):
        cut, expected = tokenized(ours, tokenizer, frontiers), tokenized(theirs, tokenizer, frontiers)
        assert isinstance(cut, TokenTable)
        assert list(cut) == expected
        assert [cut[3], cut[-1]] == [expected[3], expected[-1]]
        assert cut[3:9] == expected[3:9]
        assert many(cut, [7, 2, 7]) == many(expected, [7, 2, 7])
        assert all(np.array_equal(*pair) for pair in zip(sizes(cut), sizes(expected), strict=True))
    larger = build_tokenizer([*PROBLEMS, Problem("! word", (), "#")])
    assert list(tokenized(table, larger, frontiers)) == tokenized(PROBLEMS, larger, frontiers)
    other = None if asks else ProsQA().frontiers
    assert list(tokenized(table, tokenizer, other)) == tokenized(PROBLEMS, tokenizer, other)


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stage, run and process finds them, also with a tokenizer that was used meanwhile."""
    table, tokenizer = open_problems(put(tmp_path)), build_tokenizer(PROBLEMS)
    first = list(tokenized(table, tokenizer, None))
    tokenizer(["0 1"], padding=True, truncation=False)
    monkeypatch.setattr("cocot.data.token_table.tokenize", lambda *_: pytest.fail("they were made again"))
    assert list(tokenized(table, build_tokenizer(PROBLEMS), None)) == first


def test_what_is_set_aside_needs_no_tokens_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of other seeds set other problems aside, and read the same table of tokens."""
    table, tokenizer = open_problems(put(tmp_path)), build_tokenizer(PROBLEMS)
    tokenized(set_aside(table, 0.2, 7, seed=1)[0], tokenizer, None)
    monkeypatch.setattr("cocot.data.token_table.tokenize", lambda *_: pytest.fail("they were made again"))
    cut = tokenized(set_aside(table, 0.2, 7, seed=2)[0], tokenizer, None)
    monkeypatch.undo()
    assert list(cut) == tokenized(set_aside(PROBLEMS, 0.2, 7, seed=2)[0], tokenizer, None)


TASK = """
from cocot.tasks.prosqa import ProsQA

class Mine(ProsQA):
    def frontiers(self, problem):
        return tuple(({} problem.graph.symbols[problem.graph.root],) for _ in problem.steps)
"""


def test_a_task_that_was_changed_has_other_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's task says other things of its problems since their tokens were made: they are made again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("cocot.data.token_table.allowed_cores", lambda: 1)
    table, tokenizer, found = open_problems(put(tmp_path)), build_tokenizer(PROBLEMS), list[Any]()
    for change in ("", "'0' or"):
        (tmp_path / "my_task.py").write_text(TASK.format(change))
        sys.modules.pop("my_task", None)
        importlib.invalidate_caches()
        frontiers = importlib.import_module("my_task").Mine().frontiers
        found.append(list(tokenized(table, tokenizer, frontiers)))
        assert found[-1] == tokenized(PROBLEMS, tokenizer, frontiers)
    assert found[0] != found[1]


def test_a_word_that_the_vocabulary_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in memory, also where another process meets it."""
    monkeypatch.setattr("cocot.data.token_table.allowed_cores", lambda: 2)
    table = open_problems(put(tmp_path, [*PROBLEMS, Problem("unheard of", ("1",), "2")]))
    with pytest.raises(DataError, match=r"vocabulary lacks .*unheard"):
        tokenized(table, build_tokenizer(PROBLEMS), None)


@pytest.mark.parametrize("method", ["coconut", "frontier", "codi"])
def test_a_training_from_disk_is_the_one_from_memory(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights to the last bit, after an interrupt in the middle of an epoch, too; problems are set aside."""
    pytest.importorskip("networkx")
    data = {"fresh": False, "generate": {}, "train": str(put(tmp_path))}
    config = tiny_config(data=data, curriculum={"method": method})
    disk, memory = tmp_path / "disk", tmp_path / "memory"
    stage = config.curriculum.stages[-1].name
    with interrupted_in(stage, 3):
        train(config, disk)
    train(config, disk)
    monkeypatch.setattr(files, "_MOST_BYTES", 2**29)
    train(config, memory)
    ours, theirs = weights(disk), weights(memory)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    prints = [json.loads(RunFolder(run).about.read_text())["data_fingerprint"] for run in (disk, memory)]
    assert prints[0] == prints[1]


FROM_DISK = """
import sys
from cocot.tasks import files
files._MOST_BYTES = 0
from cocot.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_processes_share_a_table(tmp_path: Path, finish: Finish) -> None:
    """Two of them, of which one writes it: the weights of one process to float noise."""
    data = {"fresh": False, "generate": {}, "train": str(put(tmp_path))}
    config = tiny_config(data=data, train={"device_batch_size": 4}, init=NO_DROPOUT_INIT)
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    out = tmp_path / "two"
    finish(lambda: launch(FROM_DISK, tmp_path, "train", recipe, "--out", out, HF_DATASETS_CACHE=str(tmp_path / "new")))
    train(config, tmp_path / "one")
    ours, theirs = weights(out), weights(tmp_path / "one")
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 2e-5
    assert len(list((tmp_path / "new").rglob("*.lock"))) > 0


WITH_SIGNALS = """
import cocot.data.token_table
from cocot.system.interrupts import exit_on_signals
exit_on_signals()
cocot.data.token_table.allowed_cores = lambda: 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_processes_that_cut_tokens(tmp_path: Path, number: signal.Signals) -> None:
    """One line, at once, and none of them lives on; the same command goes on."""
    data = {"fresh": False, "generate": {}, "train": str(put(tmp_path, PROBLEMS * 1000))}
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data=data))
    program = WITH_SIGNALS + FROM_DISK
    said = tmp_path / "said.txt"
    with said.open("wb") as file:
        command = [sys.executable, "-c", program, "train", str(recipe), "--out", str(tmp_path / "run")]
        child = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env=environment() | {"HF_DATASETS_CACHE": str(tmp_path / "new")},
            start_new_session=True,
        )
    end = time.monotonic() + 100
    while "token ids" not in said.read_text():
        assert child.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()[-500:]
        time.sleep(0.05)
    os.killpg(child.pid, number)
    assert child.wait(timeout=20) == 128 + number
    assert said.read_text().count("interrupted by") == 1
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in in_session(child.pid)):
        assert time.monotonic() < end, "a process lives on"
        time.sleep(0.1)


def in_session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found


class Counted:
    """Problems without texts, that say whose lengths were asked for."""

    epoch = 0
    group_size = 1

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def lengths(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        self.asked += indices
        return [(index * 7919 % 50, index * 104729 % 20) for index in indices]


def test_batches_are_not_made_long_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of millions only what comes next is looked at; every problem comes once, in batches of like lengths."""
    monkeypatch.setattr(sampler, "_CHUNK", 4)
    monkeypatch.setattr(sampler, "_WINDOW", 50)  # in whole chunks: 64
    data: Any = Counted(1003)
    order = iter(EpochSampler(data, "a", 8, by_length=True))
    read = [next(order)]
    assert len(data.asked) == 64
    assert read[0] in data.asked
    read += order
    assert len(set(read)) == len(read) == 1000
    assert sorted(data.asked) == sorted(read)
    windows = [set(data.asked[start : start + 64]) for start in range(0, 1000, 64)]
    assert [set(read[start : start + 64]) for start in range(0, 1000, 64)] == windows
    spread = [max(index * 7919 % 50 for index in read[at : at + 8]) for at in range(0, 1000, 8)]
    assert np.mean(spread) < 45, "batches are not of like lengths"


def test_tokens_are_tuples(tmp_path: Path) -> None:
    """What the encoder is given is what `tokenize` gives, types included."""
    (cut,) = many(tokenized(open_problems(put(tmp_path)), build_tokenizer(PROBLEMS), None), [0])
    assert isinstance(cut, Tokenized)
    assert type(cut.question) is type(cut.steps) is type(cut.steps[0]) is type(cut.answer) is tuple
    assert type(cut.question[0]) is int
