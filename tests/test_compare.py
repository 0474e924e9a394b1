"""Tests of `cocot compare`: equal training, the same questions, one table; stopped, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest.mock import ANY

import pytest
import torch
from runs_support import TINY_INIT, environment, tiny_config, weights, write_recipe

from cocot.cli import main
from cocot.evaluation.ablations import AS_TRAINED
from cocot.evaluation.evaluate import Prediction
from cocot.evaluation.statistics import mcnemar, seeds_interval, welch, wilson_interval
from cocot.experiments.compare import _rows, _tests, fresh_problems
from cocot.experiments.jobs import Training, _environment
from cocot.experiments.study import SEED, Study, read_study, shipped_studies, trials
from cocot.system.hardware import allowed_cores
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.problem import Problem
from cocot.training.checkpoints import complete_checkpoints
from cocot.training.run import train
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import problems_of_files

METHODS = ["cot", "coconut", "pause_as_thought"]


def interrupt_once(run: RunFolder) -> None:
    """Press Ctrl-C as soon as the run has logged something."""
    end = time.monotonic() + 90
    while not run.metrics.exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_stopped_comparison_goes_on_and_ends_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C saves the training that runs (exit code 130); the same call completes it, and writes the table.

    All methods see as many training problems and the same fresh questions; what two of them begin with is done once.
    """
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    init = replace(TINY_INIT, settings={"n_positions": 64})
    config = tiny_config(init=init, curriculum={"epochs_per_stage": 8}, data={"num_train": 64})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    out = tmp_path / "out"
    command = ["compare", str(recipe), "--methods", ",".join(METHODS), "--problems", "9", "--jobs", "2"]
    command += ["--out", str(out)]
    first = RunFolder(out / "cot")
    presser = threading.Thread(target=interrupt_once, args=[first])
    presser.start()
    assert main(command) == 130
    presser.join()
    assert "To resume: cocot compare " in capsys.readouterr().err
    assert not (out / "table.json").exists()
    assert not first.model.exists()
    assert complete_checkpoints(first.stage("stage_0"))
    num_entries = len(first.read_log())
    assert main(command) == 0
    assert len(first.read_log()) > num_entries
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["values"] for row in rows] == [{"method": method} for method in METHODS]
    questions = [problem.question for problem in fresh_problems(config, 9, config.seed)]
    given = {}
    for row, method in zip(rows, METHODS, strict=True):
        (file,) = (out / method / "answers").glob("test-*/as_trained.jsonl")
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        assert [answer["question"] for answer in answers] == questions
        given[method] = [answer["is_correct"] for answer in answers]
        result = row["tests"]["test"]
        assert (result["low"], result["high"]) == wilson_interval(sum(given[method]), 9)
        assert result["accuracy"] == sum(given[method]) / 9
        assert result["problems"] == 9
        assert result["p_values"] == {
            rival: mcnemar(given[method], given[rival])
            for rival in ("cot", "pause_as_thought")
            if rival in given and rival != method
        } | {rival: ANY for rival in ("cot", "pause_as_thought") if rival not in given}
        assert row["train_problems"] == 10 * 64  # a run long enough to be stopped on a busy machine
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("|")] == ["method", "---", *METHODS]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("method", *METHODS))] == ["method", *METHODS]
    own, copied = (RunFolder(out / name) for name in METHODS[1:])
    (checkpoint,) = complete_checkpoints(own.stage("stage_0"))
    (copy,) = complete_checkpoints(copied.stage("stage_0"))
    assert (copy / "trainer_state.json").read_bytes() == (checkpoint / "trainer_state.json").read_bytes()


class TrainedRun:
    """What a table asks of a training."""

    config = tiny_config()

    def progress(self) -> tuple[int, int]:
        return 8, 8

    def step_seconds(self) -> float:
        return 1.0


