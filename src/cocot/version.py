"""The version of cocot, said here alone: `pyproject.toml`, `cocot --version` and saved models read it."""

__version__ = "0.1.0"
