"""Interrupt or kill every command at random moments, give it again each time, and look at what is left.

    python benchmarks/kills.py --moments 10                                    # SIGINT, SIGTERM, SIGHUP in turn
    python benchmarks/kills.py --commands train --signals KILL --moments 20    # as a machine that loses its power

After each signal: the exit code says which it was, one line was printed and no traceback, every file is the old one or
a whole new one, and none is left half-written. Then the same command runs to its end, or is stopped once more; a
training ends in the same weights, bit for bit, as one that nobody disturbed. A third of the moments of a training is
timed to fall into a save. Signals count from the first line of the program: before it, they end the interpreter.
The last lines are a table; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

TINY = ["--data.num_train", "512", "--data.num_valid", "20", "--train.save_steps", "2", "--train.logging_steps", "1"]
TINY += ["--curriculum.first_epochs", "2", "--curriculum.epochs_per_stage", "2"]
QUESTION = "4 2 ; 4 9 ; 1 5 ; 0 6 ; 1 7 ; 7 3 ; 5 8 ; 0 4 ; ? 9 8 0"


@dataclass(frozen=True)
class Case:
    """A command, and what it leaves.

    Attributes:
        words: The command.
        outputs: Files and folders that it writes.
        begins_new: Whether the outputs must not be there when the command starts.
        longest: Seconds of the command that are looked at; None for all of it.
    """

    words: Sequence[str]
    outputs: Sequence[str] = ()
    begins_new: bool = False
    longest: float | None = None


SMALL = ("runs/prosqa-small", "-n", "300")
CASES = {
    "train": Case(["train", "demo", "--out", "t", *TINY], ["t"], begins_new=True),
    "compare": Case(
        ["compare", "demo", "--methods", "cot,coconut", "--problems", "50", "--jobs", "2", "--out", "c", *TINY],
        ["c"],
        True,
    ),
    "reproduce": Case(
        ["reproduce", "prosqa", "--methods", "cot", "--problems", "50", "--jobs", "1", "--out", "r", *TINY], ["r"], True
    ),
    "eval": Case(["eval", *SMALL, "--out", "e.jsonl"], ["e.jsonl"]),
    "probe": Case(["probe", *SMALL, "--out", "s"], ["s"]),
    "ask": Case(["ask", "runs/prosqa-small", QUESTION]),
    "report": Case(["report", "runs/prosqa-small", "--out", "p.html"], ["p.html"]),
    "export": Case(["export", "runs/prosqa-small", "x"], ["x"], begins_new=True),
    "data": Case(["data", "prosqa", "-n", "3000", "--out", "d.jsonl"], ["d.jsonl"]),
    "bench": Case(["bench", "--shapes", "small", "--rounds", "1"], longest=30.0),
    "recipes": Case(["recipes"]),
    "env": Case(["env"]),
}


def begin(case: Case, place: Path) -> subprocess.Popen[bytes]:
    """The product's own command, on one thread."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / "stderr.txt").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "cocot", *case.words],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=settings,
            cwd=place,
        )


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint or a model is half-written right now."""
    half = [path for path in folder.glob("stages/*/checkpoint-*") if not (path / "checksums.json").exists()]
    return bool(half) or any(folder.glob(".cocot-*"))


def has_begun(process: subprocess.Popen[bytes]) -> bool:
    """Whether its first line has run, which takes the signals: before, nobody but the interpreter can."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def wait(process: subprocess.Popen[bytes], moment: Callable[[], bool], longest: float) -> None:
    """Wait for the moment, or for the end of the process."""
    end = time.monotonic() + longest
    while process.poll() is None and time.monotonic() < end and not moment():
        time.sleep(0.001)