def test_a_row_of_several_seeds_counts_the_seed_that_failed() -> None:
    """An interval of all answers alone would be narrow, and its lead over the chain significant."""
    study = read_study("methods", "search").with_values("method", ["coconut", "cot"]).with_axis(SEED, range(3))
    chosen = trials(study, [])
    correct = {"coconut": (1000, 1000, 491), "cot": (780, 800, 760)}

    def answers(count: int) -> list[Prediction]:
        return [Prediction("q", "a", "a", "### a", index < count, 5, 2, True, 0.5) for index in range(1000)]

    given = [{"balanced": {AS_TRAINED: answers(correct[trial.group[0]][trial.config.seed])}} for trial in chosen]
    coconut, cot = _rows(study, chosen, [cast(Training, TrainedRun())] * len(chosen), given)
    result, other = coconut["tests"]["balanced"], cot["tests"]["balanced"]
    assert result["by_seed"] == [1.0, 1.0, 0.491]
    assert result["accuracy"] == pytest.approx(0.8303, abs=1e-4)
    assert (result["low"], result["high"]) == seeds_interval(result["by_seed"])
    assert result["low"] < 0.2
    assert result["p_values"]["cot"] == welch(result["by_seed"], other["by_seed"])
    assert result["p_values"]["cot"] > 0.5
    alike = [{"balanced": {AS_TRAINED: answers(780)}} for _ in chosen]
    (first, _) = (row["tests"]["balanced"] for row in _rows(study, chosen, [cast(Training, TrainedRun())] * 6, alike))
    assert (first["low"], first["high"]) == wilson_interval(3 * 780, 3000), "seeds that agree do not narrow it"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_comparison_leaves_nothing_running_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL: its training notices, saves its state and stops; the same call ends as if nothing had happened."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    config = tiny_config(curriculum={"epochs_per_stage": 8}, data={"num_train": 64})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    out = tmp_path / "out"
    command = ["compare", str(recipe), "--methods", "coconut", "--problems", "9", "--jobs", "2"]
    command += ["--out", str(out)]
    run = RunFolder(out / "coconut")
    process = subprocess.Popen(
        [sys.executable, "-m", "cocot", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 90
    while not run.metrics.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not run.is_free()
    process.kill()
    process.communicate()
    while not run.is_free() and time.monotonic() < end:
        time.sleep(0.1)
    assert run.is_free()
    assert not run.model.exists(), "the training ran to its end"
    assert complete_checkpoints(run.stage("stage_0"))
    assert main(command) == 0
    train(config, tmp_path / "whole")
    ours, theirs = weights(run.path), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (out / "table.json").exists()


@pytest.mark.distributed
def test_cores_are_shared_out_unless_the_user_limits_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings side by side get their share; a limit that the user has set, for other work beside them, stays."""
    training = Training("a", "demo", [], tiny_config(), RunFolder(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _environment(training, 1, 0)["OMP_NUM_THREADS"] == str(allowed_cores())
    assert _environment(training, 10_000, 0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _environment(training, 1, 0)["OMP_NUM_THREADS"] == "3"


def test_a_finished_run_with_other_settings_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what differs; nothing is trained, nor lost."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config())
    out = tmp_path / "out"
    command = ["compare", str(recipe), "--methods", "coconut", "--problems", "4", "--out", str(out)]
    assert main(command) == 0
    table = (out / "table.json").read_bytes()
    assert main([*command, "--train.learning_rate", "0.5"]) == 2
    assert "belongs to another run: train.learning_rate was 0.003, is now 0.5" in capsys.readouterr().err
    assert main([*command, "--jobs", "0"]) == 2
    assert "--jobs: 0 is too small; it must be at least 1" in capsys.readouterr().err
    assert (out / "table.json").read_bytes() == table


def test_the_questions_are_fresh() -> None:
    """Test problems depend on the seed alone, look like those of validation, and are none of them."""
    config = tiny_config()
    problems = fresh_problems(config, 20, seed=0)
    assert fresh_problems(config, 20, seed=0) == problems
    assert fresh_problems(config, 20, seed=1) != problems
    assert {len(problem.steps) for problem in problems} == {2}
    assert {len(problem.steps) for problem in fresh_problems(config, 5, seed=0, layers=3)} == {3}


STUDIES = [(name, scale) for name, scales in shipped_studies().items() for scale in scales]


@pytest.mark.parametrize("study", [*STUDIES, None])
def test_a_users_file_is_asked_beside_the_studys_own_sets(study: tuple[str, str] | None, tmp_path: Path) -> None:
    """Under a name of its own, be the file called like one of the study's sets: no set takes the place of another."""
    table = read_study(*study) if study else Study("demo", {"curriculum.method": ["cot"]})
    (trial, *_) = trials(table, [])
    own = Problem("1 2 ; ? 2 1 1", (), "2")
    if trial.config.data.train:  # a data set of the Hub
        return
    for name in (*table.tests, "validation", "mine"):
        write_problems(tmp_path / f"{name}.jsonl", [own])
        tests = _tests(replace(table, num_problems=3), trial, 0, tmp_path / "out", tmp_path / f"{name}.jsonl")
        assert [problems for _, problems in tests.values()].count([own]) == 1
        assert len(tests) == len(table.tests) + 1
        assert set(table.tests) < set(tests)
        assert len({path for path, _ in tests.values()}) == len(tests)
        assert all(read_problems(path) == problems for path, problems in tests.values())


def test_a_run_that_learns_from_a_file_is_not_asked_another_tasks_problems(tmp_path: Path) -> None:
    """Without a test file, it is asked what it was validated on; generated problems are of another kind."""
    problems = [Problem(f"{number} ?", (f"{number}",), str(number)) for number in range(40)]
    write_problems(tmp_path / "mine.jsonl", problems)
    config = tiny_config(data={"train": str(tmp_path / "mine.jsonl"), "fresh": False})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    study = Study(str(recipe), {"curriculum.method": ["cot"]})
    (trial,) = trials(study, [])
    tests = _tests(study, trial, 0, tmp_path, None)
    assert list(tests) == ["validation"]
    assert tests["validation"][1] == problems_of_files(config)[1]
