"""What the processes of one launch (`torchrun`, `accelerate launch`) do together, or one of them for all.

In: the environment that the launcher sets, torch.distributed. In a process of its own each does the plain thing.
Where a docstring says that all must call, a process that does not makes the others wait for ever.
Read next: `modeling/loading.py`, `training/run.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState  # type: ignore[import-untyped]

from cocot.system.launch import local_rank, rank
from cocot.system.manifest import check

_PATIENCE = timedelta(hours=2)  # of processes that wait for others to answer their questions


def once(act: Callable[[], Any]) -> None:
    """Let the first process act, and the others wait until it has: a run folder has one writer. All must call."""
    if rank() == 0:
        act()
    if dist.is_initialized():
        dist.barrier()


def decided(find: Callable[[], Any]) -> Any:
    """What the first process finds, in all of them. All must call."""
    found = [find() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]


def check_together(folder: Path) -> None:
    """`check` in the first process of each node, while the others wait; all processes of a launch must ask.

    Raises:
        RunError: as `check`, in the processes that look.
    """
    if not dist.is_initialized():
        check(folder)
        return
    if local_rank() == 0:
        check(folder)
    dist.barrier()


def processes(cpu: bool = False) -> Any:
    """This process among those that `torchrun` started, if it did, and its device: an accelerate `PartialState`.

    Args:
        cpu: Stay on the CPU. Else it is the best device that there is.
    """
    on_cpu = cpu or not torch.accelerator.is_available()  # unless told, no process joins the others on a CPU
    return PartialState(cpu=on_cpu, timeout=_PATIENCE)


def largest(device: torch.device, *values: float) -> list[float]:
    """Each value's largest among the processes. All must call; they wait for each other and for their devices."""
    if not dist.is_initialized():
        return list(values)
    found = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [float(value) for value in found]
