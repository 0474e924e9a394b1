"""Seals on folders of weights: which files were written, and the sha256 of each.

In: a folder that is whole. Out: a file `checksums.json` in it. A folder without one is half-written, or none of ours.
A file that was cut off, changed or taken from elsewhere since is found before anything of the folder is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cocot.errors import RunError
from cocot.writing import write_json

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Declare a folder whole, as it is now."""
    sums = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
    write_json(folder / SEAL, sums)


def is_sealed(folder: Path) -> bool:
    """Whether the folder was declared whole."""
    return (folder / SEAL).is_file()


def damage(folder: Path) -> list[str]:
    """The files of a sealed folder that are not what was sealed; none if it was never sealed."""
    if not is_sealed(folder):
        return []
    try:
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except ValueError:
        sums = None
    if not isinstance(sums, dict) or not sums:
        return [SEAL]
    return [name for name, digest in sums.items() if not (folder / name).is_file() or _digest(folder / name) != digest]


def check(folder: Path) -> None:
    """Refuse a folder that is damaged.

    Raises:
        RunError: with the names of the files.
    """
    if damaged := damage(folder):
        raise RunError(
            f"{folder} is damaged: {', '.join(damaged)} is not what was written there (sha256 in {SEAL}). Put the file "
            f"back from a copy. If you changed it yourself and mean it, remove {SEAL}."
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
