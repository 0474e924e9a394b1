"""`cocot.report`: one HTML page about runs.

In: folders of runs or studies. Out: the path of the page, which opens offline.

    cocot.report(cocot.compare("demo"))

Read next: `experiments/html_report.py`, which writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from cocot.assets import is_bundled, locate
from cocot.errors import ConfigError
from cocot.system.files import must_be_writable

_PAGE = "report.html"

Folder = str | PathLike[str]


def report(folders: Folder | Sequence[Folder], out: Folder | None = None) -> Path:
    """Write one HTML page about runs: tables, figures, the search tree to play with.

    Args:
        folders: Run folders, folders (or the `Table`s) of `compare` and `reproduce`, or searches that `cocot probe`
            wrote; one or several.
        out: The file; by default `report.html` in the first folder.

    Returns:
        The file.

    Raises:
        ConfigError: the extra `report` is not installed, or no folder or no place for the page was named.
        RunError: a folder holds neither, or what another version wrote; or the file cannot be written.
    """
    places = [folders] if isinstance(folders, str | PathLike) else list(folders)
    if not places:
        raise ConfigError("a page is about at least one folder; name one.")
    if out is None and is_bundled(locate(places[0])):
        raise ConfigError(
            f"{places[0]} comes with cocot, and nothing is written there; say where to with --out (out=)."
        )
    try:
        from cocot.experiments.html_report import write_page
    except ImportError as error:
        raise ConfigError(f"the page takes the extra `report`: pip install 'cocot[report]' ({error}).") from error
    runs = [Path(locate(place)) for place in places]
    file = runs[0] / _PAGE if out is None else Path(out)
    must_be_writable(file)
    write_page(runs, file)
    return file
