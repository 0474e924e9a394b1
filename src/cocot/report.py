"""Results for people: tables of evaluation summaries. Reads values and files, never a model.

In: rows `{method, accuracy, low, high, tokens, seconds_per_question, problems, train_problems}`.
Out: the table in plain text and in Markdown, and `table.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocot.plan import align
from cocot.runs import write_json, write_text

_HEAD = ("method", "accuracy", "95 % interval", "tokens", "ms a question", "problems", "trained on")


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as text cells, the heading first."""
    return [_HEAD, *map(_cells, rows)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        f"{row['accuracy']:.1%}",
        f"{row['low']:.1%} to {row['high']:.1%}",
        f"{row['tokens']:.1f}",
        f"{1000 * row['seconds_per_question']:.2f}",
        f"{row['problems']:,}",
        "" if row["train_problems"] is None else f"{row['train_problems']:,}",
    )


def plain(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a terminal."""
    return align(table(rows))


def write_table(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `table.json` and `table.md` into `folder`."""
    write_json(folder / "table.json", list(rows))
    head, *body = table(rows)
    lines = [head, tuple("---" if index == 0 else "---:" for index in range(len(head))), *body]
    write_text(folder / "table.md", "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n")
