"""`cocot.benchmark`: speed and memory as ratios, each measured in one run.

In: a device, names of shapes. Out: a `Ratio` at a time.

    for ratio in cocot.benchmark(shapes=["small"]):
        print(ratio.name, ratio.value)

Read next: `bench/ratios.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cocot.bench import workload
from cocot.bench.ratios import Bench, Ratio, measure
from cocot.errors import ConfigError
from cocot.settings.typed import choose


def benchmark(
    device: str = "cpu",
    shapes: Sequence[str] = ("small", "124m"),
    *,
    rounds: int = 3,
    batch_size: int | None = None,
) -> Iterator[Ratio]:
    """Measure training steps, answers and memory against ordinary fine-tuning.

    Args:
        device: cpu or cuda.
        shapes: Models, by name.
        rounds: Pairs a ratio; the median counts.
        batch_size: Rows a training step; None for what suits the device.

    Returns:
        The ratios, each as soon as it is measured.

    Raises:
        ConfigError: there is no such shape, or no GPU.
    """
    if unknown := set(shapes) - set(workload.SHAPES):
        raise ConfigError(f"--shapes names {min(unknown)!r}; {choose(min(unknown), workload.SHAPES)}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; leave it out to measure on the CPU.")
    return measure(Bench(place, rounds, tuple(shapes), batch_size))
