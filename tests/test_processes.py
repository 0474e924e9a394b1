"""Tests of what the processes of a launch do together: files are checked once, weights read once, agreement is rare."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs_support import NO_DROPOUT_INIT, Finish, environment, tiny_config, write_recipe
from test_run import FSDP, SHAPES, save_model
from transformers import LlamaConfig

from cocot.system.manifest import write_manifest
from cocot.system.processes import decided, once
from cocot.training.problems import prepare_data


def launch(program: str, folder: Path, *arguments: object, **settings: str) -> subprocess.Popen[str]:
    """Start a program in two processes, as torchrun starts them."""
    file = folder / "program.py"
    file.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(file)]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"PYTHONPATH": here} | settings,
    )


PREPARE = """
import hashlib, json, os, resource, sys
from pathlib import Path
from cocot.modeling.loading import processes
from cocot.training.problems import prepare_data
from cocot.training.starting_model import prepare_model
from runs_support import tiny_config

def resident():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024

digests = []
real = hashlib.file_digest
hashlib.file_digest = lambda file, name: (digests.append(file.name), real(file, name))[1]
processes(True)
config = tiny_config(path=sys.argv[1])
problems = prepare_data(config).valid
before = resident()
model, tokenizer = prepare_model(config, problems)
grown = resident() - before
weights = sum(part.numel() * part.element_size() for part in model.parameters())
again = prepare_model(config, problems)
found = {
    "rank": int(os.environ["RANK"]),
    "digests": len(digests),
    "grown": grown / weights,
    "tokens": len(tokenizer),
    "thoughts": model.config.thoughts,
    "suppressed": model.generation_config.suppress_tokens,
    "class": repr(type(model)),
    "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    "addresses": len({part.data_ptr() for part in model.parameters()}) == len(list(model.parameters())),
    "buffers": {name: float(part.double().sum()) for name, part in model.named_buffers()},
}
Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_one_process_checks_files_and_under_fsdp_alone_reads_them(tmp_path: Path, finish: Finish, engine: str) -> None:
    """Each file is hashed once, however often it is loaded; the second process's memory does not grow by the weights.

    Measured, in shares of the weights: 1.21 in a process that reads, 0.08 in one that receives; under DDP, where each
    has the whole model, 1.21 in both.
    """
    SHAPES["wide"] = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=96,
        tie_word_embeddings=True,
    )
    save_model(tmp_path / "model", [problem.question for problem in prepare_data(tiny_config()).valid], "wide")
    write_manifest(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        os.utime(file)
    num_files = len(list((tmp_path / "model").iterdir())) - 1
    finish(lambda: launch(PREPARE, tmp_path, tmp_path / "model", tmp_path, **(FSDP if engine == "fsdp" else {})))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    print({key: (first[key], second[key]) for key in ("digests", "grown")})
    assert first["digests"] == num_files
    assert second["digests"] == 0
    assert first["grown"] > 0.8
    assert (second["grown"] < 0.2) == (engine == "fsdp")
    same = ("tokens", "thoughts", "suppressed", "class", "tied", "addresses", "buffers")
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    assert first["tied"]
    assert first["addresses"]
    assert first["buffers"]


TRAIN = """
import json, os, signal, sys
from pathlib import Path
from cocot.cli import main
from cocot.training import callbacks
from cocot.training.trainer import StageTrainer

SIGNAL_AT, counts = 60, {"steps": 0, "asked": 0}
step, largest = StageTrainer.training_step, callbacks.largest

def counted_step(trainer, *args, **kwargs):
    counts["steps"] += 1
    if counts["steps"] == SIGNAL_AT and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGINT)
    return step(trainer, *args, **kwargs)

def counted_largest(device, *values):
    counts["asked"] += 1
    return largest(device, *values)

StageTrainer.training_step, callbacks.largest = counted_step, counted_largest
assert main(sys.argv[1:]) == 130
Path(sys.argv[2]).with_name(f"{os.environ['RANK']}.json").write_text(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_processes_seldom_agree_but_stop_after_the_same_step(tmp_path: Path, finish: Finish, engine: str) -> None:
    """An interrupt of one is known to all within a second or two, without their asking each other after every step."""
    config = tiny_config(
        init=NO_DROPOUT_INIT,
        curriculum={"first_epochs": 1, "max_stage": 0, "final_epochs": 0},
        data={"num_train": 8 * 4000},
        train={"save_steps": 10_000, "logging_steps": 1000},
    )
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    program = TRAIN if engine == "ddp" else WITH_FSDP + TRAIN
    settings = FSDP if engine == "fsdp" else {}
    _, err = finish(lambda: launch(program, tmp_path, "train", recipe, "--out", tmp_path / "run", **settings))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    print(first, second)
    assert first == second, "they stop after the same step, having asked as often"
    steps, asked = first["steps"], first["asked"]
    assert 60 <= steps < 4000
    assert asked < steps / 4
    stopped = set(re.findall(r"stopped in stage_0 after step (\d+); everything is saved", err))
    assert stopped == {str(steps)}
    assert [path.name for path in (tmp_path / "run" / "stages" / "stage_0").iterdir()] == [f"checkpoint-{steps}"]


WITH_FSDP = """
from accelerate.state import AcceleratorState
import fsdp_on_cpu
fsdp_on_cpu.begin = AcceleratorState.__init__
AcceleratorState.__init__ = fsdp_on_cpu._with_fsdp
"""


def test_a_process_of_its_own_does_the_plain_thing() -> None:
    """No launcher, no torch.distributed: what is asked is done, once."""
    assert not torch.distributed.is_initialized()
    done: list[int] = []
    once(lambda: done.append(1))
    assert done == [1]
    assert decided(lambda: Path("x")) == Path("x")
