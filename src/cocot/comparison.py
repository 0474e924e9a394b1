"""Several methods by one recipe, at equal numbers of training problems, on the same fresh problems.

In: a recipe, methods, a folder. Out: a run folder a method, `answers.jsonl` in each, and the rows of `table.json`.
Every training is a process of its own, `cocot train`: the product's own path. The same call goes on where it stopped.
Read next: `report.py` (rows -> a table).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm.auto import tqdm

from cocot import tasks
from cocot.config import RunConfig
from cocot.errors import Interrupted, RunError
from cocot.evaluation import evaluate, summarise, write_records
from cocot.generation import answer
from cocot.model import load
from cocot.plan import num_shared_stages, num_steps
from cocot.recipe_files import read_recipe
from cocot.report import write_table
from cocot.runs import RunFolder
from cocot.tasks.files import read_problems
from cocot.tasks.problem import Problem

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class _Training:
    """One `cocot train` process, watched through its run folder.

    Its first stages are copied from those of `donor`, where they are the same work.
    """

    method: str
    config: RunConfig
    command: list[str]
    run: RunFolder
    donor: _Training | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.run.path.with_name(f"{self.run.path.name}.log")

    @property
    def is_ready(self) -> bool:
        """Whether there is nothing to wait for, such as a training that a killed comparison left behind."""
        if self.donor is None:
            return self.run.is_free()
        num_shared = num_shared_stages(self.donor.config, self.config)
        return len(self.donor.run.finished_stages()) >= num_shared and self.run.is_free()

    def start(self, num_threads: int, lifeline: int) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # a session of its own: Ctrl-C reaches it once, through us
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=lifeline,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
            )

    def is_done(self) -> bool:
        """Whether the process ended well; raises if it failed."""
        code = self.process.poll() if self.process else None
        if code:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise RunError(f"training {self.method} failed with exit code {code}: {lines[-1]} (log: {self.log})")
        return code == 0

    def progress(self) -> tuple[int, str]:
        """Optimizer steps so far, and a few words on the newest log entry."""
        entries = self.run.read_log()
        steps = {entry["stage"]: entry["step"] for entry in entries}
        accuracy = next((entry["eval_accuracy"] for entry in reversed(entries) if "eval_accuracy" in entry), None)
        stage = next(reversed(steps), "")
        return sum(steps.values()), stage if accuracy is None else f"{stage}, accuracy {accuracy:.1%}"


def compare(
    recipe: str,
    overrides: Sequence[str],
    methods: Sequence[str],
    num_problems: int,
    out: Path,
    jobs: int = 1,
    test_file: Path | None = None,
) -> list[dict[str, Any]]:
    """Train every method by one recipe, evaluate all on the same problems, write `table.json` and `table.md`.

    Args:
        recipe: Name of a shipped recipe, or a YAML file.
        overrides: Dotted overrides of it.
        methods: Rows of the method table.
        num_problems: Fresh problems to evaluate on.
        out: Folder of the comparison; a run folder a method lies inside.
        jobs: Trainings at a time.
        test_file: Problems to evaluate on in place of fresh ones.

    Returns:
        One row a method, in the order of `methods`.

    Raises:
        RunError: a training failed; its last line is in the message.
        Interrupted: a signal came; the trainings saved their state.
    """
    trainings = list[_Training]()
    for method in methods:
        own = [*overrides, "--curriculum.method", method]
        run, config = RunFolder(out / method), read_recipe(recipe, own)
        command = [sys.executable, "-m", "cocot", "train", recipe, "--out", str(run.path), "--until-eof", *own]
        donor = max(trainings, key=lambda other: num_shared_stages(other.config, config), default=None)
        if donor and num_shared_stages(donor.config, config):
            command += ["--shares-with", str(donor.run.path)]
        else:
            donor = None
        trainings.append(_Training(method, config, command, run, donor))
    problems = read_problems(test_file) if test_file else fresh_problems(trainings[0].config, num_problems)
    _train_all(trainings, jobs)
    rows = [_row(training, problems) for training in trainings]
    write_table(rows, out)
    return rows


def fresh_problems(config: RunConfig, count: int) -> list[Problem]:
    """Fresh problems like those of validation; no training or validation draws a negative seed."""
    settings = {**config.data.generate, **config.data.valid_generate}
    return tasks.get(config.data.task).generate(count, seed=-1 - config.seed, **settings)


def _train_all(trainings: Sequence[_Training], jobs: int) -> None:
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting, running = list(trainings), list[_Training]()
    with ExitStack() as stack:
        bars = {training.method: stack.enter_context(_bar(training)) for training in trainings}
        lifeline = stack.enter_context(_lifeline())
        stack.enter_context(_stopping(running))
        while waiting or running:
            for training in [item for item in waiting if item.is_ready][: jobs - len(running)]:
                training.start(num_threads, lifeline)
                waiting.remove(training)
                running.append(training)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            done = [training for training in running if training.is_done()]
            for training in running:
                step, text = training.progress()
                bars[training.method].update(step - bars[training.method].n)
                bars[training.method].set_postfix_str(text)
            running[:] = [training for training in running if training not in done]


def _bar(training: _Training) -> Any:
    total = num_steps(training.config) if training.config.data.train is None else None
    return tqdm(total=total, desc=training.method.ljust(len("pause_as_thought")), unit="step")


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe that nobody writes to: for who reads it, it ends when this process does, even by a kill."""
    end_to_read, end_to_keep = os.pipe()
    try:
        yield end_to_read
    finally:
        os.close(end_to_read)
        os.close(end_to_keep)


@contextmanager
def _stopping(running: Sequence[_Training]) -> Iterator[None]:
    """Whatever ends this block, a signal or an error: let the trainings that still run save and stop."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; every training saved its state.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        alive = [item.process for item in running if item.process and item.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGINT)
        for process in alive:
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _row(training: _Training, problems: Sequence[Problem]) -> dict[str, Any]:
    """Evaluate a trained model; its answers go beside it."""
    settings = training.config.train
    model, tokenizer = load(training.run.model)
    first = [problem.question for problem in problems[: settings.eval_batch_size]]
    answer(model, tokenizer, first, max_new_tokens=settings.eval_max_new_tokens)  # warms up, for the timing's sake
    records = evaluate(
        model,
        tokenizer,
        tasks.get(training.config.data.task),
        problems,
        batch_size=settings.eval_batch_size,
        max_new_tokens=settings.eval_max_new_tokens,
    )
    write_records(training.run.path / "answers.jsonl", records)
    num_steps_done, _ = training.progress()
    train_problems = num_steps_done * settings.batch_size
    return {"method": training.method, **summarise(records).to_json(), "train_problems": train_problems}
