"""Several trainings side by side: each a process of its own, `cocot train`, watched through its run folder.

In: the command of each, and where they run. Out: finished run folders. On this machine, whatever ends this process lets
its trainings save their state and stop; on a cluster they go on. The same call resumes, or finds them again.
Read next: `experiments/compare.py`, which says what to train and makes a table of it; `experiments/clusters.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol
from weakref import finalize

import torch
from tqdm.auto import tqdm

from cocot.errors import ConfigError, Interrupted, RunError
from cocot.system.hardware import allowed_cores, visible_gpus, with_gpu
from cocot.system.interrupts import listening
from cocot.training.config import RunConfig
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import num_shared_stages, num_steps

_SECONDS_BETWEEN_LOOKS = 0.5


class Job(Protocol):
    """A training that was started somewhere."""

    def exit_code(self) -> int | None:
        """That of its process; None as long as it runs."""

    def is_lost(self) -> bool:
        """Whether it ended with the machine that it ran on, and not by itself."""

    def interrupt(self) -> None:
        """Let it save its state and stop, where it does not outlive this process."""


class Launcher(Protocol):
    """Where trainings run."""

    def num_slots(self, num_trainings: int) -> int:
        """How many may run at a time."""

    def find(self, training: Training) -> Job | None:
        """The job that trains it already, started by an earlier call; None if there is none."""

    def start(self, training: Training, slot: int) -> Job:
        """Start it, in the slot of that number."""


class ThisMachine:
    """Processes beside each other, each with its share of the cores and a GPU; they stop with this process."""

    def __init__(self, jobs: int) -> None:
        """Begin.

        Args:
            jobs: Trainings at a time.

        Raises:
            ConfigError: `jobs` is below 1.
        """
        if jobs < 1:
            raise ConfigError(f"{jobs} trainings at a time are none; --jobs must be at least 1.")
        self._jobs = jobs
        # nobody writes to this pipe: for who reads it, it ends when this process does, even by a kill
        self._end_to_read, self._end_to_keep = os.pipe()
        finalize(self, _close, self._end_to_read, self._end_to_keep)

    def num_slots(self, num_trainings: int) -> int:
        """As many as were asked for."""
        return min(self._jobs, num_trainings)

    def find(self, training: Training) -> None:
        """Nothing outlives its parent here."""

    def start(self, training: Training, slot: int) -> _Process:
        """A process that stops when its standard input ends."""
        with training.run.log_file.open("ab") as log:
            # a session of its own: Ctrl-C reaches it once, through us
            process = subprocess.Popen(
                [*training.command, "--until-eof"],
                stdout=log,
                stderr=log,
                stdin=self._end_to_read,
                start_new_session=True,
                env=_environment(training, self._jobs, slot),
            )
        return _Process(process)


def _close(*ends: int) -> None:
    for end in ends:
        os.close(end)


@dataclass
class _Process:
    """A job on this machine."""

    process: subprocess.Popen[bytes]

    def exit_code(self) -> int | None:
        return self.process.poll()

    def is_lost(self) -> bool:
        return False

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)  # the one that no shell lets its children ignore
            self.process.wait()


@dataclass
class Training:
    """One `cocot train` process.

    Attributes:
        name: For people.
        recipe: Name of a shipped recipe, or a YAML file.
        overrides: Dotted overrides of it.
        config: The resolved recipe.
        run: Its run folder.
        prefix_run: Another training, whose first stages are the same work and are copied; set by `share_stages`.
        seconds: How long the process took, once it is done.
    """

    name: str
    recipe: str
    overrides: list[str]
    config: RunConfig
    run: RunFolder
    prefix_run: Training | None = None
    seconds: float = 0.0
    _began: float = field(default=0.0, init=False)
    _job: Job | None = field(default=None, init=False)

    @property
    def is_ready(self) -> bool:
        """Whether there is nothing to wait for, such as a training that a killed call left behind."""
        return self.run.is_free() and (
            self.prefix_run is None or len(self.prefix_run.run.finished_stages()) >= self.num_shared
        )

    @property
    def num_shared(self) -> int:
        """Stages that the prefix_run does."""
        return num_shared_stages(self.prefix_run.config, self.config) if self.prefix_run else 0

    def is_finished(self) -> bool:
        """Whether an earlier call did all of it; raises if that was a run with other settings."""
        if not self.run.model.exists():
            return False
        self.run.open(self.config)
        self.run.close()
        return True

    @property
    def command(self) -> list[str]:
        """What trains it, in a process of its own."""
        command = [sys.executable, "-m", "cocot", "train", self.recipe, "--out", str(self.run.path)]
        if self.prefix_run:
            command += ["--shares-with", str(self.prefix_run.run.path)]
        return [*command, *self.overrides]

    def begin(self, job: Job) -> None:
        """Watch the job that trains it."""
        self._began, self._job = time.monotonic(), job

    def is_lost(self) -> bool:
        """Whether the machine that it ran on is gone, or it found none: it has to be started once more."""
        return self._job is not None and self._job.is_lost()

    def is_done(self) -> bool:
        """Whether the process ended well; raises if it failed."""
        code = self._job.exit_code() if self._job else None
        if code:
            lines = self.run.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [
                "no output"
            ]
            log = self.run.log_file
            raise RunError(f"training {self.name} failed with exit code {code}: {lines[-1]} (log: {log})")
        self.seconds = time.monotonic() - self._began
        if code == 0:
            self.is_finished()  # raises where a job that was found had other settings
        return code == 0

    def interrupt(self) -> None:
        """Let a process of this machine save its state and stop; returns once it has."""
        if self._job:
            self._job.interrupt()

    def progress(self) -> tuple[int, str]:
        """Optimizer steps so far, and a few words on the newest log entry."""
        entries = self.run.read_log()
        steps = {entry["stage"]: entry["step"] for entry in entries}
        accuracy = next((entry["eval_accuracy"] for entry in reversed(entries) if "eval_accuracy" in entry), None)
        stage = next(reversed(steps), "begins")
        return sum(steps.values()), stage if accuracy is None else f"{stage} {accuracy:.1%}"

    def step_seconds(self) -> float:
        """Wall clock of the optimizer steps in the log, those of stages copied from another run included."""
        total, last = 0.0, dict[str, int]()
        for entry in self.run.read_log():
            if "step_seconds" in entry:
                total += entry["step_seconds"] * (entry["step"] - last.get(entry["stage"], 0))
                last[entry["stage"]] = entry["step"]
        return total


def share_stages(trainings: Sequence[Training]) -> None:
    """Let each training copy what an earlier one does as well."""
    for index, training in enumerate(trainings):
        best = max(trainings[:index], key=lambda other: num_shared_stages(other.config, training.config), default=None)
        if best and num_shared_stages(best.config, training.config):
            training.prefix_run = best


def train_all(trainings: Sequence[Training], launcher: Launcher) -> None:
    """Run every training that is not done, where `launcher` says.

    Raises:
        RunError: a training failed; its last line is in the message. On this machine the others saved their state. Or a
            run folder belongs to a run with other settings.
        Interrupted: a signal came; on this machine the trainings saved their state.
    """
    waiting, running = [item for item in trainings if not item.is_finished()], dict[int, Training]()  # by slot
    with ExitStack() as stack:
        num_before = sum(training.progress()[0] for training in trainings)
        total = sum(num_steps(item.config) for item in trainings)
        bar = stack.enter_context(tqdm(total=total, initial=num_before, unit="step"))
        signals, further = list[int](), count(len(trainings))
        stack.enter_context(listening(signals.append))
        stack.enter_context(_stopping(running))
        while waiting or running:
            if signals:
                raise Interrupted("stopped; the same call goes on.", signals[0])
            free = [slot for slot in range(launcher.num_slots(len(trainings))) if slot not in running]
            for training in list(waiting):
                job = launcher.find(training)
                if job is None and training.is_ready and free:
                    training.run.log_file.parent.mkdir(parents=True, exist_ok=True)
                    job = launcher.start(training, free[0])
                if job is not None:
                    training.begin(job)
                    waiting.remove(training)
                    # one that was found may be one more than may run at a time
                    running[free.pop(0) if free else next(further)] = training
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for slot, training in list(running.items()):
                if training.is_lost():
                    waiting.append(training)
                elif not training.is_done():
                    continue
                del running[slot]
            progress = {training.name: training.progress() for training in trainings}
            num_done = len(trainings) - len(waiting) - len(running)
            bar.set_description_str(f"{num_done} of {len(trainings)} runs done", refresh=False)
            doing = ", ".join(f"{item.name}: {progress[item.name][1]}" for item in running.values())
            bar.set_postfix_str(doing, refresh=False)
            bar.update(sum(step for step, _ in progress.values()) - bar.n)
            bar.refresh()


def _environment(training: Training, jobs: int, slot: int) -> dict[str, str]:
    """Of a training's process: the GPU of its slot unless it stays on the CPU, and its share of the cores."""
    uses_gpu = training.config.train.device != "cpu"
    gpus = visible_gpus(torch.cuda.device_count(), os.environ) if uses_gpu else []
    num_threads = max(1, allowed_cores() // jobs)
    # A user who limits the threads knows of other work on the machine: threads that wait for each other's core crawl.
    return {"OMP_NUM_THREADS": str(num_threads), **with_gpu(os.environ, gpus, slot)}


@contextmanager
def _stopping(running: Mapping[int, Training]) -> Iterator[None]:
    """Whatever ends this block, an interrupt or an error: let the trainings that still run save and stop."""
    try:
        yield
    finally:
        for training in running.values():
            training.interrupt()
