"""The search tree of one problem for notebooks: a drawing for each number of thoughts, side by side.

In: what `drawing.py` gives. Out: HTML without scripts.
"""

from __future__ import annotations

import math
from typing import Any
from xml.etree.ElementTree import Element

from markupsafe import Markup

from cocot.display.html import beside, figure, heading, paragraph
from cocot.display.svg import BLUE, GREEN, ORANGE, add, canvas, finished, write

_RADIUS = 15.0
_MOST_LETTERS = 12
_LEGEND = (
    "A disc fills with the probability that the node is the next step. Green ring: the answer; dashed orange ring: the "
    "other option; green edges: the way to the answer; underlined: what the model chose."
)


def tree_html(problem: dict[str, Any], index: int) -> Markup:
    """A problem, its tree after each number of thoughts, and what the model writes from there."""
    panels = []
    for k, (output, is_correct) in enumerate(zip(problem["outputs"], problem["correct"], strict=True)):
        text = f"after {k} thoughts: {output} [{'right' if is_correct else 'wrong'}]"
        panels.append(figure(_tree(problem, k), text) if "names" in problem else paragraph(text))
    legend = paragraph(_LEGEND) if "names" in problem else Markup("")
    return Markup("").join([heading(f"problem {index}"), paragraph(problem["question"]), beside(panels), legend])


def _tree(problem: dict[str, Any], k: int) -> Markup:
    values, names = problem["values"][k], problem["names"]
    width, height = problem["size"]
    likeliest = max(range(len(names)), key=values.__getitem__)
    description = f"After {k} thoughts the likeliest next node is {names[likeliest]}, {values[likeliest]:.0%}."
    svg = canvas(width + 4 * _RADIUS, height + 5 * _RADIUS, description)
    moved = add(svg, "g", transform=f"translate({2 * _RADIUS} {1.5 * _RADIUS})")
    for edge in problem["edges"]:
        _draw_edge(moved, problem, tuple(edge))
    for node in range(len(names)):
        _draw_node(moved, problem, node, k)
    return finished(svg)


def _draw_edge(parent: Element, problem: dict[str, Any], edge: tuple[int, int]) -> None:
    (x1, y1), (x2, y2) = (problem["places"][node] for node in edge)
    length = max(1.0, math.hypot(x2 - x1, y2 - y1))
    dx, dy = _RADIUS * (x2 - x1) / length, _RADIUS * (y2 - y1) / length  # from ring to ring
    line = add(parent, "line", x1=x1 + dx, y1=y1 + dy, x2=x2 - dx, y2=y2 - dy)
    is_true = edge in map(tuple, problem["way"])
    style = {"stroke": GREEN, "stroke-width": "3"} if is_true else {"stroke": "currentColor", "opacity": "0.45"}
    for name, value in style.items():
        line.set(name, value)


def _draw_node(parent: Element, problem: dict[str, Any], node: int, k: int) -> None:
    value, name = problem["values"][k][node], problem["names"][node]
    group = add(parent, "g", transform="translate({} {})".format(*problem["places"][node]))
    ring: dict[str, float | str] = {"stroke": "currentColor", "stroke_width": 1.2}
    if node == problem["target"]:
        ring = {"stroke": GREEN, "stroke_width": 3.5}
    elif node == problem["distractor"]:
        ring = {"stroke": ORANGE, "stroke_width": 3.5, "stroke_dasharray": "4 3"}
    add(group, "circle", r=_RADIUS * math.sqrt(value), fill=BLUE, opacity=0.7)
    add(group, "circle", r=_RADIUS, fill="none", **ring)
    shown = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
    text = write(group, shown, 0, 4, size=12)
    if node == problem["chosen"][k]:
        text.set("font-weight", "bold")
        text.set("text-decoration", "underline")
    write(group, f"{value:.2f}", 0, _RADIUS + 12, size=10).set("opacity", "0.75")
