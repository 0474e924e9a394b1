"""A page about runs: one HTML file that opens offline, with tables, figures and the search tree to play with.

In: folders of runs or studies. Out: the file.

    write_page([Path("runs/demo")], Path("runs/demo/report.html"))

What a folder does not hold is left out, and a sentence says what would make it.
Read next: `experiments/charts.py` (the figures), `templates/` (the page and its script).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment
from markupsafe import Markup

from cocot.errors import RunError
from cocot.experiments import charts
from cocot.experiments.tables import (
    SIDE_BY_SIDE,
    cells_side_by_side,
    read_table,
    sections,
    shortcuts,
)
from cocot.interpret.drawing import drawing
from cocot.interpret.search_data import SearchData
from cocot.interpret.terminal import tables as tables_of
from cocot.system.files import read_json, write_text
from cocot.training.run_folder import CONFIG, RunFolder

_MOST_TREES = 50


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        folders: Each a run folder, a folder of `cocot compare` or `cocot reproduce` with several, or a search that
            `cocot probe` wrote.
        out: The HTML file.

    Raises:
        RunError: a folder holds neither, or a table or a search that another version wrote; or the file cannot be
            written.
    """
    tables, figures, specs = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, Any]()
    notes, lines = list[str](), list[str]()
    origin = dict[str, str]()
    runs, studies = dict[str, RunFolder](), dict[str, list[dict[str, Any]]]()
    has_own_names = len({folder.resolve().name for folder in folders}) == len(folders)
    for folder in folders:
        runs |= _runs(folder, is_only=len(folders) == 1)
        table = read_table(folder)
        if table is None:
            continue
        studies[_name(folder, has_own_names)] = table["rows"]
        notes.append(table["note"])
        tables += [
            {"title": f"{part.title} of {folder}" if number == 0 else part.title, "cells": part.cells}
            for number, part in enumerate(sections(table))
        ]
        lines += shortcuts(table)
        origin |= _origin(table["environment"])
        text = "Dots are means, ticks are seeds, lines are 95 % intervals (with several seeds they cover those, too)."
        _add(figures, specs, "Accuracy", charts.accuracy_by_row(table["rows"]), text)
        title, text = "Accuracy against tokens", "What a method buys with its words. Bars are 95 % intervals."
        _add(figures, specs, title, charts.accuracy_and_tokens(table["rows"]), text)
    tables = [*_side_by_side(studies), *tables]
    logs = {name: run.read_log() for name, run in runs.items()}
    if any(logs.values()):
        text = "Each run over its optimizer steps; dashed rules mark where a stage begins."
        _add(figures, specs, "Training", charts.training(logs), text)
    missing = [
        f"{name} is not finished: its model is not there yet." for name, run in runs.items() if not run.model.exists()
    ]
    places = {name: run.path / "search" for name, run in runs.items()}
    places = {name: place for name, place in places.items() if place.exists()}
    places |= {_name(folder, len(folders) == 1): folder for folder in folders if SearchData.is_in(folder)}
    searches = {name: SearchData.read(place) for name, place in places.items()}
    for name, search in searches.items():
        missing += _add_search(figures, specs, name, search)
    if not searches:
        missing.append("No run was probed, so there is no search to see: `cocot probe RUN` adds it.")
    for run in runs.values():
        if run.about.exists() and not origin:
            origin = _origin(read_json(run.about, "versions", "commit", "platform"))
    trees = {f"search{number}": _trees(search) for number, search in enumerate(searches.values())}
    page = _template("page.html").render(
        title=", ".join(folder.resolve().name for folder in folders),
        note=" ".join(filter(None, notes)),
        tables=tables,
        shortcuts=lines,
        figures=figures,
        searches=[
            {"id": f"search{number}", "name": name, "most": len(search.values) - 1, "tables": tables_of(search)}
            for number, (name, search) in enumerate(searches.items())
        ],
        missing=missing,
        origin=origin.items(),
        data=_json({"specs": specs, "searches": trees}),
        bundle=_bundle(),
        script=Markup(_source("page.js")),
    )
    write_text(out, page)


