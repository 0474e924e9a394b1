"""Tests of writing: whole or not there, whoever else writes there, and whatever stands at the place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cocot.errors import RunError
from cocot.system.files import is_unfinished, must_be_writable, new_file, new_folder, unfinished, write_text


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    """A process that is gone finishes nothing; one that runs, here or on another machine, is left alone."""
    with unfinished(tmp_path) as mine:
        stem = mine.name.rsplit("-", 2)[0]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {"gone": f"{stem}-{gone.pid}-0.partial", "parent": f"{stem}-{os.getppid()}-0.partial"}
    names |= {"far": f".cocot-elsewhere-{gone.pid}-0.partial", "odd": f"{stem}-x-y.partial"}
    for name in names.values():
        (tmp_path / name).mkdir()
        assert is_unfinished(tmp_path / name)
    write_text(tmp_path / "file", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"file", names["parent"], names["far"], names["odd"]}


def test_many_writers_at_once_leave_one_whole_file_and_folder(tmp_path: Path) -> None:
    """Each writes under a name of its own; the last one to finish wins."""
    texts = [str(number) * 100_000 for number in range(8)]

    def write(text: str) -> None:
        write_text(tmp_path / "file", text)
        try:
            with new_folder(tmp_path / "folder") as folder:
                write_text(folder / "file", text)
        except RunError:
            pass  # two renamed at the same moment

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts
    assert (tmp_path / "folder" / "file").read_text() in texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is replaced, also if it leads to nothing yet."""
    (tmp_path / "far").mkdir()
    (tmp_path / "folder").symlink_to("far")
    for name in ("file", "new"):
        (tmp_path / name).symlink_to(f"far.{name}")
    (tmp_path / "far.file").write_text("old")
    for name in ("file", "new"):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / f"far.{name}").read_text() == "text"
    with new_folder(tmp_path / "folder") as folder:
        (folder / "file").touch()
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "far" / "file").exists()


def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """`--out /dev/null` leaves /dev/null what it is; `--out >(gzip)` works."""
    write_text(Path(os.devnull), "text")
    must_be_writable(Path(os.devnull))
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = list[str]()
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["ü", "a b'\"$", "n" * 255, "-x", "..."])
def test_any_name_is_a_name(tmp_path: Path, name: str) -> None:
    """As long as the file system takes it: no longer name is made of it on the way."""
    write_text(tmp_path / name / name, "text")
    assert (tmp_path / name / name).read_text() == "text"
    with new_folder(tmp_path / name) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["file/below", "folder", "n" * 256])
def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path, place: str) -> None:
    """Below a file, a folder where a file should be, a name that is too long: a RunError that names it."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for write in (must_be_writable, lambda path: write_text(path, "text")):
        with pytest.raises(RunError, match=r"could not write .*: .*\. What was saved before is kept") as caught:
            write(tmp_path / place)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_outermost_place_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Not the one for the time being inside; and a folder by such a name explains its own errors."""
    (tmp_path / "file").touch()

    def write(folder: Path) -> None:
        with new_folder(folder) as place:
            (place / "below").touch()
            write_text(place / "below" / "file", "text")

    with unfinished(tmp_path) as other:
        for folder in (tmp_path / "folder", other / "folder"):
            with pytest.raises(RunError, match=f"could not write {folder}: "):
                write(folder)


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    """A bug in what is written is not called a full disk; the old file stays."""
    write_text(tmp_path / "file", "old")
    for error in (ValueError("bug"), KeyError("bug"), RunError("known")):
        for make in (new_file, new_folder):
            with pytest.raises(type(error), match=r"bug|known"), make(tmp_path / "file"):
                raise error
    assert (tmp_path / "file").read_text() == "old"
