"""Tests of interrupts: whatever the command and the moment, one line, the signal's exit code, and nothing lost.

`benchmarks/kills.py` does the same at random moments, as often as one likes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs_support import environment, tiny_config
from test_run import assert_same

from cocot.cli import COMMANDS
from cocot.errors import Interrupted
from cocot.system.files import new_folder, write_text
from cocot.system.interrupts import SIGNALS, UNFINISHED, held, listening
from cocot.training.run import train
from cocot.training.trainer import StageTrainer

QUESTION = "4 2 ; 4 9 ; 1 5 ; 0 6 ; 1 7 ; 7 3 ; 5 8 ; 0 4 ; ? 9 8 0"
WORDS = {
    "train": ["demo"],
    "compare": ["demo"],
    "reproduce": ["prosqa"],
    "eval": ["prosqa-small"],
    "ask": ["prosqa-small", QUESTION],
    "probe": ["prosqa-small"],
    "report": ["runs/prosqa-small"],
    "export": ["prosqa-small", "out"],
    "serve": ["prosqa-small", "--port", "0"],
    "data": ["prosqa", "--out", "d.jsonl", "-n", "100000"],
    "bench": [],
    "recipes": [],
    "env": [],
}
Moment = Callable[[subprocess.Popen[str]], bool]


def has_begun(process: subprocess.Popen[str]) -> bool:
    """Whether the program's first line has run, which takes the signals."""
    caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def imports_torch(process: subprocess.Popen[str]) -> bool:
    """Whether the libraries of PyTorch are being loaded."""
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def stopped(words: list[str], folder: Path, moment: Moment, number: int) -> tuple[int, str]:
    """The exit code and the standard error of a command that gets a signal at a moment."""
    log = stderr_of(folder)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cocot", *words],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            env=environment(),
            cwd=folder,
        )
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and not (has_begun(process) and moment(process)):
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait(timeout=60), log.read_text()


def stderr_of(folder: Path) -> Path:
    """Where a command that works in a folder writes its messages."""
    return folder.with_name(f"{folder.name}.stderr")


def assert_one_line(code: int, err: str, number: int) -> None:
    """What is promised after a signal."""
    name = signal.Signals(number).name
    assert code == 128 + number, err
    assert [line for line in err.splitlines() if line and "step/s" not in line and "question" not in line] == [
        f"cocot: interrupted by {name}; no file is left half-written. Give the same command again to resume."
    ]


def test_the_words_below_are_those_of_every_command() -> None:
    """A new command is tested as well."""
    assert WORDS.keys() == COMMANDS.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
