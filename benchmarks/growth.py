"""How the cost of a training step grows with thoughts, length, batch and width, next to what it must cost.

One quantity varies at a time. Three curves: the step with thoughts; one pass over as many tokens without thoughts; and
what that pass's operations take at the rate of a large matrix product, plus the reading of all weights twice a thought
at the rate of a large sum; for memory, 16 widths a token and layer and the logits of the labels.

    pip install -c constraints.txt -e '.[report]'
    python benchmarks/growth.py --out docs/growth        # growth.json, growth.svg
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import torch

from cocot.bench import workload
from cocot.bench.measure import alternate, live_bytes, machine, matmul_rate, operations

BASE = {"thoughts": 6, "length": 256, "batch": 8, "width": 256}
SWEEPS = {
    "thoughts": (0, 1, 2, 4, 8, 16, 32),
    "length": (128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "width": (64, 128, 256, 512, 1024),
}
LAYERS = 4
TEXT = 16
COLOURS = ["#0072B2", "#E69F00", "#555555"]
STEP, PASS, LIMIT = "step with thoughts", "one pass, no thoughts", "operations and reading"


def sum_rate(device: torch.device) -> float:
    """Bytes a second of reading a large tensor."""
    numbers = torch.ones(2**26, device=device)
    return 4 * numbers.numel() / alternate({"sum": numbers.sum}, 5)["sum"]


def point(size: dict[str, int], device: torch.device, rounds: int, rates: tuple[float, float]) -> list[dict[str, Any]]:
    """Seconds and bytes of one size, on each curve."""
    shape = {"n_layer": LAYERS, "n_embd": size["width"], "n_head": size["width"] // 64}
    _, model = workload.models(shape, device)
    rows = [workload.Lengths(size["length"] - size["thoughts"] - TEXT, size["thoughts"], TEXT)] * size["batch"]
    batches = {STEP: workload.tensors(rows, device), PASS: workload.tensors(rows, device, 0)}

    def loss(name: str) -> torch.Tensor:
        model.zero_grad()
        return model(**batches[name]).loss

    taken = alternate({name: lambda name=name: loss(name).backward() for name in batches}, rounds)
    kept = {name: live_bytes(lambda name=name: loss(name))[0] for name in batches}
    decoder = sum(p.numel() for name, p in model.named_parameters() if ".h." in name)
    matmul, reading = rates
    taken[LIMIT] = operations(lambda: loss(PASS).backward()) / matmul + 2 * 4 * decoder * size["thoughts"] / reading
    tokens = size["length"] * size["batch"]
    kept[LIMIT] = 4 * (16 * size["width"] * LAYERS * tokens + 2 * workload.VOCABULARY * TEXT * size["batch"])
    return [{"curve": name, "seconds": taken[name], "MiB": kept[name] / 2**20} for name in (STEP, PASS, LIMIT)]


def slope(points: list[dict[str, Any]], column: str) -> float:
    """Steepest exponent between neighbours of the upper half of a sweep: 1 is linear."""
    upper = points[len(points) // 2 :]
    return max(
        math.log(high[column] / low[column]) / math.log(high["value"] / low["value"]) for low, high in pairwise(upper)
    )


def chart(points: list[dict[str, Any]], title: str) -> alt.VConcatChart:
    """Time above, memory below; one column a quantity."""
    order = [STEP, PASS, LIMIT]
    rows = []
    for column, unit in (("seconds", "seconds a step"), ("MiB", "MiB kept for backward")):
        panels = []
        for name in SWEEPS:
            data = alt.Data(values=[item for item in points if item["sweep"] == name])
            x_scale = alt.Scale(type="symlog", constant=1) if name == "thoughts" else alt.Scale(type="log", base=2)
            encoding = alt.Chart(data, width=200, height=170).encode(
                x=alt.X("value:Q", title=name, scale=x_scale, axis=alt.Axis(values=list(SWEEPS[name]), format="d")),
                y=alt.Y(f"{column}:Q", title=unit if name == "thoughts" else None, scale=alt.Scale(type="log")),
                color=alt.Color("curve:N", sort=order, title=None, scale=alt.Scale(range=COLOURS)),
                strokeDash=alt.StrokeDash("curve:N", sort=order, legend=None),
            )
            panels.append(encoding.mark_line(point=alt.OverlayMarkDef(size=30)))
        rows.append(alt.hconcat(*panels))
    return alt.vconcat(*rows, title=title).configure_legend(orient="top")


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="file without ending")
    args = parser.parse_args()
    device = torch.device(args.device)
    rates = (matmul_rate(device, torch.float32), sum_rate(device))
    points: list[dict[str, Any]] = []
    for name, values in SWEEPS.items():
        for value in values:
            for item in point({**BASE, name: value}, device, args.rounds, rates):
                points.append({"sweep": name, "value": value, **item})
                print(
                    f"{name:>9} {value:>5}  {item['curve']:<22}{item['seconds']:9.4f} s {item['MiB']:9.1f} MiB",
                    flush=True,
                )
    slopes = {
        name: {
            f"{column}, {curve}": round(
                slope([p for p in points if (p["sweep"], p["curve"]) == (name, curve)], column), 2
            )
            for column in ("seconds", "MiB")
            for curve in (STEP, PASS)
        }
        for name in SWEEPS
    }
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    title = f"Cost of a training step: {LAYERS} layers, {base}, one of them varied ({machine(device)})"
    chart(points, title).save(args.out.with_suffix(".svg"))
    result = {"machine": machine(device), "base": BASE, "steepest exponents": slopes, "points": points}
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"steepest exponents": slopes, "machine": machine(device)}))


if __name__ == "__main__":
    main()
