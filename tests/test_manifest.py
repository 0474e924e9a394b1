"""Tests of seals: whatever happens to a file of a sealed folder is found, and named."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocot.errors import RunError
from cocot.system import manifest
from cocot.system.manifest import MANIFEST, check, corrupted_files, has_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of two files, one in a folder below."""
    (tmp_path / "below").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "below" / "state").write_bytes(b"state")
    write_manifest(tmp_path)
    return tmp_path


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "a bit": flip_a_bit,
    "another file's content": lambda file: file.write_bytes(b"other"),
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["weights", "below/state"])
def test_damage_is_named(folder: Path, name: str, kind: str) -> None:
    """The file, and what to do; a whole folder passes."""
    check(folder)
    DAMAGE[kind](folder / name)
    assert corrupted_files(folder) == [name]
    with pytest.raises(RunError, match=f"{name} is not what was written there .* Put the file back from a copy"):
        check(folder)
    write_manifest(folder)
    check(folder)


def test_a_torn_seal_is_damage(folder: Path) -> None:
    """It proves nothing about the files, so they are not used."""
    for text in ((folder / MANIFEST).read_text()[:-10], "null", "{}"):
        (folder / MANIFEST).write_text(text)
        assert corrupted_files(folder) == [MANIFEST]


def test_a_folder_that_was_never_sealed_is_not_ours_to_judge(tmp_path: Path) -> None:
    """A model of somebody else has no seal."""
    (tmp_path / "weights").write_bytes(b"x")
    assert not has_manifest(tmp_path)
    check(tmp_path)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed, as they are."""
    names: list[str] = []
    real = hashlib.file_digest

    def noted(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def put_in_place(file: Path) -> None:
    """Another content of the same size and the same time of change."""
    times = file.stat()
    other = file.with_name("other")
    other.write_bytes(bytes(len(file.read_bytes())))
    os.replace(other, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_over(file: Path) -> None:
    """The same, in the same file."""
    times = file.stat()
    with file.open("r+b") as opened:
        opened.write(bytes(times.st_size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [put_in_place, write_over, *DAMAGE.values()])
def test_an_unchanged_file_is_read_once_and_a_changed_one_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, digests: list[str], change: Callable[[Path], object]
) -> None:
    """However it was changed: also to the same size, with its time of change put back."""
    monkeypatch.setattr(manifest, "_TICK", -1)  # without waiting for the files to be old
    check(folder)
    check(folder)
    assert sorted(digests) == ["state", "weights"]
    time.sleep(0.1)  # more than the clock of the file system
    change(folder / "weights")
    assert corrupted_files(folder) == ["weights"]


@pytest.mark.parametrize("change", [put_in_place, write_over])
def test_a_file_that_was_just_written_is_read_again(
    folder: Path, digests: list[str], change: Callable[[Path], object]
) -> None:
    """Its next change might fall within the same tick of the clock and look like none."""
    check(folder)
    change(folder / "weights")
    assert corrupted_files(folder) == ["weights"]
    assert digests.count("weights") == 2
