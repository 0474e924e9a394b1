"""Several trainings side by side: each a process of its own, `cocot train`, watched through its run folder.

In: the command of each. Out: finished run folders. Whatever ends this process, its trainings save their state and stop;
the same call resumes.
Read next: `experiments/compare.py`, which says what to train and makes a table of it.
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

import torch
from tqdm.auto import tqdm

from cocot.errors import ConfigError, Interrupted, RunError
from cocot.system.hardware import allowed_cores, visible_gpus, with_gpu
from cocot.system.interrupts import listening
from cocot.training.config import RunConfig
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import num_shared_stages, num_steps

_SECONDS_BETWEEN_LOOKS = 0.5


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
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

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

    def start(self, environment: Mapping[str, str], parent_pipe: int) -> None:
        """Start the process in an environment; it stops when `parent_pipe`, its standard input, ends."""
        command = [sys.executable, "-m", "cocot", "train", self.recipe, "--out", str(self.run.path), "--until-eof"]
        if self.prefix_run:
            command += ["--shares-with", str(self.prefix_run.run.path)]
        self._began = time.monotonic()
        self.run.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.run.log_file.open("ab") as log:
            # a session of its own: Ctrl-C reaches it once, through us
            self._process = subprocess.Popen(
                [*command, *self.overrides],
                stdout=log,
                stderr=log,
                stdin=parent_pipe,
                start_new_session=True,
                env=environment,
            )

    def is_done(self) -> bool:
        """Whether the process ended well; raises if it failed."""
        code = self._process.poll() if self._process else None
        if code:
            lines = self.run.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [
                "no output"
            ]
            log = self.run.log_file
            raise RunError(f"training {self.name} failed with exit code {code}: {lines[-1]} (log: {log})")
        self.seconds = time.monotonic() - self._began
        return code == 0

    def interrupt(self) -> None:
        """Let the process save its state and stop; returns once it has."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)  # the one that no shell lets its children ignore
            self._process.wait()

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


def train_all(trainings: Sequence[Training], jobs: int) -> None:
    """Run every training that is not done, `jobs` at a time, each with its share of the cores and a GPU.

    Raises:
        ConfigError: `jobs` is below 1.
        RunError: a training failed; its last line is in the message. The others saved their state. Or a run folder
            belongs to a run with other settings.
        Interrupted: a signal came; the trainings saved their state.
    """
    if jobs < 1:
        raise ConfigError(f"{jobs} trainings at a time are none; --jobs must be at least 1.")
    waiting, running = [item for item in trainings if not item.is_finished()], dict[int, Training]()  # by slot
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=sum(num_steps(item.config) for item in trainings), unit="step"))
        parent_pipe = stack.enter_context(_parent_pipe())
        signals = list[int]()
        stack.enter_context(listening(signals.append))
        stack.enter_context(_stopping(running))
        while waiting or running:
            if signals:
                raise Interrupted("stopped; every training saved its state.", signals[0])
            free = [slot for slot in range(min(jobs, len(trainings))) if slot not in running]
            for slot, training in zip(free, [item for item in waiting if item.is_ready], strict=False):
                training.start(_environment(training, jobs, slot), parent_pipe)
                waiting.remove(training)
                running[slot] = training
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for slot in [slot for slot, training in running.items() if training.is_done()]:
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
def _parent_pipe() -> Iterator[int]:
    """The end of a pipe that nobody writes to: for who reads it, it ends when this process does, even by a kill."""
    end_to_read, end_to_keep = os.pipe()
    try:
        yield end_to_read
    finally:
        os.close(end_to_read)
        os.close(end_to_keep)


@contextmanager
def _stopping(running: Mapping[int, Training]) -> Iterator[None]:
    """Whatever ends this block, an interrupt or an error: let the trainings that still run save and stop."""
    try:
        yield
    finally:
        for training in running.values():
            training.interrupt()
