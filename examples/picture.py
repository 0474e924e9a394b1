"""Draw the search tree of the README: what the bundled model thinks of one problem after no thought, one, and two.

`python examples/picture.py` writes docs/images/search_tree_light.svg and search_tree_dark.svg.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import cocot

IMAGES = Path(__file__).parent.parent / "docs" / "images"
INKS = {"light": "#1f2328", "dark": "#e6edf3"}
SVG = "http://www.w3.org/2000/svg"
GAP, CAPTION = 24.0, 34.0
COUNTS = ("no thought", "one thought", "two thoughts")


def picture(trees: list[Element], captions: list[tuple[str, str]], ink: str) -> Element:
    """Drawings side by side with two lines below each, in an ink for light or for dark ground."""
    widths = [float(tree.get("width", "0")) for tree in trees]
    height = max(float(tree.get("height", "0")) for tree in trees)
    width = sum(widths) + GAP * (len(trees) - 1)
    style = "font-family:system-ui,sans-serif;font-size:13px"
    size = {"viewBox": f"0 0 {width:g} {height + CAPTION:g}", "width": f"{width:g}", "height": f"{height + CAPTION:g}"}
    whole = Element(f"{{{SVG}}}svg", {"color": ink, "style": style, **size})
    left = 0.0
    for tree, own, lines in zip(trees, widths, captions, strict=True):
        tree.set("x", f"{left:g}")
        del tree.attrib["style"]
        whole.append(tree)
        for number, line in enumerate(lines):
            place = {"x": f"{left + own / 2:g}", "y": f"{height + 10 + 17 * number:g}", "text-anchor": "middle"}
            look = {"fill": ink, "opacity": str(1 - 0.25 * number)}
            SubElement(whole, f"{{{SVG}}}text", {**place, **look}).text = line
        left += own + GAP
    return whole


def main() -> None:
    """Probe the bundled model, and write both pictures."""
    search = cocot.probe("prosqa-small", count=1)
    drawn = re.findall(r"<svg.*?</svg>", search.tree(0)._repr_html_(), re.DOTALL)
    captions = []
    for count, texts, is_correct in zip(COUNTS, search.outputs, search.correct, strict=True):
        captions.append((f"after {count}", f"{texts[0].strip()}  ({'right' if is_correct[0] else 'wrong'})"))
    ElementTree.register_namespace("", SVG)
    IMAGES.mkdir(exist_ok=True)
    for ground, ink in INKS.items():
        trees = [ElementTree.fromstring(svg) for svg in drawn]
        text = ElementTree.tostring(picture(trees, captions, ink), encoding="unicode")
        (IMAGES / f"search_tree_{ground}.svg").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
