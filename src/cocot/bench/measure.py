"""How to measure on a shared machine: pairs in alternation, medians, live bytes.

In: things to run. Out: seconds and bytes.
"""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.benchmark import timer

Run = Callable[[], Any]


def seconds(run: Run) -> float:
    """Wall-clock seconds of one run; the timer waits for the device."""
    began = timer()
    run()
    return timer() - began


def alternate(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """The median seconds of each, in turn, so that a machine's moods fall on all alike; a first round is left out."""
    for run in runs.values():
        run()
    measured = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: median(each[name] for each in measured) for name in runs}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors that were made while this was active and still live.

    Attributes:
        now: Bytes that live now.
        peak: The most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; count the storages that it made."""
        given = {item.untyped_storage()._cdata for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)}
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, Tensor) and item.untyped_storage()._cdata not in given:
                self._count(item.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def live_bytes(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, and the most that live at once until its end."""
    with LiveBytes() as live:
        loss = forward()
        kept = live.now
        loss.backward()  # type: ignore[no-untyped-call]
    return kept, live.peak


def matmul_rate(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Floating-point operations a second of a large matrix product: what the machine can do."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return float(2 * size**3 / alternate({"product": lambda: left @ right}, rounds)["product"])


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    threads = f"{torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {threads}"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
