"""Tests of training: one trajectory however it is cut, shared or killed; stages that end when they should."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from runs_support import NO_DROPOUT_INIT, TINY_INIT, Finish, accuracies, environment, tiny_config, weights, write_recipe
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from cocot.data.collator import collate
from cocot.data.encoding import tokenize
from cocot.data.examples import Encoder, Example
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import ConfigError, DataError, Interrupted, ModelError, RunError
from cocot.evaluation.evaluate import compute_metrics, evaluate, evaluate_together
from cocot.methods import Phase
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS
from cocot.modeling.config import InitConfig
from cocot.modeling.loading import load
from cocot.serving.export import export
from cocot.tasks.files import write_problems
from cocot.tasks.problem import Problem
from cocot.tasks.prosqa import ProsQA
from cocot.training import run as run_module
from cocot.training import trainer as trainer_module
from cocot.training.checkpoints import complete_checkpoints
from cocot.training.config import RunConfig
from cocot.training.fsdp import check_fsdp
from cocot.training.problems import Data, prepare_data
from cocot.training.run import RunInProgress, train
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import PlannedStage, plan
from cocot.training.trainer import StageTrainer

MAX_GAP = 2e-5
"""Largest difference of weights after 8 dropout-free steps of AdamW at 3e-3 that share a batch out in another way.

Measured: accumulated 1.7e-06, two processes 2.9e-06; the same problems in another order 3.6e-02, a loss averaged by
device batch in place of by token 1.3e-02.
"""


PHASES = [
    Phase("small", {"stage_0": 1.0}, epochs=2, generate={"layers": 1}, learning_rate=0.5),
    Phase("mixed", {"stage_1": 1.0, "final": 2.0}, epochs=2, earlier=0.5, method="frontier"),
]


class Killed(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


Stop = Callable[[str, dict[str, Any]], None]


def stopping(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """Call `stop(name of the RunFolder method, entry)` after every log entry and before every entry of a stage."""
    log, finish = RunFolder.log, RunFolder.finish_stage

    def log_then_stop(run: RunFolder, entry: dict[str, Any]) -> None:
        log(run, entry)
        stop("log", entry)

    def stop_then_finish(run: RunFolder, entry: dict[str, Any]) -> None:
        stop("finish", entry)
        finish(run, entry)

    monkeypatch.setattr(RunFolder, "log", log_then_stop)
    monkeypatch.setattr(RunFolder, "finish_stage", stop_then_finish)


def assert_same(run: Path, other: Path) -> None:
    """Bitwise the same weights and the same log: every loss, rate and accuracy once, in the same order."""
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours_log, theirs_log = (
        [{name: value for name, value in entry.items() if not name.endswith("_seconds")} for entry in log]
        for log in (RunFolder(path).read_log() for path in (run, other))
    )
    assert ours_log == theirs_log


def gap(run: Path, other: Path) -> float:
    """The largest difference between the weights of two runs."""
    ours, theirs = weights(run), weights(other)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run that nobody stopped; read it, do not change it."""
    config = tiny_config(curriculum={"epochs_per_stage": 2})
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config, folder)
    return config, folder


@pytest.mark.parametrize(
    ("reset", "optimizer", "every", "phases"),
    [("stage", "adamw", 4, []), ("never", "muon", 7, []), ("epoch", "adamw", 5, []), ("stage", "adamw", 5, PHASES)],
)
def test_a_run_that_is_stopped_again_and_again_ends_bit_for_bit_as_if_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: str, optimizer: str, every: int, phases: list[Phase]
) -> None:
    """Interrupts and kills, inside phases too: the next call goes on; weights and accuracies are those of one run."""
    rates = {"optimizer_reset": reset, "optimizer": optimizer, "muon_learning_rate": 0.02, "lr_scheduler": "cosine"}
    config = tiny_config(curriculum={"epochs_per_stage": 2, "phases": phases}, train={**rates, "warmup_steps": 2})
    train(config, tmp_path / "whole")
    places: list[tuple[str, int]] = []

    def stop(method: str, entry: dict[str, Any]) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls % every == 0:
            places.append((entry.get("stage", entry.get("name")), entry.get("step", -1)))
            if len(places) % 2:
                signal.raise_signal(signal.SIGINT)
            else:
                raise Killed

    num_calls = 0
    with monkeypatch.context() as patched:
        stopping(patched, stop)
        for _ in range(50):
            num_calls = 0
            try:
                train(config, tmp_path / "cut")
                break
            except (Interrupted, KeyboardInterrupt, Killed):
                pass
    assert len(places) >= 3, "the run was hardly ever stopped"
    assert len(set(places)) > 2, "the run was always stopped at the same place"
    assert_same(tmp_path / "cut", tmp_path / "whole")


