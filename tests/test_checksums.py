"""Promises of seals: whatever happens to a file of a sealed folder is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cocot.checksums import SEAL, check, damage, is_sealed, seal
from cocot.errors import RunError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of two files, one in a folder below."""
    (tmp_path / "below").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "below" / "state").write_bytes(b"state")
    seal(tmp_path)
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
    assert damage(folder) == [name]
    with pytest.raises(RunError, match=f"{name} is not what was written there .* Put the file back from a copy"):
        check(folder)
    seal(folder)
    check(folder)


def test_a_torn_seal_is_damage(folder: Path) -> None:
    """It proves nothing about the files, so they are not used."""
    for text in ((folder / SEAL).read_text()[:-10], "null", "{}"):
        (folder / SEAL).write_text(text)
        assert damage(folder) == [SEAL]


def test_a_folder_that_was_never_sealed_is_not_ours_to_judge(tmp_path: Path) -> None:
    """A model of somebody else has no seal."""
    (tmp_path / "weights").write_bytes(b"x")
    assert not is_sealed(tmp_path)
    check(tmp_path)
