"""Trainings as jobs of a cluster that is there already: `--on ray`.

Each training is a job with cores and GPUs of its own, on whatever node has them. The run folders lie on storage that
all nodes and this process see. Jobs outlive this process: the same call finds them again by names made of their run
folders. A job whose node is gone is started once more, and goes on from its last checkpoint.
Read next: `jobs.py`, which watches them; `slurm.py`, the same for Slurm.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from cocot.errors import ConfigError, RunError
from cocot.experiments.jobs import Training

_PATIENCE = 600.0
"""Seconds for which a cluster may not answer."""
_WARM_UP = 60.0
"""Seconds for which a cluster may refuse a job: one that has just begun has no agent yet that would take it."""
_LOST = "JOB_SUPERVISOR_ACTOR_DIED"
_NO_ROOM = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
"""What Ray says of jobs that waited for room for a quarter of an hour."""


@dataclass(frozen=True)
class Share:
    """What each training gets, and of which cluster.

    Attributes:
        cores: CPU cores; also the threads that it computes with.
        gpus: GPUs.
        cluster: Its kind.
    """

    cores: int = 1
    gpus: int = 0
    cluster: Literal["ray", "slurm"] = "ray"


_Jobs = TypeVar("_Jobs")


class Listing(Generic[_Jobs]):
    """What a cluster says of its jobs. It is not asked all the time, and need not answer always."""

    def __init__(self, ask: Callable[[], _Jobs], known: _Jobs, seconds: float = 1.0) -> None:
        """Begin.

        Args:
            ask: The question; an OSError, RuntimeError or RunError is no answer.
            known: What is known so far.
            seconds: For how long it is not asked again.
        """
        self._ask, self._known, self._seconds = ask, known, seconds
        self._asked = self._answered = time.monotonic()

    def now(self) -> _Jobs:
        """What it said last.

        Raises:
            RunError: it has not answered for long.
        """
        if time.monotonic() - self._asked > self._seconds:
            try:
                self._known = self._ask()
                self._answered = time.monotonic()
            except (OSError, RuntimeError, RunError) as error:  # it may be busy, or start again
                if time.monotonic() - self._answered > _PATIENCE:
                    raise RunError(f"the cluster has not answered for ten minutes ({error}).") from error
            self._asked = time.monotonic()
        return self._known

    def forget(self) -> None:
        """Ask again: something was changed."""
        self._asked = float("-inf")


class Cluster:
    """What trainings on clusters have in common."""

    def __init__(self, share: Share, jobs: int | None) -> None:
        """Begin.

        Args:
            share: What each training gets.
            jobs: Trainings at a time; None for as many as the cluster has room for.

        Raises:
            ConfigError: `jobs` is below 1.
        """
        if jobs is not None and jobs < 1:
            raise ConfigError(f"{jobs} trainings at a time are none; --jobs must be at least 1.")
        self._share, self._jobs = share, jobs

    def num_slots(self, num_trainings: int) -> int:
        """As many as were asked for; the cluster itself lets those wait for which it has no room."""
        return num_trainings if self._jobs is None else min(self._jobs, num_trainings)

    def _variables(self) -> dict[str, str]:
        """What the environment of a training says of its share; a cluster itself may hide no GPU."""
        hidden = {} if self._share.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {"OMP_NUM_THREADS": str(self._share.cores), **hidden}


class Ray(Cluster):
    """Jobs of a Ray cluster."""

    def __init__(self, share: Share, jobs: int | None = None, address: str | None = None) -> None:
        """Find the cluster.

        Args:
            share: What each training gets.
            jobs: Trainings at a time; None for as many as the cluster has room for.
            address: Of the cluster's dashboard; None for what RAY_ADDRESS says, or a cluster on this machine.

        Raises:
            ConfigError: Ray is not installed, there is no cluster, or `jobs` is below 1.
        """
        super().__init__(share, jobs)
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError(f"--on ray takes the extra `ray`: pip install 'cocot[ray]' ({error}).") from error
        try:
            self._client: Any = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"no Ray cluster was found: start one with `ray start --head`, or set RAY_ADDRESS ({reason})."
            ) from error
        self._listing = Listing[dict[str, Any]](self._list, {})
        self._listing.forget()

    def find(self, training: Training) -> _RayJob | None:
        """The job of its run folder that waits or runs."""
        going = [name for name, job in self._jobs_of(training).items() if not job.status.is_terminal()]
        return _RayJob(self, going[-1]) if going else None

    def start(self, training: Training, slot: int) -> _RayJob:
        """A job that runs where the cluster has room."""
        numbers = [int(name.rsplit("-", 1)[1]) for name in self._jobs_of(training)]
        name = f"{_name(training)}-{max(numbers, default=-1) + 1}"
        training.run.log_file.touch()
        log = shlex.quote(str(training.run.log_file.resolve()))
        where = shlex.quote(str(Path.cwd()))
        self._submit(
            name,
            entrypoint=f"cd {where} && exec {shlex.join(training.command)} >> {log} 2>&1",
            entrypoint_num_cpus=self._share.cores,
            entrypoint_num_gpus=self._share.gpus,
            runtime_env={"env_vars": self._variables()},
            metadata={"training": training.name},
        )
        return _RayJob(self, name)

    def _submit(self, name: str, **job: Any) -> None:
        """Hand a job to the cluster.

        Raises:
            RunError: it has not taken the job for long.
        """
        began = time.monotonic()
        while True:
            self._listing.forget()
            try:
                self._client.submit_job(submission_id=name, **job)
                return
            except (OSError, RuntimeError) as error:
                if self.job(name) is not None:  # it was taken, and only the answer got lost
                    return
                if time.monotonic() - began > _WARM_UP:
                    raise RunError(f"the cluster does not take the job {name}: {error}") from error
            time.sleep(1)

    def job(self, name: str) -> Any:
        """What the cluster says of a job; None if it knows nothing of it."""
        return self._listing.now().get(name)

    def _list(self) -> dict[str, Any]:
        return {job.submission_id: job for job in self._client.list_jobs() if job.submission_id}

    def _jobs_of(self, training: Training) -> dict[str, Any]:
        """All jobs of a run folder, in the order in which they were started."""
        known = self._listing.now()
        prefix = f"{_name(training)}-"
        names = [name for name in known if name.startswith(prefix)]
        return {name: known[name] for name in sorted(names, key=lambda name: int(name.removeprefix(prefix)))}


@dataclass
class _RayJob:
    """A job of a Ray cluster; it outlives this process."""

    cluster: Ray
    name: str

    def exit_code(self) -> int | None:
        job = self.cluster.job(self.name)
        if job is None or not job.status.is_terminal():
            return None
        if str(job.status.value) == "STOPPED":
            raise RunError(f"the job {self.name} was stopped; the same call starts it again.")
        if job.driver_exit_code is None and str(job.status.value) == "FAILED":
            raise RunError(f"the cluster did not run the job {self.name}: {job.message}")
        return int(job.driver_exit_code or 0)

    def is_lost(self) -> bool:
        job = self.cluster.job(self.name)
        return job is None or job.error_type in (_LOST, _NO_ROOM)

    def interrupt(self) -> None:
        pass


def _name(training: Training) -> str:
    """Of the jobs of a run folder: the same from every process that sees it."""
    return f"cocot-{hashlib.sha256(str(training.run.path.resolve()).encode()).hexdigest()[:16]}"
