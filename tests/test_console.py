"""Tests of the command line's streams: no terminal, reader or encoding stops the work, and messages can be taken."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from runs_support import environment

import cocot
from cocot.system.console import align, messages, say

PRINTING = "cli"  # the package
"""Results on standard output are the command line's own; `interpret/terminal.py` draws with a console of rich."""
SOURCES = sorted(Path(cocot.__file__).parent.rglob("*.py"))


def shell(line: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `cocot` is the command."""
    call = f'set -o pipefail; cocot() {{ "{sys.executable}" -m cocot "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", call], capture_output=True, text=True, check=False, cwd=folder, env=environment() | settings
    )


MAKE = "cocot data prosqa -n 3000 --out d.jsonl"


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("cocot recipes | head -1 > first.txt", 0, ""),
        ("cocot recipes --fields | head -1 > first.txt", 0, ""),
        ("cocot --help | head -1 > first.txt", 0, ""),
        (f"{MAKE} | true", 0, ""),
        (f"{MAKE} >&-", 0, ""),
        (f"{MAKE} >&- 2>&- <&-", 0, ""),
        ("cocot nonsense 2> /dev/full", 2, ""),
        ("cocot data chess --out x.jsonl 2>&1 | true", 2, ""),
        (f"{MAKE} > /dev/full", 2, "cocot: could not write to standard output: No space left on device."),
        ("ulimit -n 64; cocot env > env.json", 0, ""),
        ("unset HOME; TMPDIR=/nowhere cocot env > env.json", 0, ""),
    ],
)
def test_what_becomes_of_the_output_never_stops_the_work(line: str, code: int, err: str, tmp_path: Path) -> None:
    """A reader that has seen enough, a stream that is closed or full: the work is done; a full one is an error then."""
    done = shell(line, tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(err) if err else done.stderr == ""
    assert done.stderr.count("\n") == bool(err)
    if MAKE in line:
        assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 3000


def test_a_reader_of_messages_that_is_gone_does_not_stop_a_training(tmp_path: Path) -> None:
    """`2>&1 | head -1`, or a terminal that was closed: the bar goes nowhere, and the model is there in the end."""
    tiny = "--data.num_train 64 --data.num_valid 4 --train.batch_size 32 --train.device_batch_size 32"
    tiny += " --curriculum.first_epochs 1 --curriculum.epochs_per_stage 1"
    done = shell(f"cocot train demo {tiny} --out run 2>&1 | head -1", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_lacks_are_escaped(name: str, tmp_path: Path) -> None:
    """Results and messages hold any letter, whatever the encoding of the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "cocot", "data", "prosqa", "-n", "2", "--out", "Zoë Ω.jsonl"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env=environment() | {"PYTHONIOENCODING": name},
    )
    assert done.stdout.endswith("2 problems: Zoë Ω.jsonl\n".encode(name, "backslashreplace"))
    refused = shell("cocot data 'Ω' --out x", tmp_path, PYTHONIOENCODING=name)
    assert refused.returncode == 2
    assert "unknown task" in refused.stderr


def test_a_narrow_terminal_is_enough_for_help(tmp_path: Path) -> None:
    """Twenty columns, or none that make sense."""
    for columns in ("20", "1", "0", "-3", "many"):
        assert shell("cocot --help; cocot eval --help", tmp_path, COLUMNS=columns).returncode == 0


def test_messages_can_be_taken_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    """They are records of the logger `cocot`; the command line shows each in a line, and leaves the logger alone."""
    logger, seen = logging.getLogger("cocot"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with messages():
            logger.info("a note of %d words", 5)
            logger.warning("two\nlines")
        before = capsys.readouterr().err
        logger.info("for nobody")
    finally:
        logger.removeHandler(handler)
    assert before == "cocot: a note of 5 words\ncocot: warning: two lines\n"
    assert seen == ["a note of 5 words", "two\nlines"]
    assert capsys.readouterr().err == ""
    say("done")
    assert capsys.readouterr().err == "cocot: done\n"


def test_a_table_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as it needs, uncoloured, and what looks like markup is text, whatever the terminal asks for."""
    for name, value in {"COLUMNS": "10", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    rows = [("method", "accuracy", "note"), ("[bold]cot[/]", "50.0%", ""), ("coconut", "100.0%", "x" * 300)]
    head, first, second = align(rows).splitlines()
    assert head == "method        accuracy" + " " * 298 + "note"
    assert first == "[bold]cot[/]     50.0%"
    assert second == "coconut         100.0%  " + "x" * 300


def test_a_column_of_a_table_is_as_wide_as_it_looks() -> None:
    """Characters of two columns, and marks of none, do not push the other cells aside."""
    assert align([("a", "token"), ("1", "日本"), ("2", "e\u0301")]).splitlines() == [
        *("a  token", "1   日本", "2      e\u0301"),
    ]
    assert align([("a",), ("a\tb",)]).split() == ["a", "a", "b"]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_the_command_line_prints(path: Path) -> None:
    """Everywhere else a message is a record of the one logger."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    printed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    if path.name == "console.py":
        assert len(printed) == 1, "`say` is the only place"
    elif path.parent.name != PRINTING:
        assert not printed, f"{path.name} prints in line {printed[0].lineno}"
    loggers = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger"]
    names = {ast.literal_eval(call.args[0]) for call in loggers if call.args}
    assert names <= {"cocot", "bitsandbytes"}, "another library's logger is only silenced, by the command line"
