"""Files and folders that are whole or not there.

In: a place and what belongs there. Out: it, or the old one untouched and a `RunError` that names the place.

Everything is written beside its place, under a name of its own (`.cocot-MACHINE-PROCESS-NUMBER.partial`), then renamed.
What is not finished is removed, also when a signal ends the process; what a kill leaves, the next writer removes.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import psutil
from safetensors import SafetensorError

from cocot.errors import RunError
from cocot.system.interrupts import UNFINISHED, held, remove
from cocot.system.write_errors import cannot_write

_MINE = f".cocot-{platform.node()}-"
_NUMBERS = count()
_SOME = 1 << 16  # bytes
_IS_EXPLAINED = ContextVar("_IS_EXPLAINED", default=False)
_OF_A_DISK = (OSError, RuntimeError, SafetensorError)
"""What Python, PyTorch and safetensors raise when a file cannot be written."""


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A path in `folder`, which is made if it is not there, that no other process uses: for a file or a folder.

    What stands at the path when the block ends is removed, so what is finished has to be moved away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{glob.escape(_MINE)}*-*.partial"):
        if not _is_running(left):
            remove(left)
    path = folder / f"{_MINE}{os.getpid()}-{next(_NUMBERS)}.partial"
    remove(path)  # by a process of the same number, in a container say
    UNFINISHED.add(path)
    try:
        yield path
    finally:
        remove(path)
        UNFINISHED.discard(path)


def is_unfinished(path: Path) -> bool:
    """Whether a path is one that `unfinished` gave to some process."""
    return path.name.startswith(".cocot-") and path.suffix == ".partial"


def _is_running(path: Path) -> bool:
    """Whether the process that was given an unfinished path may still write there."""
    number = path.name.removeprefix(_MINE).partition("-")[0]
    return not number.isdecimal() or psutil.pid_exists(int(number))


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A text file to fill, which takes the place of `path` once it is whole. A device or a pipe is written as it is.

    Raises:
        RunError: it cannot be written.
    """
    with explained(path):
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as file:
                yield file
            return
        place = Path(os.path.realpath(path))  # a link stays a link
        with unfinished(place.parent) as partial:
            with partial.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, place)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` once it is whole.

    Raises:
        RunError: it cannot be written.
    """
    place = Path(os.path.realpath(folder))  # a link stays a link
    with explained(folder), unfinished(place.parent) as partial, unfinished(place.parent) as old:
        partial.mkdir()
        yield partial
        with held():
            if place.exists():
                os.rename(place, old)
            try:
                os.rename(partial, place)
            except OSError:
                if old.exists():
                    os.rename(old, place)
                raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or leave the old one.

    Raises:
        RunError: it cannot be written.
    """
    with new_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a JSON document."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def must_be_writable(path: Path) -> None:
    """Find out now, not after hours of answers, whether a file can be written.

    Raises:
        RunError: it cannot.
    """
    with explained(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not path.exists() or path.is_file():
            with unfinished(Path(os.path.realpath(path)).parent) as partial:
                partial.write_bytes(b"\0" * _SOME)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the libraries raise on a full disk into one error about `path`.

    Of nested blocks the outermost one explains: the paths inside are not names for the user.

    Raises:
        RunError: what was in the way.
    """
    is_inner = _IS_EXPLAINED.get()
    token = _IS_EXPLAINED.set(True)
    try:
        yield
    except Exception as error:
        is_bare = type(error) is Exception  # of the library tokenizers
        if is_inner or not (is_bare or isinstance(error, _OF_A_DISK)):
            raise
        raise cannot_write(path, error) from error
    finally:
        _IS_EXPLAINED.reset(token)


REPAIR = "Put it back from a copy, or train again in another --out folder."


def read_json(file: Path, *names: str) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    Raises:
        RunError: it holds something else, or an object without one of the `names`.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is corrupted: it is no JSON ({type(error).__name__}). {REPAIR}") from error
    if not isinstance(content, dict):
        raise RunError(f"{file} is corrupted: it holds no object. {REPAIR}")
    if lacking := [name for name in names if name not in content]:
        raise RunError(f"{file} is corrupted: it lacks {', '.join(lacking)}. {REPAIR}")
    return content
