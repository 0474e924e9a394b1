"""The models that come with cocot, by name. They are read where they lie, in the package; nothing is written there.

    locate("prosqa-small")      # its run folder
    locate("runs/mine")         # any other model is what it is

Read next: `modeling/loading.py`.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def bundled_models() -> list[str]:
    """Their names."""
    return sorted(file.parent.name for file in _FOLDER.glob("*/config.yaml"))


def locate(source: str | Path) -> str:
    """Where a model is: `source` itself; for the name of a bundled model, its folder.

    A folder of that name in the current folder comes first.
    """
    return str(_FOLDER / source) if not Path(source).exists() and str(source) in bundled_models() else str(source)


def is_bundled(source: str | Path) -> bool:
    """Whether a model is a bundled one."""
    return Path(source).resolve().is_relative_to(_FOLDER.resolve())