def run_until(command: list[object], is_time: Callable[[], bool], number: int) -> subprocess.CompletedProcess[str]:
    """Start `cocot`, send it a signal once it is time, wait for its end."""
    arguments = [sys.executable, "-m", "cocot", *map(str, command)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        end = time.monotonic() + 60
        while not is_time() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.distributed
def test_sigkill_and_ctrl_c_in_mid_stage_lose_nothing(tmp_path: Path) -> None:
    """A real SIGKILL, later a real Ctrl-C (exit code 130, how to go on), then to the end: bit for bit one run."""
    config = tiny_config(curriculum={"epochs_per_stage": 4, "final_epochs": 2})
    out = tmp_path / "killed"
    command = ["train", write_recipe(tmp_path / "mine.yaml", config), "--out", out]
    run = RunFolder(out)
    killed = run_until(command, lambda: bool(complete_checkpoints(run.stage("stage_1"))), signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert [entry["name"] for entry in run.finished_stages()] == ["stage_0"]
    num_lines = len(run.read_log())
    stopped = run_until(command, lambda: len(run.read_log()) > num_lines + 1, signal.SIGINT)
    assert stopped.returncode == 130
    (line,) = (line for line in stopped.stderr.splitlines() if line.startswith("cocot: stopped in "))
    assert line.endswith(f"everything is saved in {out}. To resume: cocot {' '.join(map(str, command))}")
    assert "Traceback" not in stopped.stderr
    assert not run.model.exists()
    train(config, out)
    train(config, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_stage_ends_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A signal during the last validation of a stage finishes that stage, begins no other, and is not forgotten."""
    config, before = tiny_config(), signal.getsignal(number)

    def stop(method: str, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "stage_0" and "eval_accuracy" in entry:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        stopping(patched, stop)
        with pytest.raises(Interrupted, match="stopped in stage_0 after step 4"):
            train(config, tmp_path)
    run = RunFolder(tmp_path)
    assert [entry["name"] for entry in run.finished_stages()] == ["stage_0"]
    assert not run.stage("stage_1").exists()
    assert signal.getsignal(number) is before


def test_an_interrupt_at_the_very_end_finishes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal during the last validation of all leaves nothing to go on with: the run is done."""

    def stop(method: str, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "final" and "eval_accuracy" in entry:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        stopping(patched, stop)
        train(tiny_config(), tmp_path)
    assert (tmp_path / "model" / "model.safetensors").exists()


def train_until_step_5(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run in its second stage, which has two checkpoints by then."""

    def stop(method: str, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "stage_1" and entry["step"] == 5:
            raise Killed

    with monkeypatch.context() as patched:
        stopping(patched, stop)
        with pytest.raises(Killed):
            train(config, folder)


@pytest.mark.parametrize("damage", ["no mark", "cut off"])
def test_a_half_written_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunConfig, Path], damage: str
) -> None:
    """A newer checkpoint that a kill left unfinished is not read: the one before it is gone on from."""
    config, whole = finished
    train_until_step_5(config, tmp_path / "run", monkeypatch)
    stage = RunFolder(tmp_path / "run").stage("stage_1")
    newest = complete_checkpoints(stage)[-1]
    half = shutil.copytree(newest, stage / "checkpoint-5")
    (half / "checksums.json").unlink()
    if damage == "cut off":
        for file in half.iterdir():
            file.write_bytes(file.read_bytes()[:20])
    assert complete_checkpoints(stage)[-1] == newest
    train(config, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


DAMAGED = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    finished: tuple[RunConfig, Path],
    name: str,
) -> None:
    """A file of the newest one that was cut off, changed or swapped is named; the run ends as if nothing had been."""
    config, whole = finished
    train_until_step_5(config, tmp_path / "run", monkeypatch)
    older, newest = complete_checkpoints(RunFolder(tmp_path / "run").stage("stage_1"))
    swapped = (older / name).read_bytes()
    assert swapped != (newest / name).read_bytes()
    (newest / name).write_bytes(swapped)
    train(config, tmp_path / "run")
    assert f"checkpoint-4 is corrupted ({name} is not what was written there)" in caplog.text
    assert_same(tmp_path / "run", whole)


def test_what_a_finished_stage_left_is_not_half_loaded(tmp_path: Path, finished: tuple[RunConfig, Path]) -> None:
    """Neither by the next stage nor by another run that would share it; nor is a damaged result."""
    config, whole = finished
    run = RunFolder(shutil.copytree(whole, tmp_path / "run"))
    weights_file = run.model / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-8] + bytes(8))
    with pytest.raises(RunError, match=r"model\.safetensors is not what was written there"):
        load(run.path)
    shutil.rmtree(run.model)
    (run.best / "model.safetensors").write_bytes(weights_file.name.encode())
    with pytest.raises(RunError, match=r"best is corrupted: model\.safetensors"):
        train(config, run.path)
    first, *later = run.finished_stages()
    for stage in later:
        shutil.rmtree(run.stage(stage["name"]))
    (run.path / first["checkpoint"] / "optimizer.pt").write_bytes(b"")
    (run.path / "state.json").write_text(json.dumps({"finished_stages": [first]}))
    with pytest.raises(RunError, match=r"optimizer\.pt is not what was written there"):
        train(config, run.path)
    with pytest.raises(RunError, match=r"optimizer\.pt is not what was written there"):
        train(config, tmp_path / "sharing", shares_with=run.path)


def test_a_kill_between_the_last_stage_and_the_result_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunConfig, Path]
) -> None:
    """A kill while `model/` is written leaves no half model; the next call writes it without training again."""
    config, whole = finished
    copytree = shutil.copytree

    def copy_then_die(*args: Any, **kwargs: Any) -> None:
        copytree(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run_module.shutil, "copytree", copy_then_die)
        with pytest.raises(Killed):
            train(config, tmp_path)
    assert not (tmp_path / "model").exists()
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    train(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    assert_same(tmp_path, whole)


def test_a_finished_run_is_left_as_it_is(finished: tuple[RunConfig, Path]) -> None:
    """The same call on a finished run changes no file."""
    config, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    train(config, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"} == before


def test_accumulated_batches_are_one_big_batch(tmp_path: Path) -> None:
    """Device batches of 2 reach the same weights as one of 8, to float noise; another problem does not."""
    one = tiny_config(init=NO_DROPOUT_INIT, curriculum={"final_epochs": 0})
    train(one, tmp_path / "one")
    accumulated = replace(one, train=replace(one.train, device_batch_size=2))
    train(accumulated, tmp_path / "accumulated")
    other = replace(one, data=replace(one.data, num_train=33))
    train(other, tmp_path / "other")
    print("gap of accumulation", gap(tmp_path / "one", tmp_path / "accumulated"))
    print("gap of other problems", gap(tmp_path / "one", tmp_path / "other"))
    assert gap(tmp_path / "one", tmp_path / "accumulated") < MAX_GAP
    assert gap(tmp_path / "one", tmp_path / "other") > 10 * MAX_GAP


def test_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    """Activations computed again, dropout included, give the same weights bit for bit, and stages go on using it."""
    kept = tiny_config(curriculum={"max_stage": 2, "final_epochs": 0})
    train(kept, tmp_path / "kept")
    again = replace(kept, train=replace(kept.train, gradient_checkpointing=True))
    train(again, tmp_path / "again")
    assert gap(tmp_path / "kept", tmp_path / "again") == 0


def test_checkpointing_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    """A model whose passes cannot share work says so before the first step."""
    config = tiny_config(init=InitConfig("phi", 2, 32, 2), train={"gradient_checkpointing": True})
    with pytest.raises(ModelError, match="not for phi with"):
        train(config, tmp_path)


SEES_GPUS = """
import sys
import torch
torch.cuda.device_count = torch.accelerator.device_count = lambda: 3
torch.accelerator.is_available = lambda: True
torch.Tensor.pin_memory = lambda self, *device: self
from cocot.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""
"""`cocot train` that is told of three GPUs; there being none, its device is the CPU all the same."""


@pytest.mark.distributed
def test_one_process_that_sees_several_gpus_trains_on_one_and_says_so(tmp_path: Path) -> None:
    """Not in transformers' DataParallel, which trains a stage and saves nothing; the way to all of them is said."""
    config = tiny_config(train={"device": None}, curriculum={"final_epochs": 0})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    command = [sys.executable, "-c", SEES_GPUS, str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("training on 1 of 3 GPUs; for all of them: torchrun --nproc_per_node 3 -m cocot train") == 1
    )
    cpu = replace(config, train=replace(config.train, device="cpu"))
    train(cpu, tmp_path / "cpu")
    assert gap(tmp_path / "run", tmp_path / "cpu") == 0


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` sets."""

ENGINES = {"ddp": (["-m", "cocot"], {}), "fsdp": ([str(Path(__file__).with_name("fsdp_on_cpu.py"))], FSDP)}


def start_two(engine: str, recipe: Path, out: Path, more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`cocot train` in two processes; `more` are variables of their environment."""
    program, settings = ENGINES[engine]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
    return subprocess.Popen(
        [*launch, "train", str(recipe), "--out", str(out), "--train.device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | settings | (more or {}),
    )


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("engine", "train_settings"),
    [
        ("ddp", {}),
        ("fsdp", {}),
        ("fsdp", {"gradient_checkpointing": True}),
        ("ddp", {"optimizer": "muon"}),
        ("fsdp", {"optimizer": "muon"}),
    ],
)
def test_two_processes_are_one(tmp_path: Path, finish: Finish, engine: str, train_settings: dict[str, Any]) -> None:
    """Two processes reach one process's weights to float noise, and leave one tidy run folder.

    Their batches have different numbers of thoughts: most problems are read at the stage before.
    """
    curriculum = {"final_epochs": 0, "stage_mix": 0.9, "thoughts_per_step": 3}
    config = tiny_config(
        init=NO_DROPOUT_INIT,
        curriculum=curriculum,
        train=train_settings,
        data={"num_valid": 5},  # 3 and 2 a process
    )
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    train(config, tmp_path / "one")
    out, err = finish(lambda: start_two(engine, recipe, tmp_path / "two"))
    print("gap of two processes", gap(tmp_path / "one", tmp_path / "two"))
    assert gap(tmp_path / "one", tmp_path / "two") < MAX_GAP
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert accuracies(tmp_path / "one") == accuracies(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["num_processes"] == 2
    assert err.count("batch of 8 = 4 on a device x 1 accumulated x 2 processes\n") == 1
    assert out.count("model: ") == 1
    one, two = (sorted(path.name for path in (tmp_path / run).rglob("*") if path.is_file()) for run in ("one", "two"))
    alone, shared = ["rng_state.pth"] * 2, ["rng_state_0.pth"] * 2 + ["rng_state_1.pth"] * 2
    assert sorted([name for name in one if name not in alone] + shared) == two


@pytest.mark.distributed
def test_a_pretrained_model_is_shared_out(tmp_path: Path, finish: Finish) -> None:
    """Read, validated before its first step, then trained: as one process trains it."""
    settings = {"learning_rate": 3e-4}
    problems = prepare_data(tiny_config()).valid
    save_model(tmp_path / "llama", [problem.question + problem.steps[0] for problem in problems], "llama")
    config = tiny_config(path=str(tmp_path / "llama"), train=settings, data={"num_valid": 5})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    train(config, tmp_path / "one")
    finish(lambda: start_two("fsdp", recipe, tmp_path / "two"))
    print("gap of a pretrained model", gap(tmp_path / "one", tmp_path / "two"))
    assert gap(tmp_path / "one", tmp_path / "two") < MAX_GAP
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert accuracies(tmp_path / "one") == accuracies(tmp_path / "two")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fsdp_version": 1}, "--fsdp_version 2"),
        ({"activation_checkpointing": True}, r"train\.gradient_checkpointing true instead"),
    ],
)
def test_fsdp_that_would_be_wrong_is_refused(setting: dict[str, Any], message: str) -> None:
    """The first version, and checkpointing of its own."""
    plugin = SimpleNamespace(**{"fsdp_version": 2, "activation_checkpointing": False, **setting})
    with pytest.raises(ConfigError, match=message):
        check_fsdp(plugin, tiny_config())


@pytest.mark.parametrize(
    "curriculum", [{"method": "frontier"}, {"method": "sim_cot"}, {"method": "codi"}, {"phases": PHASES}]
)
def test_a_loss_on_thoughts_is_refused_under_fsdp(curriculum: dict[str, Any]) -> None:
    """It reads the head outside of a forward pass; of a run and of a phase."""
    plugin = SimpleNamespace(fsdp_version=2, activation_checkpointing=False)
    check_fsdp(plugin, tiny_config())
    with pytest.raises(ConfigError, match="does not go with FSDP"):
        check_fsdp(plugin, tiny_config(curriculum=curriculum))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [("fsdp", "one"), ("one", "fsdp")])
def test_a_run_goes_on_with_other_processes(tmp_path: Path, finish: Finish, before: str, after: str) -> None:
    """Interrupted inside a stage, with moments of the stage before: checkpoints are the same, whoever writes them."""
    config = tiny_config(
        init=NO_DROPOUT_INIT,
        curriculum={"final_epochs": 0, "epochs_per_stage": 10},
        train={"save_steps": 2, "optimizer_reset": "never", "learning_rate": 1e-4},
    )
    recipe = write_recipe(tmp_path / "mine.yaml", config)

    def start(how: str, out: Path) -> subprocess.Popen[str]:
        if how != "one":
            return start_two(how, recipe, out)
        command = [sys.executable, "-m", "cocot", "train", str(recipe), "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())

    finish(lambda: start("one", tmp_path / "whole"))
    first = start(before, tmp_path / "two")
    while not complete_checkpoints(tmp_path / "two" / "stages" / "stage_1"):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    first.terminate()
    first.communicate(timeout=60)
    assert not (tmp_path / "two" / "model").exists()
    finish(lambda: start(after, tmp_path / "two"))
    last = (load_file(tmp_path / run / "stages/stage_1/checkpoint-40/model.safetensors") for run in ("whole", "two"))
    whole, two = last
    gaps = [float((whole[name] - two[name]).abs().max()) for name in whole]
    print("gap after", before, after, max(gaps))
    assert max(gaps) < MAX_GAP


@pytest.mark.parametrize("what", ["the loss is (nan|inf)", "the weights are no longer numbers"])
def test_a_diverging_stage_stops_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """No number in the loss or the weights: a RunError names stage and step, and nothing but numbers was saved."""
    step = StageTrainer.training_step

    def step_then_overflow(trainer: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(trainer, *args, **kwargs)
        if trainer.job.planned.stage.name == "final" and trainer.state.global_step == 1:
            next(iter(trainer.model.parameters())).grad.fill_(torch.inf)
        return loss

    rate = 1e30 if "loss" in what else 1.0
    config = tiny_config(train={"stage_learning_rate": {"final": rate}, "save_steps": 1})
    if "weights" in what:
        monkeypatch.setattr(StageTrainer, "training_step", step_then_overflow)
    with pytest.raises(RunError, match=rf"{what} in final by step 2;.*Lower train\.learning_rate"):
        train(config, tmp_path)
    run = RunFolder(tmp_path)
    assert [entry["name"] for entry in run.finished_stages()] == ["stage_0", "stage_1"]
    kept = [*complete_checkpoints(run.stage("stage_1")), *complete_checkpoints(run.stage("final"))]
    assert kept
    for checkpoint in kept:
        assert all(bool(weight.isfinite().all()) for weight in load_file(checkpoint / "model.safetensors").values())
    assert not run.model.exists()


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunConfig, Path]
) -> None:
    """Years ahead and back while it trains, and files dated the wrong way round: a resumed run ends as the other."""
    config, whole = finished
    jumps, real = Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + jumps.choice([-1, 0, 1]) * jumps.random() * 3e8)
    log = RunFolder.log

    def stop(run: RunFolder, entry: dict[str, Any]) -> None:
        log(run, entry)
        if (entry["stage"], entry["step"]) == ("stage_1", 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.setattr(RunFolder, "log", log)
    files = sorted((tmp_path / "run").rglob("*"))
    for age, path in enumerate(files):
        os.utime(path, (1e9 - 1e6 * age, 1e9 - 1e6 * age))
    train(config, tmp_path / "run")
    assert gap(whole, tmp_path / "run") == 0
    assert accuracies(whole) == accuracies(tmp_path / "run")


@pytest.mark.parametrize("limit", [12_000, 60_000])
def test_a_full_disk_stops_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunConfig, Path], limit: int
) -> None:
    """No more room while a checkpoint is written: RunError, the one before whole; with room again, bit for bit one run.

    The smaller limit (bytes a file) cuts the weights off, the larger one the optimizer's state.
    """
    config, whole = finished
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def stop(method: str, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "stage_1" and entry["step"] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    run = RunFolder(tmp_path)
    with monkeypatch.context() as patched:
        stopping(patched, stop)
        try:
            with pytest.raises(RunError, match=r"could not write .*checkpoint-6.*make room") as caught:
                train(config, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in complete_checkpoints(run.stage("stage_1"))] == ["checkpoint-3", "checkpoint-4"]
    assert not (run.stage("stage_1") / "checkpoint-6").exists()
    train(config, tmp_path)
    assert_same(tmp_path, whole)


def test_a_full_disk_at_the_best_model_is_one_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunConfig, Path]
) -> None:
    """No room for `best/` is the same RunError, and the run goes on from before it."""
    config, whole = finished
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def stop(method: str, entry: dict[str, Any]) -> None:
        if entry.get("stage") == "final" and entry["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))

    with monkeypatch.context() as patched:
        stopping(patched, stop)
        try:
            with pytest.raises(RunError, match=r"could not write .*best"):
                train(config, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "best").exists()
    train(config, tmp_path)
    assert_same(tmp_path, whole)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    """A run folder where none can be made is a RunError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not write"):
        train(tiny_config(), tmp_path / "file" / "run")


def test_a_run_leaves_a_plain_model_and_no_pickles(finished: tuple[RunConfig, Path]) -> None:
    """`model/` is safetensors and JSON of the original architecture, with the thought settings of the curriculum."""
    _, folder = finished
    suffixes = {path.suffix for path in (folder / "model").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".jinja", ".py", ".md"}
    settings = json.loads((folder / "model" / "config.json").read_text())
    assert settings["architectures"] == ["GPT2LMHeadModel"]
    assert settings["thoughts"]["num_thoughts"] == 1
    assert type(AutoModelForCausalLM.from_pretrained(folder / "model")) is GPT2LMHeadModel


def test_a_run_says_where_its_numbers_come_from(finished: tuple[RunConfig, Path]) -> None:
    """run.json holds versions, seed, processes and fingerprint; state.json the stages; metrics.jsonl every step."""
    config, folder = finished
    described = json.loads((folder / "run.json").read_text())
    assert described["seed"] == config.seed
    assert described["num_processes"] == 1
    assert described["versions"]["torch"] == torch.__version__
    assert len(described["data_fingerprint"]) == 64
    assert {"python", "platform", "commit"} <= described.keys()
    stages = RunFolder(folder).finished_stages()
    assert [(entry["name"], entry["epochs"]) for entry in stages] == [("stage_0", 1), ("stage_1", 2), ("final", 1)]
    assert [entry["accuracy"] for entry in stages] == [
        [accuracy for stage, _, accuracy in accuracies(folder) if stage == entry["name"]][-1] for entry in stages
    ]
    losses = [(entry["stage"], entry["step"]) for entry in RunFolder(folder).read_log() if "loss" in entry]
    assert losses == [("stage_0", step) for step in range(1, 5)] + [("stage_1", step) for step in range(1, 9)] + [
        ("final", step) for step in range(1, 5)
    ]
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "run.json", "state.json", "metrics.jsonl", "stages", "best", "model", "lock"),
    }


def test_the_result_is_the_best_model_of_the_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model/` reaches the best accuracy logged in the last stage, not the last; no earlier stage is ever kept."""
    easy = {"num_valid": 16, "generate": {"mode": "balanced", "rendering": "symbolic", "layers": 1, "width": 1}}

    def stop(method: str, entry: dict[str, Any]) -> None:
        assert "final" in (entry.get("stage"), entry.get("name")) or not run.best.exists()

    stopping(monkeypatch, stop)
    for seed in range(8):
        config = tiny_config(data=easy, train={"learning_rate": 2e-2}, curriculum={"final_epochs": 4}, seed=seed)
        run = RunFolder(tmp_path / str(seed))
        train(config, run.path)
        last = [accuracy for stage, _, accuracy in accuracies(run.path) if stage == "final"]
        if max(last) > last[-1]:
            break
    assert max(last) > last[-1], "no seed where the last model is not the best: the test proves nothing"
    model, tokenizer = load(run.path)
    records = evaluate(model, tokenizer, ProsQA(), prepare_data(config).valid, max_new_tokens=6)
    assert compute_metrics(records).accuracy == max(last)


@pytest.mark.parametrize(("advance_at", "epochs"), [(0.0, [1, 1, 4]), (1.0, [2, 2, 2])])
def test_a_stage_that_is_good_enough_hands_its_epochs_to_the_last(
    tmp_path: Path, advance_at: float, epochs: list[int]
) -> None:
    """`advance_at` ends a stage at that accuracy; the total of epochs stays; the last stage ends by epochs alone."""
    lengths = {"first_epochs": 2, "epochs_per_stage": 2, "final_epochs": 2, "advance_at": advance_at}
    config = tiny_config(curriculum=lengths, data={"num_train": 8})
    run = train(config, tmp_path)
    assert [entry["epochs"] for entry in run.finished_stages()] == epochs
    assert len(accuracies(tmp_path)) == 6


def test_phases_come_first_on_their_own_problems(tmp_path: Path) -> None:
    """A phase trains and is validated on its own kind of problems, earlier ones mixed in as it says, in whole batches.

    The epochs that it leaves by ending early go to the last stage.
    """
    phases = [
        Phase("small", {"stage_0": 1.0}, epochs=2, generate={"layers": 1}, advance_at=0.0),
        Phase("large", {"stage_0": 1.0, "final": 1.0}, epochs=2, generate={"layers": 3}, earlier=0.5),
    ]
    config = tiny_config(curriculum={"phases": phases})
    small, large, first, *_ = plan(config)
    data = prepare_data(config)

    def kinds(problems: Sequence[Problem]) -> set[int]:
        return {len(problem.steps) for problem in problems}

    assert [(part.stage.name, len(part.problems), kinds(part.problems)) for part in data.train(large, 0)] == [
        ("large", 16, {3}),
        ("small", 16, {1}),
    ]
    assert [kinds(data.valid_of(planned)) for planned in (small, large, first)] == [{1}, {3}, {2}]
    assert kinds(problems_of(data, first, 0)) == {2}
    run = train(config, tmp_path)
    done = [(entry["name"], entry["epochs"]) for entry in run.finished_stages()]
    assert done == [("small", 1), ("large", 2), ("stage_0", 1), ("stage_1", 1), ("final", 2)]


@pytest.mark.parametrize("method", ["coconut", "frontier"])
def test_a_phase_may_have_the_loss_of_another_method(tmp_path: Path, method: str) -> None:
    """A coconut run has the frontier's term in the phase that names it, and nowhere else."""
    run = train(tiny_config(curriculum={"phases": PHASES, "method": method}), tmp_path)
    with_term = {entry["stage"] for entry in run.read_log() if "loss_frontier" in entry}
    assert with_term == ({"mixed"} if method == "coconut" else {"mixed", "stage_1", "final"})


@pytest.mark.parametrize(
    ("prefix_run", "method", "reset"), [("coconut", "pause_as_thought", "never"), ("no_thought", "icot", "stage")]
)
def test_shared_stages_are_bit_for_bit_those_that_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix_run: str, method: str, reset: str
) -> None:
    """Stages taken over from another method's run end in the run that had trained them itself, log and all.

    Also if the other run has not got that far, and if a kill comes while they are copied.
    """

    def config_of(name: str) -> RunConfig:
        phases = [Phase("small", {"stage_0": 1.0}, generate={"layers": 1})]
        curriculum = {"method": name, "icot_tokens_per_stage": 2, "phases": phases}
        return tiny_config(curriculum=curriculum, train={"optimizer_reset": reset})

    train(config_of(prefix_run), tmp_path / "prefix_run")
    train(config_of(method), tmp_path / "alone")
    with monkeypatch.context() as patch:
        stages: list[str] = []

        def kill(name: str, entry: dict[str, Any]) -> None:
            stages.append(entry.get("name", entry.get("stage")))
            if stages.count("stage_0") == 2:
                raise Killed

        stopping(patch, kill)
        with pytest.raises(Killed):
            train(config_of(method), tmp_path / "shared", tmp_path / "prefix_run")
        assert "stage_1" not in stages
    trained: list[str] = []
    fit = StageTrainer.train

    def watch(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        trained.append(self.job.planned.stage.name)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "train", watch)
    train(config_of(method), tmp_path / "shared", tmp_path / "prefix_run")
    assert trained == ["stage_1", "final"]
    assert_same(tmp_path / "shared", tmp_path / "alone")


def test_other_work_is_not_shared(tmp_path: Path, finished: tuple[RunConfig, Path]) -> None:
    """A run with other settings gives nothing; its stages are trained again."""
    config, folder = finished
    other = replace(config, seed=1, curriculum=replace(config.curriculum, method="pause_as_thought"))
    train(other, tmp_path / "shared", folder)
    train(other, tmp_path / "alone")
    assert_same(tmp_path / "shared", tmp_path / "alone")
    with pytest.raises(RunError, match="is no run folder"):
        train(other, tmp_path / "third", tmp_path / "no run")


@pytest.mark.parametrize(("reset", "steps"), [("epoch", [4, 4]), ("stage", [4, 8]), ("never", [4, 12])])
def test_the_optimizer_forgets_when_it_should(tmp_path: Path, reset: str, steps: list[int]) -> None:
    """Moments count the steps since the last epoch's begin, the last stage's, or the run's."""
    config = tiny_config(curriculum={"epochs_per_stage": 2, "final_epochs": 0}, train={"optimizer_reset": reset})
    run = train(config, tmp_path)
    for entry, expected in zip(run.finished_stages(), steps, strict=True):
        state = torch.load(tmp_path / entry["checkpoint"] / "optimizer.pt", weights_only=True)["state"]
        assert {int(moments["step"]) for moments in state.values()} == {expected}


def test_stage_rates_are_those_that_are_logged(tmp_path: Path) -> None:
    """`stage_learning_rate` multiplies the rate of its stage alone, with an optimizer that was carried over, too."""
    rates = {"learning_rate": 1e-3, "stage_learning_rate": {"stage_1": 0.25}, "optimizer_reset": "never"}
    train(tiny_config(train=rates, data={"num_train": 16}), tmp_path)
    logged = {entry["stage"]: entry["learning_rate"] for entry in RunFolder(tmp_path).read_log() if "loss" in entry}
    assert logged == {"stage_0": 1e-3, "stage_1": 0.25e-3, "final": 1e-3}


def problems_of(data: Data, planned: PlannedStage, epoch: int) -> list[Problem]:
    """All problems of an epoch."""
    return [problem for part in data.train(planned, epoch) for problem in part.problems]


def test_fresh_problems_differ_by_epoch_and_others_do_not() -> None:
    """`fresh` gives every epoch and stage its own problems, the same in every call; without it all share one list."""
    fresh, fixed = tiny_config(), tiny_config(data={"fresh": False})
    stages = plan(fresh)
    lists = [problems_of(prepare_data(fresh), stage, epoch) for stage in stages for epoch in range(2)]
    assert len({tuple(problems) for problems in lists}) == len(lists)
    assert problems_of(prepare_data(fresh), stages[1], 1) == lists[3]
    data = prepare_data(fixed)
    assert problems_of(data, stages[0], 0) == problems_of(data, stages[1], 3)
    assert not set(data.valid) & set(problems_of(data, stages[0], 0))
    assert prepare_data(replace(fixed, seed=1)).valid != data.valid


def test_every_epoch_reads_its_own_problems_in_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch is trained on exactly its problems, all of them once; fixed problems are shuffled again."""
    rows: list[str] = []

    def collate_and_note(examples: Sequence[Example], **ids: int) -> dict[str, Any]:
        rows.extend(str(example.input_ids) for example in examples)
        return collate(examples, **ids)

    monkeypatch.setattr(trainer_module, "collate", collate_and_note)
    epochs = {"first_epochs": 2, "max_stage": 0, "final_epochs": 0}
    for fresh in (True, False):
        rows.clear()
        config = tiny_config(curriculum=epochs, data={"fresh": fresh, "num_train": 16})
        run = train(config, tmp_path / str(fresh))
        _, tokenizer = load(run.path)
        (planned,), data = plan(config), prepare_data(config)
        encoder = Encoder(config.curriculum, tokenizer)
        for epoch in range(2):
            pieces = [tokenize(problem, tokenizer) for problem in problems_of(data, planned, epoch)]
            expected = [str(encoder(piece, planned.stage, Random(0)).input_ids) for piece in pieces]
            read = rows[16 * epoch :][:16]
            assert sorted(read) == sorted(expected)
            assert read != expected
        assert rows[:16] != rows[16:32]


SHAPES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=96),
    "llama": LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=96
    ),
}


def save_model(folder: Path, texts: list[str], kind: str = "gpt2") -> None:
    """A tiny model of random weights with a byte-level BPE of the texts, as a user's own model folder."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    shape = deepcopy(SHAPES[kind])
    shape.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_own_problems_and_an_own_model_go_from_files_to_a_result(tmp_path: Path) -> None:
    """`data.train`, `data.valid` and `model.path`: a user's JSONL and Hugging Face folder train and resume."""
    problems = [Problem(f"{a} + {b}?", (f"<<{a}+{b}={a + b}>>",), str(a + b)) for a in range(4) for b in range(5)]
    write_problems(tmp_path / "train.jsonl", problems[:16])
    write_problems(tmp_path / "valid.jsonl", problems[16:])
    save_model(tmp_path / "gpt2", [problem.question + problem.steps[0] for problem in problems])
    files = {"train": str(tmp_path / "train.jsonl"), "valid": str(tmp_path / "valid.jsonl"), "fresh": False}
    config = tiny_config(data=files, path=str(tmp_path / "gpt2"), curriculum={"method": "pause_as_thought"})
    train(config, tmp_path / "run")
    model, tokenizer = load(tmp_path / "run")
    assert tokenizer.convert_tokens_to_ids(PAUSE) != tokenizer.unk_token_id
    assert set(SPECIAL_TOKENS) < set(tokenizer.get_vocab())
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.thoughts["filler"] == PAUSE
    steps = [(stage, step) for stage, step, _ in accuracies(tmp_path / "run")]
    assert steps == [("stage_0", 0), ("stage_0", 2), ("stage_1", 2), ("final", 2)], "once before the first step"
    write_problems(tmp_path / "train.jsonl", problems[1:17])
    with pytest.raises(RunError, match="was begun on other data"):
        train(config, tmp_path / "run")


def test_words_of_later_epochs_are_known_from_the_start(tmp_path: Path) -> None:
    """Small epochs of fresh stories: the names in the later ones are not in the first."""
    story = {"task": "gsm8k", "generate": {"steps": 2, "largest": 12}, "num_train": 8, "num_valid": 4}
    init = replace(TINY_INIT, tokens="numbers", settings={"n_positions": 160})
    config = tiny_config(data=story, init=init, curriculum={"epochs_per_stage": 4})
    run = train(config, tmp_path)
    known = set(load(run.model)[1].get_vocab())
    epochs = [problems_of(prepare_data(config), plan(config)[1], epoch) for epoch in range(4)]
    first, *later = (set(build_tokenizer(problems, "numbers").get_vocab()) for problems in epochs)
    assert first.union(*later) <= known
    assert not set().union(*later) <= first, "these stories tell nothing"


def test_a_run_goes_on_with_settings_that_it_knew_not(tmp_path: Path, finished: tuple[RunConfig, Path]) -> None:
    """A setting that came later has its default in older runs."""
    config, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    known = yaml.safe_load(file.read_text())
    del known["train"]["report_to"]
    del known["curriculum"]["icot_smoothing"]
    file.write_text(yaml.safe_dump(known))
    train(config, tmp_path / "run")
    with pytest.raises(RunError, match=r"icot_smoothing was 4\.0, is now 2\.0"):
        train(replace(config, curriculum=replace(config.curriculum, icot_smoothing=2.0)), tmp_path / "run")


def test_the_time_of_a_validation_is_none_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is that of the one before the first step."""

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(2)
        return evaluate_together(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "evaluate_together", slow)
    problems = prepare_data(tiny_config()).valid
    save_model(tmp_path / "gpt2", [problem.question + problem.steps[0] for problem in problems])
    run = train(tiny_config(path=str(tmp_path / "gpt2"), curriculum={"method": "no_cot"}), tmp_path / "run")
    seconds = [entry["step_seconds"] for entry in run.read_log() if "step_seconds" in entry]
    assert seconds
    assert max(seconds) < 2


def test_an_untrained_model_is_never_the_best(tmp_path: Path) -> None:
    """The validation before the first step is for the record, even where the first stage is the last."""
    problems = [Problem(f"{a} + {b}?", (f"<<{a}+{b}={a + b}>>",), str(a + b)) for a in range(4) for b in range(5)]
    write_problems(tmp_path / "all.jsonl", problems)
    save_model(tmp_path / "gpt2", [problem.question + problem.steps[0] for problem in problems])
    files = {"train": str(tmp_path / "all.jsonl"), "valid": str(tmp_path / "all.jsonl"), "fresh": False}
    config = tiny_config(data=files, path=str(tmp_path / "gpt2"), curriculum={"method": "cot"})
    train(config, tmp_path / "run")
    assert [step for _, step, _ in accuracies(tmp_path / "run")][:2] == [0, 2]
    run = RunFolder(tmp_path / "run")
    run.log({"stage": run.finished_stages()[-1]["name"], "step": 0, "eval_accuracy": 0.987})
    export(run.path, tmp_path / "out")
    assert "98.7" not in (tmp_path / "out" / "README.md").read_text()
    before = load_file(tmp_path / "gpt2" / "model.safetensors")
    assert not torch.equal(
        weights(tmp_path / "run")["transformer.h.0.attn.c_attn.weight"], before["transformer.h.0.attn.c_attn.weight"]
    )


@pytest.mark.parametrize(
    ("curriculum", "longest"), [({"thoughts_per_step": 60}, 60), ({"thoughts_per_step": 1, "max_stage": 60}, 60)]
)
def test_more_thoughts_than_the_context_holds_are_refused(
    tmp_path: Path, curriculum: dict[str, Any], longest: int
) -> None:
    """c times stages beyond the context is a DataError: how many problems, the longest, the limit, what to do."""
    config = tiny_config(curriculum={**curriculum, "stage_mix": 0.0}, data={"num_train": 8})
    with pytest.raises(DataError) as caught:
        train(config, tmp_path)
    found = re.search(
        r"8 of 8 problems are longer than the model's context of 64 tokens \(the longest takes (\d+), thoughts "
        r"included\)\. Remove them, or take a longer context",
        str(caught.value),
    )
    assert found is not None
    assert int(found[1]) > longest
    assert not (tmp_path / "stages").exists()


def test_validation_questions_that_leave_no_room_are_refused_before_training(tmp_path: Path) -> None:
    """Validation that could not be answered within the context is refused at once, not after the first epoch."""
    with pytest.raises(DataError, match=r"longest validation question takes \d+ tokens.*allows 60.*reads 64"):
        train(tiny_config(train={"eval_max_new_tokens": 60}), tmp_path)
    assert not (tmp_path / "stages").exists()


def test_settings_that_only_training_can_check_are_refused(tmp_path: Path) -> None:
    """A batch beyond an epoch, a schedule Hugging Face has not, an architecture it has not: ConfigError by name."""
    with pytest.raises(ConfigError, match="an epoch of 7 problems holds no batch of 8"):
        train(tiny_config(data={"num_train": 7}), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"train\.lr_scheduler.*wavy"):
        train(tiny_config(train={"lr_scheduler": "wavy"}), tmp_path / "b")
    with pytest.raises(ConfigError, match="gpt22"):
        train(tiny_config(init=replace(TINY_INIT, architecture="gpt22")), tmp_path / "c")
    with pytest.raises(ConfigError, match="unknown task 'chess'"):
        train(tiny_config(data={"task": "chess"}), tmp_path / "d")


def test_training_takes_the_tiniest_numbers_for_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers below 1e-38 slow a CPU down; in training they are zero, before and after it they are themselves."""
    tiny = torch.tensor([1e-30]) * torch.tensor([1e-10])
    seen = []
    step = StageTrainer.training_step

    def look(self: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(float(torch.tensor([1e-30]) * torch.tensor([1e-10])))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", look)
    train(tiny_config(), tmp_path / "run")
    assert set(seen) == {0.0}
    assert torch.equal(torch.tensor([1e-30]) * torch.tensor([1e-10]), tiny)
    assert tiny > 0


def chains(tmp_path: Path, num_words: int) -> RunConfig:
    """A run on problems whose chains have so many words; the recipe says nothing of the length of answers."""
    steps = [" ".join("ab"[index % 2] for index in range(num_words))] * 2
    lines = [json.dumps({"question": f"{number} ?", "steps": steps, "answer": f"{number}"}) for number in range(16)]
    (tmp_path / "chains.jsonl").write_text("\n".join(lines))
    init = replace(TINY_INIT, settings={"n_positions": 512})
    file = {"train": str(tmp_path / "chains.jsonl"), "valid": str(tmp_path / "chains.jsonl"), "fresh": False}
    return tiny_config(init=init, data=file, train={"eval_max_new_tokens": None}, curriculum={"stage_mix": 0.0})


def test_validation_waits_as_long_as_its_answers_take(tmp_path: Path) -> None:
    """Without a limit in the recipe, each stage has room for its own longest text and a quarter more."""
    config = chains(tmp_path, 150)
    explicit = replace(config, train=replace(config.train, eval_max_new_tokens=5))
    waits = []
    for chosen in (config, explicit):
        run = RunInProgress(chosen, RunFolder(tmp_path / "planned"))
        run.prepare()
        waits.append({planned.stage.name: run.longest_answer(planned) for planned in run.stages})
    assert waits[0] == {"stage_0": 303 + 303 // 4, "stage_1": 153 + 153 // 4, "final": 3 + 8}
    assert waits[1] == dict.fromkeys(waits[0], 5)
    with pytest.raises(DataError, match=r"question takes \d+ tokens, thoughts included, and its answer takes 523, but"):
        train(chains(tmp_path, 260), tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()


def test_cut_validation_answers_are_counted(tmp_path: Path) -> None:
    """`eval_cut` in metrics.jsonl and `cut` in state.json: all that did not end; an accuracy of 0 has its reason."""
    run = train(tiny_config(train={"eval_max_new_tokens": 1}), tmp_path)
    validations = [entry for entry in run.read_log() if "eval_accuracy" in entry]
    assert {entry["eval_cut"] for entry in validations} == {4}
    assert [entry["cut"] for entry in run.finished_stages()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"question": "q", "steps": ["a ### b"], "answer": "c"}, "holds the answer mark '###'"),
        ({"question": "q <|latent|>", "steps": ["a"], "answer": "c"}, r"\['<\|latent\|>'\], which the model's vocab"),
        ({"question": "q", "steps": ["a"], "answer": "<|endoftext|>"}, "can only read as special tokens"),
    ],
)
def test_data_that_could_only_be_graded_wrong_is_refused_before_training(
    tmp_path: Path, problem: dict[str, Any], message: str
) -> None:
    """Text that the layout or the vocabulary cannot carry is named; no stage begins."""
    others = [{"question": f"q {number}", "steps": ["a"], "answer": "c"} for number in range(20)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*others, problem])))
    config = tiny_config(data={"train": str(tmp_path / "mine.jsonl"), "fresh": False})
    with pytest.raises(DataError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
