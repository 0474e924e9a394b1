"""What Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) do to a process.

The command line ends at once: unfinished files are removed, one line is printed, and the exit code is 128 + the number
of the signal. No exception is raised for it: libraries catch exceptions, and an import cut short leaves a traceback.
Where ending at once would lose work, `listening` takes the signal, and the work stops where nothing is lost.

A signal that is ignored when the process starts (by `nohup`, or in the background of a script) stays ignored.
Read next: `system/files.py`, whose files are removed here.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
UNFINISHED: set[Path] = set()
"""Files and folders that are being written under a name of their own: they go when a signal ends the process."""
_ONE_SIGNAL = 2.0  # seconds in which a launcher may pass on what we have had from the terminal


class _Hold:
    """Whether a signal has to wait, and the one that waits."""

    is_on = False
    waiting: int | None = None


def exit_on_signals() -> None:
    """Let every signal end this process at once; for the command line."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def ignore_signals() -> None:
    """Let signals change nothing: the work is done, and only the interpreter's own end is left."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit(number: int, frame: FrameType | None) -> None:
    if _Hold.is_on:
        _Hold.waiting = number
        return
    for path in list(UNFINISHED):
        remove(path)
    name = signal.Signals(number).name
    line = f"cocot: interrupted by {name}; no file is left half-written. Give the same command again to resume.\n"
    start = "" if getattr(sys.stderr, "is_at_line_start", True) else "\n"
    try:
        os.write(2, (start + line).encode())
    finally:
        os._exit(128 + number)


@contextmanager
def held() -> Iterator[None]:
    """Let a signal that would end the process wait for the end of the block, which must be short."""
    _Hold.is_on = True
    try:
        yield
    finally:
        _Hold.is_on = False
        if _Hold.waiting is not None:
            _exit(_Hold.waiting, None)


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None], before: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Let `handle` have every signal that is not ignored, and afterwards those have them that had them `before`."""
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def listening(note: Callable[[int], None]) -> Iterator[None]:
    """Pass signals to `note` in place of ending the process: the block stops by itself, where nothing is lost.

    A second signal, later than a launcher passes on the first one, does what it would have done outside the block.

    Args:
        note: Called with the number of the signal, between two bytecodes of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    first: list[float] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] > _ONE_SIGNAL:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        first.append(time.monotonic())
        note(number)

    with _handled(hear, before):
        yield


class _Helpers:
    """Whether processes that are forked now are helpers, which a signal ends without a word."""

    are_forked = False


def _before_fork() -> None:
    if _Helpers.are_forked:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork_in_parent() -> None:
    if _Helpers.are_forked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _after_fork_in_helper() -> None:
    """Give a forked helper the system's own handling of signals, from its first moment on.

    A handler in Python waits for the next bytecode, and a fork makes Python forget which signals wait. So a pool that
    ends a process before it has run, or just before a call that blocks, would wait for its end forever.
    """
    if _Helpers.are_forked:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_helper
    )


@contextmanager
def with_helpers() -> Iterator[None]:
    """Let a signal that ends this process end those, too, that it forks inside the block; they say nothing of it.

    A library's pool would go on without its parent, which ends at once, and each of its processes print our line.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    import psutil  # takes a while, and every command begins here

    others = set(psutil.Process().children())
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def end(number: int, frame: FrameType | None) -> None:
        for helper in psutil.Process().children(recursive=True):
            if helper not in others:
                with suppress(psutil.Error):
                    helper.kill()
        signal.signal(number, before[signal.Signals(number)])
        signal.raise_signal(number)

    _Helpers.are_forked = True
    try:
        with _handled(end, before):
            yield
    finally:
        _Helpers.are_forked = False


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):  # it is not there, or nothing can be removed
        path.unlink()
