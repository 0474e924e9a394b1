"""The exceptions of cocot. Each message says what is wrong, the value that was got, and what to do.

The command line prints a `CocotError` in one line and exits with 2; every other exception is a bug of ours.
"""

from __future__ import annotations


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
    """A run folder is damaged, belongs to another run, or the run cannot go on."""


class Interrupted(RunError):
    """A signal stopped the run; its state is saved and the same call goes on."""

    exit_code = 130
