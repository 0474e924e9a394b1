"""What a stage of training does beside its steps: when it validates, saves and stops, and what it shows and logs.

In: the events of a `transformers.Trainer`. Out: its control, `metrics.jsonl`, a progress bar.
Read next: `training/trainer.py`, which they serve.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from signal import SIGINT
from typing import Any

import torch
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from cocot.system.interrupts import listening
from cocot.system.launch import world_size
from cocot.system.processes import largest
from cocot.training.optimizers import reset_moments
from cocot.training.run_folder import RunFolder
from cocot.training.stage_job import StageJob

ACCURACY, CUT = "eval_accuracy", "eval_cut"
_SECONDS_BETWEEN_AGREEMENTS = 1.0
_TICK = 1e-3  # seconds; some clocks stand still for longer than a step


class StageCallback(TrainerCallback):
    """When a stage validates, saves and forgets: at the end of every whole epoch, by steps, and on a signal.

    Ctrl-C, SIGTERM and a closed terminal let the optimizer step finish, then save and stop; a second one stops at once.
    """

    def __init__(self, job: StageJob, device: torch.device, optimizer: Callable[[], Optimizer]) -> None:
        """Serve one stage.

        Args:
            job: The stage.
            device: Of this process.
            optimizer: Gives the optimizer, which is made after this object.
        """
        self._job, self._device, self._optimizer = job, device, optimizer
        self.is_interrupted: bool = False  # any of the processes, as all know
        self.signal: int = SIGINT  # the newest one that this process had, if there was any
        self._has_signal: bool = False  # this process
        self._next_agreement = 0  # optimizer step
        self._last_agreement = time.monotonic(), 0  # when, and after which step

    def agree(self, step: int) -> bool:
        """Whether any of the processes was interrupted: they must stop after the same step, so all ask after the same.

        Asking makes a GPU finish its work. So they do not ask after every step: next after as many as take
        `_SECONDS_BETWEEN_AGREEMENTS` in the slowest process.
        """
        (since, last), now = self._last_agreement, time.monotonic()
        has_signal, seconds = largest(self._device, self._has_signal, (now - since) / max(1, step - last))
        self.is_interrupted, self._last_agreement = bool(has_signal), (now, step)
        next_one = 1 if world_size() == 1 else max(1, int(_SECONDS_BETWEEN_AGREEMENTS / max(seconds, _TICK)))
        self._next_agreement = step + next_one
        return self.is_interrupted

    def _at_epoch_end(self, state: TrainerState) -> bool:
        return bool(state.global_step % self._job.steps_per_epoch == 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Turn the data to this epoch."""
        self._job.data.set_epoch(state.global_step // self._job.steps_per_epoch)
        if self._job.config.optimizer_reset == "epoch" and self._at_epoch_end(state):
            reset_moments(self._optimizer())

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save by steps, but leave the last step of an epoch to its end: what is saved there knows the validation."""
        step, is_epoch_end = state.global_step, self._at_epoch_end(state)
        is_due = step % self._job.config.save_steps == 0
        if is_due or is_epoch_end or step >= self._next_agreement:
            self.agree(step)
        control.should_save = (is_due or self.is_interrupted) and not is_epoch_end
        control.should_training_stop |= self.is_interrupted

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate and save, unless the epoch was cut short."""
        if self._at_epoch_end(state):
            control.should_evaluate = control.should_save = control.should_log = True

    def listening(self) -> AbstractContextManager[None]:
        """Catch the signals while the stage runs."""

        def note(number: int) -> None:
            self._has_signal, self.signal = True, number

        return listening(note)


class MetricsCallback(TrainerCallback):
    """Every log entry to metrics.jsonl, and a progress bar with stage, loss, accuracy and time left."""

    def __init__(self, run: RunFolder, stage: str) -> None:
        self._run, self._stage = run, stage
        self._shown: dict[str, str] = {}
        self._bar: Any = None
        self._since, self._step = 0.0, 0  # when, and after which step, the time of a step is counted from

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar where the stage stands."""
        self._restart(state)
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._stage, unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the entry down and show its loss and accuracy."""
        logs = kwargs["logs"]
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        own = dict[str, Any]()
        if "loss" in logs:
            own["step_seconds"] = (time.perf_counter() - self._since) / (state.global_step - self._step)
            self._restart(state)
        self._run.log({"stage": self._stage, "step": state.global_step, **logs, **own})
        if "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
        if ACCURACY in logs:
            self._shown["accuracy"] = f"{logs[ACCURACY]:.1%}"
            self._shown.pop("answers cut", None)
            if logs[CUT]:
                self._shown["answers cut"] = f"{logs[CUT]:.0f}"
        if self._bar is not None:
            self._bar.set_postfix(self._shown)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The time of a validation is none of the steps'."""
        self._restart(state)

    on_save = on_evaluate  # nor is that of a checkpoint

    def _restart(self, state: TrainerState) -> None:
        self._since, self._step = time.perf_counter(), state.global_step

    def close(self) -> None:
        """Close the bar, however the stage ended: what is printed next gets a line of its own."""
        if self._bar is not None:
            self._bar.close()
