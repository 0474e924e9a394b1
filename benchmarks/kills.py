"""Kill a training at random moments, go on each time, and compare what it ends in with an undisturbed one, bit for bit.

    python benchmarks/kills.py --kills 20        # SIGKILL; the last line says whether every file of weights is the same

A third of the kills is timed to fall into a save: the killer waits for a checkpoint to begin.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from cocot.runs import RunFolder

SETTINGS = ["--data.num_train", "1024", "--data.num_valid", "20", "--train.save_steps", "3"]
SETTINGS += ["--train.logging_steps", "1", "--curriculum.first_epochs", "2", "--curriculum.epochs_per_stage", "2"]


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """The product's own command, on one thread."""
    command = [sys.executable, "-m", "cocot", "train", "demo", "--out", str(folder), *SETTINGS]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=settings)


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint or a model is half-written right now."""
    half = [path for path in folder.glob("stages/*/checkpoint-*") if not (path / "checksums.json").exists()]
    return bool(half) or any(folder.glob(".*.partial"))


def wait(process: subprocess.Popen[bytes], moment: Callable[[], bool], longest: float) -> bool:
    """Wait for the moment; whether it came while the process ran."""
    end = time.monotonic() + longest
    while process.poll() is None and time.monotonic() < end:
        if moment():
            return True
        time.sleep(0.001)
    return False


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    place = Path(mkdtemp())
    whole, killed = place / "whole", place / "killed"
    began = time.monotonic()
    assert begin(whole).wait() == 0
    seconds = time.monotonic() - began
    num_kills = num_in_save = 0
    while num_kills < args.kills:
        process = begin(killed)
        time.sleep(draw.uniform(0, 0.8) * seconds)
        in_save = draw.random() < 1 / 3 and wait(process, lambda: is_saving(killed), seconds)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:  # it was done before
            if not same(whole, killed):
                break
            shutil.rmtree(killed)
            continue
        num_kills, num_in_save = num_kills + 1, num_in_save + in_save
        step = sum(1 for entry in RunFolder(killed).read_log() if "loss" in entry)
        print(f"kill {num_kills}: after {step} logged steps{', in a save' if in_save else ''}", flush=True)
    assert begin(killed).wait() == 0
    verdict = "the same, bit for bit" if same(whole, killed) else "NOT THE SAME"
    print(f"{num_kills} kills, {num_in_save} of them in a save; the runs end {verdict}")
    shutil.rmtree(place)


def same(first: Path, second: Path) -> bool:
    """Whether two runs end in the same weights and were validated alike."""
    files = ["model/model.safetensors", "model/config.json", "state.json"]
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


if __name__ == "__main__":
    main()