def _side_by_side(studies: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One table of all studies, where there are several of the same rows."""
    texts = cells_side_by_side(studies)
    return [{"title": SIDE_BY_SIDE, "cells": texts}] if texts else []


def _runs(folder: Path, is_only: bool) -> dict[str, RunFolder]:
    """The run folders in a folder, itself or below, by name; by path where there are other folders."""
    files = (file.relative_to(folder) for file in folder.rglob(CONFIG))
    found = sorted(file.parent for file in files if not any(part.startswith(".") for part in file.parts))
    if not found and not SearchData.is_in(folder):
        raise RunError(
            f"{folder} holds no run; give the folder of `cocot train`, `cocot compare`, `cocot reproduce` or "
            "`cocot probe --out`."
        )

    def name(path: Path) -> str:
        return str(path) if is_only and path.parts else _name(folder / path, is_only)

    return {name(path): RunFolder(folder / path) for path in found}


def _name(folder: Path, is_only: bool) -> str:
    """What a folder is called on the page: by its path where there are others."""
    return folder.resolve().name if is_only else str(folder)


def _origin(environment: dict[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items())
    return {"commit": str(environment["commit"]), "versions": versions, "machine": str(environment["platform"])}


def _add(figures: list[dict[str, Any]], specs: dict[str, Any], title: str, chart: Any, caption: str) -> None:
    name = f"chart{len(specs)}"
    spec = chart.to_dict()
    spec["config"] = _COLOURS_OF_THE_PAGE
    specs[name] = spec
    figures.append({"id": name, "title": title, "caption": caption, "wide": "hconcat" in spec})


_COLOURS_OF_THE_PAGE = {
    "background": None,
    "view": {"stroke": "transparent"},
    "axis": {key: "currentColor" for key in ("labelColor", "titleColor", "domainColor", "tickColor")}
    | {"gridColor": "currentColor", "gridOpacity": 0.15},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor"},
}
"""Drawn as SVG, `currentColor` is the page's ink, in light and in dark."""


def _add_search(figures: list[dict[str, Any]], specs: dict[str, Any], name: str, search: SearchData) -> list[str]:
    """Add the figures that the search has enough for; returns a sentence on those it has not."""
    text = "The model thinks k thoughts and then continues in words. Bars are 95 % intervals."
    _add(figures, specs, f"Accuracy of {name} after its thoughts", charts.answers(search), text)
    if not search.node.size:
        return [f"The problems that {name} was probed on have no graph: no tree, and no figure about nodes."]
    text = (
        "What the model writes after k thoughts, graded against the problem's graph (arXiv 2412.06769, section 5). "
        "Whole and partial paths count; with no step left to write only a label remains."
    )
    _add(figures, specs, f"What {name} writes after its thoughts", charts.categories(search), text)
    if len(search.values) == 1:
        return [f"{name} was probed without thoughts: no figure about what they hold."]
    for height, definition in (("height_shortest", "nearest"), ("height_longest", "farthest")):
        text = (
            "Nodes that the next step can lead to. A low node is easily seen through: a wrong one of height 0 is a leaf"
            f" that is not asked for. Height is the way to the {definition} leaf; the paper uses both definitions."
        )
        _add(
            figures, specs, f"Value by height, {definition} leaf: {name}", charts.value_by_height(search, height), text
        )
    text = (
        "How much of the probability the likeliest one, two and three nodes hold together. Where the top one holds"
        " little and the top three nearly all, several branches are kept open."
    )
    _add(figures, specs, f"Branches held at once: {name}", charts.parallelism(search), text)
    return []


def _trees(search: SearchData) -> list[dict[str, Any]]:
    """The first problems as the page's script takes them."""
    return [drawing(search, index) for index in range(min(_MOST_TREES, len(search.problems)))]


def _json(value: Any) -> Markup:
    """JSON for a script element, which no text in it can end."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed, to stand in a script element."""
    make: Any = vl_convert.javascript_bundle  # its stub asks for an argument that has a default
    return Markup(make().replace("</script", "<\\/script"))


def _source(name: str) -> str:
    return files("cocot.experiments").joinpath("templates", name).read_text(encoding="utf-8")


def _template(name: str) -> Any:
    return Environment(autoescape=True).from_string(_source(name))