def contents(place: Path, case: Case) -> dict[str, str]:
    """The files of a command's outputs and their digests."""
    roots = [place / name for name in case.outputs]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_whole(path: Path) -> bool:
    """Whether a file that has changed ends where a file of its kind ends."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".html":
        return text.rstrip().endswith("</html>")
    if path.suffix == ".json":
        return bool(json.loads(text))
    return path.suffix != ".jsonl" or all(json.loads(line) for line in text.splitlines())


def faults(case: Case, place: Path, number: int, code: int, before: dict[str, str]) -> list[str]:
    """What is wrong after a signal."""
    found = []
    lines = (place / "stderr.txt").read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    ours = [line for line in lines if line.startswith(("cocot: interrupted by", "cocot: stopped"))]
    if number != signal.SIGKILL:
        found += ["exit code"] if code != 128 + number else []
        found += (
            ["line"] if len(ours) != 1 or any("Traceback" in line or "ignored in" in line for line in lines) else []
        )
        found += ["left"] if any(place.rglob(".cocot-*")) else []
    if not case.begins_new:
        after = contents(place, case)
        changed = [name for name, digest in after.items() if before.get(name) != digest]
        found += (
            ["files"] if before.keys() - after.keys() or not all(is_whole(place / name) for name in changed) else []
        )
    return found


def result(place: Path, case: Case) -> dict[str, str]:
    """What must be the same however often a command was stopped: weights and the accuracies of stages."""
    kept = ("/model/model.safetensors", "/model/config.json", "/state.json", "x/model.safetensors")
    return {name: digest for name, digest in contents(place, case).items() if name.endswith(kept)}


def clean(place: Path, case: Case) -> None:
    """Remove the outputs of a command that begins with none."""
    for name in case.outputs if case.begins_new else ():
        shutil.rmtree(place / name, ignore_errors=True)


def stop_again_and_again(
    name: str, place: Path, numbers: Sequence[int], count: int, draw: random.Random
) -> Counter[str]:
    """Run one command undisturbed, then stop it `count` times; returns how often what was seen."""
    case, seen = CASES[name], Counter[str]()
    began = time.monotonic()
    process = begin(case, place)
    wait(process, lambda: False, case.longest or 3600)
    seconds = time.monotonic() - began
    if case.longest:
        process.kill()
    assert process.wait() in (0, -signal.SIGKILL), (place / "stderr.txt").read_text()
    whole = result(place, case)
    clean(place, case)
    while seen["signals"] < count and seen["too late"] < 3 * count:
        before, number = contents(place, case), numbers[seen["signals"] % len(numbers)]
        process = begin(case, place)
        wait(process, lambda process=process: has_begun(process), 60)  # type: ignore[misc]
        time.sleep(draw.uniform(0, seconds))
        if name == "train" and draw.random() < 1 / 3:
            wait(process, lambda: is_saving(place / "t"), seconds)
        process.send_signal(number)
        code = process.wait()
        if code == 0:
            seen["too late"] += 1
            clean(place, case)
            continue
        seen["signals"] += 1
        found = faults(case, place, number, code, before)
        if name == "export" and result(place, case):  # it was done, and the signal came before the process ended
            found += ["result"] if result(place, case) != whole else []
            clean(place, case)
        elif not case.longest and draw.random() < 0.5:  # else it is stopped once more
            found += ["again"] if begin(case, place).wait() or any(place.rglob(".cocot-*")) else []
            found += ["result"] if result(place, case) != whole else []
            clean(place, case)
        seen.update(found)
        if found:
            print(f"{name}: {signal.Signals(number).name}, exit code {code}: {', '.join(found)}", flush=True)
            print((place / "stderr.txt").read_text(errors="replace")[-2000:], flush=True)
    return seen


def main() -> int:
    """Stop, go on, compare; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10, help="signals a command (default: %(default)s)")
    parser.add_argument("--commands", default=",".join(CASES), help="with commas between (default: all)")
    parser.add_argument("--signals", default="INT,TERM,HUP", help="with commas between (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for ignored in (signal.SIGINT, signal.SIGHUP):  # by `nohup` or a script; the commands would ignore them as well
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    numbers = [signal.Signals[f"SIG{name}"] for name in args.signals.split(",")]
    columns = ("signals", "exit code", "line", "left", "files", "again", "result")
    rows = []
    for name in args.commands.split(","):
        place = Path(mkdtemp())
        Path(place, "runs").mkdir()
        shutil.copytree(Path(__file__).parents[1] / "src/cocot/assets/prosqa-small", place / "runs/prosqa-small")
        seen = stop_again_and_again(name, place, numbers, args.moments, random.Random(args.seed))
        rows.append((name, seen))
        print(f"{name}: {dict(seen)}", flush=True)
        shutil.rmtree(place)
    print(f"\n{'command':<12}" + "".join(f"{column:>11}" for column in columns))
    for name, seen in rows:
        print(f"{name:<12}" + "".join(f"{seen[column]:>11}" for column in columns))
    return int(any(seen[column] for _, seen in rows for column in columns[1:]))


if __name__ == "__main__":
    sys.exit(main())
