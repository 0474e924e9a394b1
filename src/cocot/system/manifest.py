"""Seals on folders of weights: which files were written, and the sha256 of each.

In: a folder that is whole. Out: a file `checksums.json` in it. A folder without one is half-written, or none of ours.
A file that was cut off, changed or taken from elsewhere since is found before anything of the folder is used.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from cocot.errors import RunError
from cocot.system.files import write_json

MANIFEST = "checksums.json"
_TICK = 2 * 10**9  # nanoseconds: a file that changes again within the clock of its file system looks the same
_known: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Digests of files that were read before, with what `os.stat` said of each then."""


def write_manifest(folder: Path) -> None:
    """Declare a folder whole, as it is now."""
    sums = {path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)}
    write_json(folder / MANIFEST, sums)


def has_manifest(folder: Path) -> bool:
    """Whether the folder was declared whole."""
    return (folder / MANIFEST).is_file()


def corrupted_files(folder: Path) -> list[str]:
    """The files of a folder that are not what its manifest says; none if it has no manifest."""
    if not has_manifest(folder):
        return []
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict) or not sums:
        return [MANIFEST]
    return [name for name, digest in sums.items() if not (folder / name).is_file() or _digest(folder / name) != digest]


def check(folder: Path) -> None:
    """Refuse a folder that is corrupted.

    Raises:
        RunError: with the names of the files.
    """
    if corrupted := corrupted_files(folder):
        raise RunError(
            f"{folder} is corrupted: {', '.join(corrupted)} is not what was written there (sha256 in {MANIFEST}). Put "
            f"the file back from a copy. If you changed it yourself and mean it, remove {MANIFEST}."
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _digest(path: Path) -> str:
    """The sha256 of a file. One that has not changed since this process last read it is not read again."""
    place, before = path.absolute(), _signature(path)
    signature, digest = _known.get(place, ((), ""))
    if signature == before:
        return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed_at = before[-1]
    if _signature(path) == before and time.time_ns() - changed_at > _TICK:
        _known[place] = before, digest
    return digest


def _signature(path: Path) -> tuple[int, ...]:
    """What differs once a file has been written to or replaced; its last part is a time that no program can set."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
