"""How many floating-point operations a training takes: counted and not timed, so that a busy machine says the same.

In: a recipe, or anything that PyTorch runs. Out: operations of its matrix products.
Read next: `experiments/equal_compute.py`, which trains methods on as many problems as cost the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cocot.system.files import unfinished
from cocot.training.config import RunConfig
from cocot.training.run import RunInProgress
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import PlannedStage, num_batches
from cocot.training.trainer import StageTrainer

_BATCHES = 8  # of each stage
_COUNTED: dict[str, float] = {}  # by recipe: a plan is made for the estimate of a study and again for its trainings

# PyTorch has formulas for the attention kernels of GPUs, and none for those of a CPU, which do the same.
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATTENTION: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
    _ATTENTION_BACKWARD: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),  # type: ignore[no-untyped-call]
}


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products of one run: those on padding and on masked pairs count, too."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        run()
    return int(counter.get_total_flops())


def training_operations(config: RunConfig) -> float:
    """Operations of all steps of a training, without those of its optimizer.

    A few batches of each stage are counted, forward and backward, with seed 0, and stand for the others.

    Args:
        config: A recipe that generates its problems.

    Raises:
        ConfigError, DataError, ModelError: as the training itself would.
    """
    config = replace(config, seed=0)
    key = str(config)
    if key not in _COUNTED:
        _COUNTED[key] = _counted(config)
    return _COUNTED[key]


def _counted(config: RunConfig) -> float:
    few = replace(config, data=replace(config.data, num_train=_BATCHES * config.train.batch_size, num_valid=1))
    with unfinished(Path(gettempdir())) as folder:
        training = RunInProgress(few, RunFolder(folder))
        training.prepare()
        training.open_folder()
        with closing(training.run):
            epochs = [_of_an_epoch(training, planned) * planned.stage.num_epochs for planned in training.stages]
    return sum(epochs) * num_batches(config, config.data.num_train) / _BATCHES


def _of_an_epoch(training: RunInProgress, planned: PlannedStage) -> int:
    job = training.job(0, planned, is_new=False)
    trainer = StageTrainer(training.model, training.tokenizer, job)

    def step(batch: dict[str, Any]) -> None:
        torch.autograd.backward(trainer.compute_loss(trainer.model, batch))

    with closing(trainer.metrics_callback):
        counted = sum(operations(partial(step, batch)) for batch in trainer.get_train_dataloader())
    training.model.zero_grad()
    return counted
