"""Tiny runs for the tests of training: a model of 16 numbers a token, 32 problems an epoch, batches of 8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocot.errors import Interrupted
from cocot.methods import CurriculumConfig
from cocot.modeling.config import InitConfig, ModelConfig
from cocot.modeling.from_scratch import build_model
from cocot.modeling.latent_model import give_thoughts
from cocot.training.config import DataConfig, RunConfig, TrainConfig
from cocot.training.trainer import StageTrainer

TINY_INIT = InitConfig("gpt2", layers=2, width=16, heads=2, settings={"n_positions": 64})
"""GPT-2, since it has dropout: a resumed run must find the random numbers of the uninterrupted one."""

NO_DROPOUT_INIT = replace(TINY_INIT, settings={"n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0})


def twins(architecture: str, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    """A small model that thinks and a bare one of the same weights, for an oracle; without dropout."""
    init = replace(NO_DROPOUT_INIT, architecture=architecture)
    if architecture != "gpt2":
        init = replace(init, settings={})
    model, plain = give_thoughts(build_model(init, tokenizer), tokenizer), build_model(init, tokenizer)
    plain.load_state_dict(model.state_dict())
    return model, plain


Finish = Callable[[Callable[[], subprocess.Popen[str]]], tuple[str, str]]
"""The fixture `finish`: starts a process, and gives what it printed."""


def tiny_config(
    *,
    curriculum: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    init: InitConfig | None = TINY_INIT,
    path: str | None = None,
    seed: int = 0,
) -> RunConfig:
    """A run of three stages of one epoch each (4 optimizer steps an epoch), with what is given changed."""
    return RunConfig(
        model=ModelConfig(path=path, init=None if path else init),
        data=replace(
            DataConfig(
                num_train=32,
                num_valid=4,
                fresh=True,
                generate={"mode": "balanced", "rendering": "symbolic", "layers": 2, "width": 1},
            ),
            **(data or {}),
        ),
        curriculum=replace(
            CurriculumConfig(max_stage=1, first_epochs=1, epochs_per_stage=1, final_epochs=1, stage_mix=0.5),
            **(curriculum or {}),
        ),
        train=replace(
            TrainConfig(
                learning_rate=3e-3,
                batch_size=8,
                device_batch_size=8,
                save_steps=3,
                logging_steps=1,
                eval_max_new_tokens=6,
                eval_batch_size=8,
                device="cpu",
            ),
            **(train or {}),
        ),
        seed=seed,
    )


def write_recipe(path: Path, config: RunConfig) -> Path:
    """The recipe file of a config."""
    from dataclasses import asdict

    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))
    return path


@contextmanager
def interrupted_in(stage: str, step: int) -> Iterator[None]:
    """Trainings meanwhile are asked to stop in a stage behind a step, as by a signal, and do."""
    before = StageTrainer.training_step

    def stop(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.job.planned.stage.name == stage and self.state.global_step == step:
            self.stage_callback._has_signal = True
        return before(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StageTrainer, "training_step", stop)
        with pytest.raises(Interrupted):
            yield


def weights(run: Path) -> dict[str, Tensor]:
    """The weights of a finished run."""
    return load_file(run / "model" / "model.safetensors")


def accuracies(run: Path) -> list[tuple[str, int, float]]:
    """Every validation of a run: stage, optimizer step, accuracy."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(item["stage"], item["step"], item["eval_accuracy"]) for item in entries if "eval_accuracy" in item]


def environment() -> dict[str, str]:
    """The environment of a child process: one thread, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def cocot(*arguments: object, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cocot", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(),
        timeout=timeout,
    )
