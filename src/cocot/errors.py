"""The exceptions of cocot. Each message says what is wrong, the value that was got, and what to do.

The command line prints a `CocotError` in one line and exits with 2; every other exception is a bug of ours.
"""

from __future__ import annotations

from signal import SIGINT


class CocotError(Exception):
    """Base of every error that cocot raises on purpose."""

    exit_code = 2


class ConfigError(CocotError):
    """A setting is unknown, contradictory or impossible."""


class DataError(CocotError):
    """A problem file or a problem in it cannot be used."""


class ModelError(CocotError):
    """A model or checkpoint cannot think, or is used in a way that would give wrong numbers."""


class RunError(CocotError):
    """A run folder is corrupted, belongs to another run, or the run cannot continue."""


class Interrupted(RunError):
    """A signal stopped the run; its state is saved, and the same call resumes it.

    Attributes:
        exit_code: 128 + the number of the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal.
    """

    def __init__(self, message: str, number: int = SIGINT) -> None:
        """Say where the run stopped, and by which signal."""
        super().__init__(message)
        self.exit_code = 128 + number
