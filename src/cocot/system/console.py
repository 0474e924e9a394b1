"""The streams of the command line: results on standard output, messages on standard error, a line each.

A reader that has seen enough (`| head`), a terminal that is gone or a full disk behind a stream never stops the work.
Characters that the terminal's encoding lacks are written as escapes.
Library modules log to `logging.getLogger("cocot")`; here the command line shows what they log.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LOGGER = logging.getLogger("cocot")


class Stream(io.TextIOWrapper):
    """A standard stream; once it cannot be written to, the error is kept in `error`, and what follows is lost."""

    error: OSError | None = None
    is_at_line_start: bool = True

    def __init__(self, number: int, encoding: str) -> None:
        """Write to the file descriptor `number`."""
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        super().__init__(raw, encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """As for every stream; never raises OSError."""
        if text:
            self.is_at_line_start = text.endswith("\n")
        try:
            return super().write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        """As for every stream; never raises OSError."""
        try:
            super().flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def take_streams() -> None:
    """Put our streams in the place of Python's. A stream that was closed (`>&-`) leads nowhere."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get this number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, Stream(number, getattr(getattr(sys, name), "encoding", "utf-8")))


def lost_output() -> OSError | None:
    """Why results could not be written to standard output; None if they were, or if the reader had seen enough."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    return None if error is None or error.errno == errno.EPIPE else error


def say(message: str) -> None:
    """Write a message to standard error: one line of its own, below a bar that stands there."""
    start = "" if getattr(sys.stderr, "is_at_line_start", True) else "\n"
    print(f"{start}cocot: {' '.join(message.splitlines())}", file=sys.stderr)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        say(level + record.getMessage())


@contextmanager
def messages() -> Iterator[None]:
    """Show what cocot logs on standard error, from notes upwards."""
    handler, level = _Lines(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in plain text: the first column to the left, the others to the right.

    The same in a terminal, a pipe and a file: no colours, no frames, never wrapped. Wide characters take two columns.
    """
    from rich.console import Console  # here, because every command loads this module, `cocot --help` too
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for index in range(len(rows[0])):
        table.add_column(justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell.expandtabs()) for cell in row))
    lines = Console(file=io.StringIO(), width=sys.maxsize, color_system=None).render_lines(table, pad=False)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)
