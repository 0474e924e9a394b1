"""Drawings as SVG: a curve over steps with its scales, and what every drawing is made of.

In: points. Out: an `svg` element in the ink of whatever it is put on.
Read next: `interpret/tree_html.py`, which draws trees with the same pen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

# Of Okabe and Ito's hues, in tones that stand out on light and on dark ground.
BLUE, ORANGE, GREEN = "#3a92d4", "#e0802a", "#1aa67c"
_WIDTH, _HEIGHT = 380.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 370.0, 26.0, 172.0
_LETTER = 5.5  # width of a letter of the smallest text

Points = Sequence[tuple[float, float]]


def canvas(width: float, height: float, description: str) -> Element:
    """An empty drawing, with a description for those who cannot see it."""
    style = "max-width:100%;height:auto;font-family:system-ui,sans-serif"
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "style": style, **size})
    SubElement(svg, "title").text = _printable(description)
    return svg


def add(parent: Element, kind: str, **attributes: float | str) -> Element:
    """Add an element; `_` in the name of an attribute stands for `-`."""
    texts = {
        name.strip("_").replace("_", "-"): f"{value:.5g}" if isinstance(value, float | int) else value
        for name, value in attributes.items()
    }
    return SubElement(parent, kind, texts)


def write(parent: Element, text: str, x: float, y: float, anchor: str = "middle", size: float = 11) -> Element:
    """Add a text whose `anchor` (start, middle or end) is at a point."""
    element = add(parent, "text", x=x, y=y, fill="currentColor", font_size=size, text_anchor=anchor)
    element.text = _printable(text)
    return element


def _printable(text: str) -> str:
    """Without control characters, which XML does not hold."""
    return "".join(letter for letter in text if letter.isprintable())


def finished(svg: Element) -> Markup:
    """The drawing as text."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def curve(title: str, points: Points, marks: Sequence[tuple[float, str]], colour: str, is_share: bool) -> Markup:
    """A line through points, with marks where something begins.

    Args:
        title: What is drawn, above it.
        points: Steps and values.
        marks: Steps at which something begins, and what.
        colour: Of the line.
        is_share: Whether values are shares of 1; else they are positive, and drawn on a logarithmic scale.
    """
    last = max([1.0, *(step for step, _ in points)])
    svg = canvas(_WIDTH, _HEIGHT, f"{title} over {last:,.0f} steps, at the end {_shown(points[-1][1], is_share)}")
    write(svg, title, _LEFT, 14, "start", 12)
    place, ticks = _shares() if is_share else _logarithms([value for _, value in points])
    for tick in ticks:
        add(svg, "line", x1=_LEFT, x2=_RIGHT, y1=place(tick), y2=place(tick), stroke="currentColor", opacity=0.15)
        write(svg, _shown(tick, is_share), _LEFT - 6, place(tick) + 4, "end")

    def across(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / last

    for tick, anchor in ((0.0, "start"), (last / 2, "middle"), (last, "end")):
        write(svg, f"{tick:,.0f}", across(tick), _BOTTOM + 16, anchor)
    write(svg, "optimizer step", (_LEFT + _RIGHT) / 2, _BOTTOM + 32)
    ends = [step for step, _ in marks[1:]] + [last]
    for (step, name), end in zip(marks, ends, strict=False):
        x = across(step)
        add(svg, "line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM, stroke="currentColor", opacity=0.5, stroke_dasharray="2 3")
        if len(name) * _LETTER < across(end) - x:
            write(svg, name, x + 3, _TOP + 7, "start", 9).set("opacity", "0.8")
    path = " ".join(f"{across(step):.1f},{place(value):.1f}" for step, value in points)
    add(svg, "polyline", points=path, fill="none", stroke=colour, stroke_width=2, stroke_linejoin="round")
    add(svg, "circle", cx=across(points[-1][0]), cy=place(points[-1][1]), r=3, fill=colour)
    return finished(svg)


def _shown(value: float, is_share: bool) -> str:
    return f"{value:.0%}" if is_share else f"{value:.2g}"


def _shares() -> tuple[Callable[[float], float], list[float]]:
    return lambda value: _BOTTOM - (_BOTTOM - _TOP) * value, [0.0, 0.25, 0.5, 0.75, 1.0]


def _logarithms(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """Heights and ticks of a scale from the power of ten below all values to the one above."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)

    def place(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return _BOTTOM - (_BOTTOM - _TOP) * min(1.0, share)

    return place, [10.0**power for power in range(low, high + 1)]
