"""Run an example cell by cell and write its page: the text, the code, and what the code really printed.

    python examples/execute.py own_data         # docs/examples/own_data.md

An example is a script in cells: `# %%` begins one of code, `# %% [markdown]` one of text in comments, as editors and
Jupyter know them. As in a notebook, the value of a cell's last expression is shown.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent
PAGES = EXAMPLES.parent / "docs" / "examples"


def cells(source: str) -> list[tuple[bool, str]]:
    """The cells of a script: whether one is text, and its content."""
    parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [(kind.strip() == "[markdown]", content.strip("\n")) for kind, content in pairs]


def as_text(content: str) -> str:
    """What the comments of a text cell say."""
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in content.splitlines())


def as_code(content: str) -> str:
    """A code cell as it stands on the page."""
    return f"```python\n{content}\n```"


def run(content: str, names: dict[str, Any]) -> str:
    """Run a code cell; what it printed, and the value of its last expression, in Markdown."""
    *body, last = ast.parse(content).body
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        else:
            exec(compile(content, "<cell>", "exec"), names)
    shown = []
    if text := printed.getvalue().rstrip():
        shown.append(f"```text\n{text}\n```")
    if hasattr(value, "_repr_html_"):
        shown.append(re.sub(r"\n\s*\n", "\n", value._repr_html_()))  # a blank line would end the HTML
    elif value is not None:
        shown.append(f"```text\n{value!r}\n```")
    return "\n\n".join(shown)


def page(name: str) -> str:
    """Run an example; its page."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    parts = []
    for is_text, content in cells(source):
        parts += [as_text(content)] if is_text else [as_code(content), run(content, names)]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for example in sys.argv[1:]:
        PAGES.mkdir(exist_ok=True)
        (PAGES / f"{example}.md").write_text(page(example), encoding="utf-8")
