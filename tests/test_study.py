"""Tests of studies: what ships can be planned, a trial is what its axes say, a killed table ends as any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs_support import environment

from cocot.cli import COMMANDS, main
from cocot.cli.arguments import build_parser
from cocot.errors import ConfigError
from cocot.experiments.compare import compare, make_trainings
from cocot.experiments.estimates import estimate
from cocot.experiments.study import METHOD, SEED, Study, axis_values, read_study, shipped_studies, trials
from cocot.methods import METHODS
from cocot.training.run_folder import RunFolder

TABLE_1 = ("gsm8k", "prontoqa", "prosqa")
TINY = ["--data.num_train", "64", "--data.num_valid", "4", "--model.init.width", "16", "--train.save_steps", "1"]


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, scales in shipped_studies().items() for scale in scales]
)
def test_a_shipped_study_can_be_planned(name: str, scale: str) -> None:
    """Its recipe loads with the settings of every trial, and every trial has a folder of its own."""
    study = read_study(name, scale)
    chosen = trials(study.with_axis(SEED, range(2)), [])
    assert len({trial.path for trial in chosen}) == len(chosen)
    assert {trial.config.seed for trial in chosen} == {0, 1}
    assert study.note
    if name in TABLE_1:
        methods = [trial.config.curriculum.method for trial in chosen[::2]]
        table = [*study.paper, *(["frontier"] if study.recipe in ("prosqa_cpu", "prosqa_symbolic_cpu") else [])]
        assert methods == (["cot", "no_cot", "coconut", "pause_as_thought"] if scale == "gpu" else table)
        assert set(study.paper) < set(METHODS)
        assert len(study.paper) == 8


def test_the_papers_figures_are_those_of_its_table() -> None:
    """Spot checks against Table 1 of arXiv 2412.06769."""
    paper = {name: read_study(name, "paper").paper for name in TABLE_1}
    assert paper["prosqa"]["coconut"] == {"accuracy": 0.97, "tokens": 14.2}
    assert paper["prontoqa"]["cot"] == {"accuracy": 0.988, "tokens": 92.5}
    assert paper["gsm8k"]["no_thought"] == {"accuracy": 0.216}


def test_a_trial_is_what_its_axes_say() -> None:
    """Every combination, the last axis turning fastest; a bundle of settings reaches the recipe as a whole."""
    hops = {
        "one": {"data.generate": {"mode": "balanced", "layers": 1}, "curriculum.max_stage": 1},
        "two": {"data.generate": {"mode": "balanced", "layers": 2}, "curriculum.epochs_per_stage": [3, 4]},
    }
    study = Study("demo", {METHOD: ["cot", "coconut"], "hops": hops, SEED: [5]})
    chosen = trials(study, ["--train.batch_size", "16", "--curriculum.epochs_per_stage", "1"])
    assert [str(trial.path) for trial in chosen] == [
        "cot/hops_one/seed_5",
        "cot/hops_two/seed_5",
        "coconut/hops_one/seed_5",
        "coconut/hops_two/seed_5",
    ]
    last = chosen[-1]
    assert last.values == {"method": "coconut", "hops": "two", "seed": "5"}
    assert last.group == ("coconut", "two")
    assert (last.config.seed, last.config.train.batch_size) == (5, 16)
    assert last.config.data.generate == {"mode": "balanced", "layers": 2}
    assert last.config.curriculum.epochs_per_stage == [3, 4]
    assert chosen[0].config.curriculum.max_stage == 1
    assert [trial.path.name for trial in trials(study.with_axis("hops", ["two"]).with_axis(SEED, [1]), [])] == [
        "seed_1"
    ] * 2


def test_an_axis_is_cut_on_the_command_line() -> None:
    """By its short name; values become what the recipe takes, and a bundle keeps its settings."""
    study = read_study("depth", "cpu")
    for words in ("layers=2,5", "hops=3", "method=coconut"):
        study = study.with_values(*axis_values(words))
    chosen = trials(study, [])
    assert [str(trial.path) for trial in chosen] == ["coconut/layers_2/hops_3", "coconut/layers_5/hops_3"]
    assert [trial.config.model.init.layers for trial in chosen if trial.config.model.init] == [2, 5]
    assert all(trial.config.curriculum.max_stage == 3 for trial in chosen)


def main_error(words: list[str]) -> None:
    """The command, its error not yet turned into a line."""
    args = build_parser().parse_args(["reproduce", *words])
    args.overrides = []
    COMMANDS[args.command](args)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_study("prosqua", "cpu"), "no study 'prosqua'; choose one of: depth, gsm8k"),
        (
            lambda: read_study("prosqa", "tpu"),
            "study prosqa has no scale 'tpu'; choose one of: demo, cpu, symbols, gpu, paper",
        ),
        (
            lambda: read_study("depth", "cpu").with_axis("hops", [2, 9]),
            "the study has no hops 9; choose among: 2, 3, 4, 5",
        ),
        (lambda: main_error(["mixing", "--methods", "cot"]), "'method=cot' gives no axis of this study its values"),
        (lambda: main_error(["depth", "--axis", "hop=2"]), "its axes are: method, layers, hops, seed"),
        (lambda: main_error(["depth", "--axis", "layers=[2,3]"]), r"give values with commas between .* layers=2,3"),
        (lambda: main_error(["depth", "--axis", "hops"]), "'hops' gives no axis of this study its values"),
        (lambda: main_error(["prosqa", "--seeds", "0"]), "--seeds: 0 is too small; it must be at least 1"),
        (lambda: main_error(["gsm8k", "--scale", "paper", "--problems", "0"]), "must be at least 1"),
        (
            lambda: compare(Study("demo", {METHOD: ["cot"]}, tests={}), [], Path("out")),
            "name a file of them with --data",
        ),
        (lambda: main_error(["depth", "--search", "seed=1,2"]), "seed is an axis of this study"),
        (lambda: main_error(["depth", "--search", "model.init.layers=1,2"]), "model.init.layers is an axis of this"),
        (lambda: main_error(["depth", "--search", "train.batch_size=16"]), "at least two values: train.batch_size="),
        (lambda: main_error(["depth", "--search", "train.batch_size=16,16"]), "name each value of an axis once"),
        (lambda: trials(Study("demo", {METHOD: ["coconot"]}), []), "unknown method 'coconot'"),
        (lambda: trials(Study("demo", {"model.init.layer": [1]}), []), "did you mean 'model.init.layers'"),
    ],
)
def test_a_slip_is_explained(call: Callable[[], Any], message: str) -> None:
    """The message names what there is."""
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.slow
def test_an_estimate_is_of_the_work_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with the epochs, leaves out what another training does, is kept, and leaves no miniature behind."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    study = Study("demo", {METHOD: ["coconut", "pause_as_thought"]})
    longer = [*TINY, "--curriculum.first_epochs", "400"]
    first = make_trainings(study, trials(study, longer), tmp_path)
    coconut, pause = estimate(first, 2, tmp_path)
    assert coconut.training > 1.5 * pause.training > 0, "pause_as_thought takes its first stages over"
    assert coconut.answering > 0
    assert os.listdir(tmp_path) == ["estimates.json"]
    monkeypatch.setattr("cocot.experiments.estimates.train_all", None)
    assert estimate(make_trainings(study, trials(study, longer), tmp_path), 2, tmp_path) == [coconut, pause]
    assert not any(training.run.path.exists() for training in first)


def test_the_time_of_a_training_is_that_of_its_steps(tmp_path: Path) -> None:
    """Each log entry gives the mean of the steps since the one before it in its stage; validations take none."""
    (training,) = make_trainings(study := Study("demo", {METHOD: ["cot"]}), trials(study, []), tmp_path)
    assert training.step_seconds() == 0
    training.run.path.mkdir()
    for stage, step, entry in [
        ("warmup", 10, {"step_seconds": 0.5}),
        ("warmup", 30, {"step_seconds": 0.25}),
        ("warmup", 30, {"eval_seconds": 100.0}),
        ("stage_0", 4, {"step_seconds": 1.0}),
    ]:
        training.run.log({"stage": stage, "step": step, **entry})
    assert training.step_seconds() == 5 + 5 + 4


def table(out: Path) -> Any:
    """`table.json` without what depends on the clock."""

    def without_time(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_time(part) for name, part in value.items() if "seconds" not in name}
        return [without_time(part) for part in value] if isinstance(value, list) else value

    return without_time(json.loads((out / "table.json").read_text()))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_study_ends_in_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while it measures, while it trains and while it asks: the next call goes on, and trains nothing twice."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    command = ["reproduce", "prosqa", "--methods", "cot,coconut", "--problems", "40", "--jobs", "2", *TINY]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    run = RunFolder(out / "coconut/seed_0")
    moments: list[Callable[[], bool]] = [
        lambda: any(out.glob(".cocot-*/coconut/seed_0/metrics.jsonl")),
        lambda: len(run.read_log()) > 3,
        lambda: len(list(run.path.glob("answers/*/*.jsonl"))) >= 2,
    ]
    for has_come in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "cocot", *command, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 120
        while not has_come() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the moment never came"
    weights = [file.stat().st_mtime_ns for file in sorted(out.rglob("model/model.safetensors"))]
    assert len(weights) == 2
    assert main([*command, "--out", str(out)]) == 0
    assert [file.stat().st_mtime_ns for file in sorted(out.rglob("model/model.safetensors"))] == weights
    assert table(out) == table(tmp_path / "whole")
    assert table(out)["rows"][1]["tests"]["balanced"]["p_values"].keys() == {"cot"}
    assert [row["values"]["thoughts"] for row in table(out)["ablations"]][-2:] == ["k=0", "k=1"]
    assert (out / "table.md").read_text().startswith("Small model")
