"""Trainings as jobs of a Slurm cluster: `--on slurm`, by submitit.

Each training is a job with cores and GPUs of its own. The run folders lie on storage that all nodes and this process
see, and beside each what submitit needs of its jobs. They outlive this process: the same call finds them again there.
Shortly before its time is over a job lets the training save its state and queues itself once more, under its own
number; so does Slurm where a node is lost. Partition, account, time and the like are said as to `sbatch`, by its
variables (`SBATCH_PARTITION`, `SBATCH_ACCOUNT`, `SBATCH_TIMELIMIT`, ...).
Read next: `jobs.py`, which watches them; `clusters.py`, the same for Ray.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cocot.errors import ConfigError, RunError
from cocot.experiments.clusters import Cluster, Listing, Share
from cocot.experiments.jobs import Training

_MINUTES = 240
"""A job's time unless SBATCH_TIMELIMIT says otherwise. Then it queues again; most partitions allow so much."""
_SECONDS_TO_SAVE = 120
"""Before the end of its time a training is asked to save its state."""
_ENOUGH = 1_000_000
"""How often a job may queue again."""
_LATE = 60.0
"""Seconds that a shared folder may take to show what a job that has left the queue wrote last."""
_STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class Slurm(Cluster):
    """Jobs of a Slurm cluster."""

    def __init__(self, share: Share, jobs: int | None = None) -> None:
        """Find the cluster.

        Args:
            share: What each training gets.
            jobs: Trainings at a time; None for as many as the cluster has room for.

        Raises:
            ConfigError: submitit is not installed, there is no cluster, or `jobs` is below 1.
        """
        super().__init__(share, jobs)
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(f"--on slurm takes the extra `slurm`: pip install 'cocot[slurm]' ({error}).") from error
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise ConfigError(f"--on slurm takes Slurm's commands, and there is no {missing[0]} on this machine.")
        self._submitit = submitit
        try:
            self._queue = Listing(_queued, _queued(), seconds=5.0)
        except RunError as error:
            raise ConfigError(f"no Slurm cluster answers: {error}") from error

    def find(self, training: Training) -> _SlurmJob | None:
        """The newest job of its run folder, if it waits or runs."""
        numbers = [int(file.name.split("_")[0]) for file in _folder(training).glob("*_submitted.pkl")]
        job = self._job(training, str(max(numbers))) if numbers else None
        return job if job is not None and job.is_queued() else None

    def start(self, training: Training, slot: int) -> _SlurmJob:
        """A job that runs where the cluster has room.

        Raises:
            RunError: Slurm does not take it.
        """
        share, folder, utils = self._share, _folder(training), self._submitit.core.utils
        folder.mkdir(parents=True, exist_ok=True)
        training.run.log_file.touch()
        executor = self._submitit.SlurmExecutor(folder, max_num_timeout=_ENOUGH)
        executor.update_parameters(
            job_name=f"cocot {training.name}",
            time=_MINUTES,
            cpus_per_task=share.cores,
            srun_args=[f"--cpus-per-task={share.cores}"],  # which a step does not take over from its job
            signal_delay_s=_SECONDS_TO_SAVE,
            **({"gpus_per_node": share.gpus} if share.gpus else {}),
        )
        try:
            job = executor.submit(_Command(training.command, str(training.run.log_file.resolve()), self._variables()))
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            raise RunError(f"Slurm does not take the job of {training.name}: {_last_line(str(error))}") from error
        self._queue.forget()
        return self._job(training, job.job_id)

    def _job(self, training: Training, number: str) -> _SlurmJob:
        return _SlurmJob(self._queue, number, self._submitit.SlurmJob(_folder(training), number))


@dataclass
class _SlurmJob:
    """A job of a Slurm cluster; it outlives this process."""

    queue: Listing[set[str]]
    number: str
    job: Any
    _left: float | None = field(default=None, init=False)  # when it was first seen to have left the queue

    def is_queued(self) -> bool:
        """Whether it waits or runs."""
        return self.number in self.queue.now()

    def exit_code(self) -> int | None:
        if self.is_queued() or not self.job.paths.result_pickle.exists():
            return None
        error = self.job.exception()
        if error is not None:
            raise RunError(f"Slurm did not run the job {self.number}: {_last_line(str(error))}")
        code = int(self.job.result())
        if code in _STOPPED:
            raise RunError(f"the job {self.number} was stopped; the same call starts it again.")
        return code

    def is_lost(self) -> bool:
        if self.is_queued() or self.job.paths.result_pickle.exists():
            self._left = None
            return False
        self._left = self._left or time.monotonic()
        return time.monotonic() - self._left > _LATE

    def interrupt(self) -> None:
        pass


@dataclass
class _Command:
    """What a job runs: a training in a process of its own, which is asked to save its state before the job ends.

    Attributes:
        words: The command.
        log: File to which it writes.
        variables: Of its environment, besides the job's.
    """

    words: list[str]
    log: str
    variables: dict[str, str]

    def __call__(self) -> int:
        """Run it; its exit code."""
        # Slurm sends what it sends to all processes of a job: SIGTERM is for the training, which saves its state, but
        # the sign that the time is nearly over is for us.
        words = ["/bin/sh", "-c", """trap '' USR2; exec "$@\"""", "sh", *self.words]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | self.variables)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Called by submitit before the time is over: let it save its state; what the job runs when it goes on."""
        from submitit.helpers import DelayedSubmission

        # This is called in the middle of `Popen.wait`, whose lock its other methods would wait for.
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))


def _folder(training: Training) -> Path:
    """Where submitit keeps what it needs of a training's jobs: beside its log."""
    return training.run.log_file.with_suffix(".slurm").resolve()


def _queued() -> set[str]:
    """The numbers of this user's jobs that wait or run.

    Raises:
        RunError: the cluster does not answer.
    """
    try:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(_last_line(str(getattr(error, "stderr", "") or error))) from error
    return set(done.stdout.split())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason is given"])[-1]
