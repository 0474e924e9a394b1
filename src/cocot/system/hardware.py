"""What this process may use of its machine: CPU cores and GPUs.

In: the operating system's limits. Out: a number of cores, and the GPUs as `CUDA_VISIBLE_DEVICES` names them.
Read next: `experiments/jobs.py`, which shares them out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def allowed_cores(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """CPU cores that this process may keep busy: not all of a shared host's, at least 1.

    Args:
        cgroups: Where Linux shows the limits of containers and batch jobs.
        own: The file that says which of them holds for this process.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, int(min([float(cores), *_quotas(cgroups, own)])))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The limits of the process's control groups, and of those around them, in cores."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, name = line.split(":", maxsplit=2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups  # of version 1, of version 2
        inner = root / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The limit of one control group, if it has one."""
    if (file := folder / "cpu.max").is_file():
        quota, period = file.read_text(encoding="utf-8").split()
    elif (file := folder / "cpu.cfs_quota_us").is_file():
        quota = file.read_text(encoding="utf-8").strip()
        period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
    else:
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def visible_gpus(count: int, environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process sees, as `CUDA_VISIBLE_DEVICES` names them to a child process.

    Args:
        count: How many PyTorch sees.
        environment: The environment of this process; where it names GPUs, by number or UUID, those names are kept.
    """
    named = [name.strip() for name in environment.get(_VISIBLE, "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def with_gpu(environment: Mapping[str, str], gpus: list[str], slot: int) -> dict[str, str]:
    """The environment of the child process in a slot: it sees one GPU; slots beyond the last GPU share from the first.

    Args:
        environment: Of this process.
        gpus: What `visible_gpus` gives; none leaves the environment as it is.
        slot: Number of the child's place among those that run at the same time, from 0.
    """
    return {**environment, **({_VISIBLE: gpus[slot % len(gpus)]} if gpus else {})}
