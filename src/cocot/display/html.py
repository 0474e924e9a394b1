"""Tables and texts as HTML for a notebook. All text is escaped.

In: rows of text cells. Out: HTML in the ink of whatever it is put on.

    block(heading("Results"), table([("method", "accuracy"), ("cot", "80.6%")]))

Read next: `svg.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

# `currentColor` is the ink of the place, in light and in dark; a style element would reach the rest of the notebook.
_TABLE = "color:inherit;border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;margin:.3em 0 1em"
_CELL = "padding:.2em .8em .2em 0;background:none;border:0;border-bottom:1px solid rgba(128,128,128,.4);text-align:"


def block(*parts: Markup) -> str:
    """Parts below each other, as `_repr_html_` returns them."""
    style = "color:inherit;max-width:100%;overflow-x:auto;line-height:1.45"
    return Markup('<div style="{}">{}</div>').format(style, Markup("").join(parts))


def heading(text: str) -> Markup:
    """A line above a part."""
    return Markup('<p style="margin:.6em 0 .2em"><strong>{}</strong></p>').format(text)


def paragraph(text: str) -> Markup:
    """A line of text, paler than a heading; line breaks are kept."""
    style = "margin:.2em 0 .6em;opacity:.8;white-space:pre-wrap;overflow-wrap:anywhere"
    return Markup('<p style="{}">{}</p>').format(style, text)


def table(rows: Sequence[Sequence[str]]) -> Markup:
    """Rows of cells, the heading first; the first column to the left, the others to the right."""
    head, *body = rows
    return Markup('<table style="{}"><thead>{}</thead><tbody>{}</tbody></table>').format(
        _TABLE, _row(head, "th"), Markup("").join(_row(cells, "td") for cells in body)
    )


def beside(parts: Sequence[Markup]) -> Markup:
    """Parts beside each other, in as many lines as it takes."""
    return Markup('<div style="display:flex;flex-wrap:wrap;gap:1em">{}</div>').format(Markup("").join(parts))


def figure(drawing: Markup, caption: str) -> Markup:
    """A drawing with a line below it."""
    style = "margin:0;max-width:100%"
    text = "opacity:.8;font-size:.9em;max-width:26em;overflow-wrap:anywhere"
    return Markup('<figure style="{}">{}<figcaption style="{}">{}</figcaption></figure>').format(
        style, drawing, text, caption
    )


def _row(cells: Sequence[str], kind: str) -> Markup:
    sides = ["left", *["right"] * (len(cells) - 1)]
    scope = Markup(' scope="col"') if kind == "th" else Markup("")
    return Markup("<tr>{}</tr>").format(
        Markup("").join(
            Markup('<{0}{1} style="{2}{3}">{4}</{0}>').format(Markup(kind), scope, _CELL, side, cell)
            for side, cell in zip(sides, cells, strict=True)
        )
    )
