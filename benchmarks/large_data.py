"""How much memory a training on millions of problems takes, and how fast it reads them.

    python benchmarks/large_data.py --problems 10000000 --folder /tmp/large      # makes what is not there yet

Writes a file of problems (a chain of names to follow, two steps), trains a model of 20 thousand weights on each of them
once with one thought, by the command line in a process of its own, and prints what that process and its helpers hold
while they read. `anonymous` is memory that nothing but the process can give back; `resident` also counts the pages of
the table that happen to be in memory, which the system takes back when it needs them. On Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import yaml


def problems(count: int, seed: int) -> Iterator[str]:
    """Lines of problems: five pairs of names in any order; who is two steps from the one that is asked for?"""
    draw = random.Random(seed)
    for _ in range(count):
        names = draw.sample(range(200), 6)
        pairs = [f"{first} {second}" for first, second in pairwise(names)]
        steps, answer = [f"{names[0]} {names[1]}", f"{names[1]} {names[2]}"], str(names[2])
        draw.shuffle(pairs)
        question = f"{' ; '.join(pairs)} ? {names[0]}"
        yield json.dumps({"question": question, "steps": steps, "answer": answer}) + "\n"


def write(path: Path, count: int, seed: int) -> None:
    """A file of problems, unless it is there."""
    if not path.exists():
        with path.open("w", encoding="utf-8") as file:
            file.writelines(problems(count, seed))


def recipe(train: Path, valid: Path) -> dict[str, object]:
    """One epoch of the file, with one thought."""
    init = {"architecture": "llama", "layers": 1, "width": 32, "heads": 2, "settings": {"intermediate_size": 64}}
    return {
        "model": {"init": init},
        "data": {"task": "prosqa", "train": str(train), "valid": str(valid)},
        "curriculum": {"method": "coconut_no_curriculum", "max_stage": 1, "epochs_per_stage": 0, "final_epochs": 1},
        "train": {
            "batch_size": 1024,
            "device_batch_size": 1024,
            "learning_rate": 1.0e-3,
            "save_steps": 1000,
            "logging_steps": 100,
            "device": "cpu",
        },
    }


def memory(process: psutil.Process) -> tuple[int, int]:
    """Anonymous and resident bytes of a process and those that it started."""
    anonymous = resident = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            text = Path(f"/proc/{each.pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        anonymous += _bytes(text, "RssAnon:")
        resident += _bytes(text, "VmRSS:")
    return anonymous, resident


def _bytes(status: str, name: str) -> int:
    return int(status.split(name)[1].split()[0]) * 1024 if name in status else 0


def log_of(run: Path) -> list[dict[str, float]]:
    """What the training has logged so far."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    """Make the data, train, watch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    train, valid, run = folder / f"{args.problems}.jsonl", folder / "valid.jsonl", folder / f"run_{args.problems}"
    began = time.perf_counter()
    write(train, args.problems, seed=0)
    write(valid, 200, seed=1)
    print(
        f"{train}: {train.stat().st_size / 2**30:.2f} GiB, written in {time.perf_counter() - began:.0f} s", flush=True
    )
    file = folder / f"{args.problems}.yaml"
    file.write_text(yaml.safe_dump(recipe(train, valid)))
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "cocot", "train", str(file), "--out", str(run)]
    print("| seconds | problems read | anonymous MiB | resident MiB |\n|---:|---:|---:|---:|")
    with (folder / f"{args.problems}.log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        began, peak, shown = time.perf_counter(), 0, -1.0
        while child.poll() is None:
            anonymous, resident = memory(psutil.Process(child.pid))
            peak = max(peak, anonymous)
            seen = max((int(entry["step"]) for entry in log_of(run)), default=0) * 1024 if run.exists() else 0
            if time.perf_counter() - shown > 30:
                shown = time.perf_counter()
                now = f"| {shown - began:.0f} | {seen:,} | {anonymous / 2**20:.0f} | {resident / 2**20:.0f} |"
                print(now, flush=True)
            time.sleep(1)
    seconds = time.perf_counter() - began
    print(f"ended with {child.returncode} after {seconds:.0f} s; peak {peak / 2**20:.0f} MiB anonymous")


if __name__ == "__main__":
    main()
