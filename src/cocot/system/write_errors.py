"""Why a file of a run could not be written, and what to do about it.

In: whatever a library raised while it wrote. Out: a `RunError` in one line, which names the cause and guesses none.
"""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from cocot.errors import RunError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors passes the number on in its text alone
_KEPT = "What was saved before is kept"


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error to raise when a file of a run could not be written: what happened, and what to do about that."""
    number = _error_number(error)
    if number in _NO_ROOM:
        way_out = f"{_KEPT}; make room, and give the same command again, or choose another --out folder."
        return RunError(f"could not write {path}: the disk is full, or your quota is ({_one_line(error)}). {way_out}")
    if number in _READ_ONLY:
        way_out = f"{_KEPT}; make it writable, or choose another --out folder."
        return RunError(f"could not write {path}: it is read-only for this user ({_one_line(error)}). {way_out}")
    return RunError(
        f"could not write {path}: {type(error).__name__}: {_one_line(error)}{_room(path, error)}. {_KEPT}; "
        "the same command resumes from it."
    )


def _error_number(error: BaseException | None) -> int | None:
    """The operating system's number of an error, or of the one that it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _RUST_ERROR.search(str(error)):
            return int(found[1])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _room(path: Path, error: Exception) -> str:
    """PyTorch's writer of files does not say why it failed: what is known of the disk stands in for that."""
    if not any(name in str(error) for name in ("PytorchStreamWriter", "inline_container")):
        return ""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return f" (PyTorch does not say why; {free / 2**20:,.0f} MiB are free there, make room if that is too little)"
