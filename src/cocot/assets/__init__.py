"""The models that come with cocot, by name. They are read where they lie, in the package; nothing is written there.

    locate("prosqa-small")      # its run folder
    locate("runs/mine")         # any other model is what it is

Read next: `modeling/loading.py`.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

_FOLDER = Path(__file__).parent


def bundled_models() -> list[str]:
    """Their names."""
    return sorted(file.parent.name for file in _FOLDER.glob("*/config.yaml"))


def locate(source: str | PathLike[str]) -> str:
    """Where a model is: `source` itself; for the name of a bundled model, its folder.

    A folder of that name in the current folder comes first.
    """
    name = fspath(source)
    return str(_FOLDER / name) if not Path(name).exists() and name in bundled_models() else name


def is_bundled(source: str | PathLike[str]) -> bool:
    """Whether a model is a bundled one."""
    return Path(source).resolve().is_relative_to(_FOLDER.resolve())