@pytest.mark.parametrize("command", WORDS)
def test_every_command_ends_in_one_line_while_it_begins(command: str, tmp_path: Path) -> None:
    """As soon as it runs, and while PyTorch is imported: no traceback, and no file is left."""
    moments: list[tuple[Moment, int]] = [(has_begun, signal.SIGINT)]
    if command not in ("data", "recipes", "env", "report"):  # these do without
        moments.append((imports_torch, signal.SIGTERM))
    for moment, number in moments:
        code, err = stopped([command, *WORDS[command]], tmp_path, moment, number)
        if command in ("recipes", "env") and code == 0:
            continue  # done before
        assert_one_line(code, err, number)
    assert not any(path for path in tmp_path.rglob("*.partial"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
def test_a_closed_terminal_leaves_the_old_output(tmp_path: Path) -> None:
    """While the answers are made: the file of the call before is there, bit for bit, and none beside it."""
    (tmp_path / "e.jsonl").write_text("old\n")

    def asks(process: subprocess.Popen[str]) -> bool:
        return "/4000" in stderr_of(tmp_path).read_text()

    command = ["eval", "prosqa-small", "-n", "4000", "--batch-size", "1", "--out", "e.jsonl"]
    code, err = stopped(command, tmp_path, asks, signal.SIGHUP)
    assert_one_line(code, err, signal.SIGHUP)
    assert (tmp_path / "e.jsonl").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl"]


def test_an_interrupt_at_every_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call gets a signal in its first step, of each kind in turn: weights and log are those of one run."""
    config = tiny_config(train={"optimizer_reset": "never"})
    whole = train(config, tmp_path / "whole").read_log()
    step, heard = StageTrainer.training_step, list[int]()

    def stop(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        heard.append(SIGNALS[len(heard) % 3])
        signal.raise_signal(heard[-1])
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StageTrainer, "training_step", stop)
        for _ in range(sum("loss" in entry for entry in whole) - 1):
            with pytest.raises(Interrupted) as caught:
                train(config, tmp_path / "cut")
            assert caught.value.exit_code == 128 + heard[-1]
        train(config, tmp_path / "cut")  # a signal in the very last step leaves nothing to resume
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_second_signal_does_what_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two seconds it is the launcher's copy of the first; later it is as if nobody listened."""
    now = 0.0
    monkeypatch.setattr("cocot.system.interrupts.time.monotonic", lambda: now)
    heard = list[int]()

    def work() -> None:
        nonlocal now
        with listening(heard.append):
            signal.raise_signal(signal.SIGINT)
            now = 1.0
            signal.raise_signal(signal.SIGTERM)
            now = 3.0
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert heard == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def program(code: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run some lines in a process of their own, the `first` before cocot is imported."""
    lines = f"import signal\n{first}from pathlib import Path\nfrom cocot.system import interrupts as i\n{code}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, env=environment())


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup cocot ...` and commands in the background of a script go on, in training too."""
    done = program(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "i.exit_on_signals()\n"
        "with i.listening(print): signal.raise_signal(signal.SIGHUP)\n"
        "signal.raise_signal(signal.SIGHUP)\n"
        "print('still here')"
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")


BEFORE_OUR_HOOKS = """import os
def say(): print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())) == sorted(i.SIGNALS), flush=True)
os.register_at_fork(after_in_child=say)
"""
HELPER = """import ctypes, time
i.exit_on_signals()
reading, writing = os.pipe()
with i.with_helpers():
    child = os.fork()
    if child == 0:
        lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        library.pthread_mutex_lock(lock)
        print("begun", flush=True)
        os.write(writing, b"!")
        library.pthread_mutex_lock(lock)  # does not return, whatever Python notes of a signal
    os.read(reading, 1)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    end = time.monotonic() + 20
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, signal.SIGKILL)
print(os.waitstatus_to_exitcode(found[1]), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked on this system")
def test_a_signal_ends_a_helper_whatever_it_does() -> None:
    """While it is forked signals wait; from then on the system ends it, also inside a call that does not return.

    Else a library's pool that ends its processes would wait for one of them forever.
    """
    done = program(HELPER, first=BEFORE_OUR_HOOKS)
    assert done.stdout.splitlines() == ["True", "begun", f"{-signal.SIGTERM} set()"], done.stderr


def test_a_signal_removes_what_is_unfinished_and_waits_for_a_rename(tmp_path: Path) -> None:
    """Files and folders under their names for the time being go; what is between two renames is done first."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "file").touch()
    done = program(
        f"p = Path({str(tmp_path)!r})\n"
        "i.exit_on_signals()\n"
        "i.UNFINISHED.update([p / 'folder', p / 'file', p / 'none'])\n"
        "with i.held():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('held', flush=True)\n"
        "print('never')"
    )
    assert (done.returncode, done.stdout) == (143, "held\n")
    assert done.stderr.startswith("cocot: interrupted by SIGTERM; ")
    assert not any(tmp_path.iterdir())


def test_nothing_is_held_or_unfinished_afterwards(tmp_path: Path) -> None:
    """The two lists that a signal looks at are empty once the work is done."""
    with held(), new_folder(tmp_path / "folder") as folder:
        write_text(folder / "file", "text")
        assert UNFINISHED
    assert not UNFINISHED
    assert program("i.exit_on_signals()\nwith i.held(): pass\nprint('on')").stdout == "on\n"
