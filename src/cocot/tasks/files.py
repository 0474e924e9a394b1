"""Problems in files: a user's own data needs no code.

In: a path. Out: `Problem`s. Two formats, told apart by their first character, also gzipped (`.gz`):
the original project's JSON list `[{"question", "steps", "answer"}, ...]`, its graph fields kept where present,
and JSONL, one such object a line.

    problems = read_problems("prosqa_valid.json")
    write_problems("train.jsonl", problems)

Read next: `problem.py`.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cocot.errors import DataError
from cocot.tasks.problem import Graph, Problem

_FORMAT = 'Each problem is an object {"question": text, "steps": [text, ...], "answer": text}.'


def read_problems(path: str | Path) -> list[Problem]:
    """Read problems from a JSON or JSONL file, in order.

    Raises:
        DataError: the file is missing or not readable, a line is malformed, a field is missing, empty or of the wrong
            type. The message names the file and the line (of a JSON list: the item).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read problems from {path}: {error}.") from error
    is_list = text.lstrip().startswith("[")
    items = _list_items(path, text) if is_list else _line_items(path, text)
    problems = [_problem(item, where) for where, item in items]
    if not problems:
        raise DataError(f"{path} holds no problems. {_FORMAT}")
    return problems


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL; an existing file is replaced only once the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(problem.to_json(), ensure_ascii=False) + "\n" for problem in problems)
    os.replace(partial, path)


def _list_items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: malformed JSON: {error.msg}. {_FORMAT}") from error
    yield from ((f"{path}, item {number}", item) for number, item in enumerate(items, start=1))


def _line_items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # split("\n"), not splitlines(): JSON strings may hold other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: malformed JSON: {error.msg}. {_FORMAT}") from error


def _problem(item: Any, where: str) -> Problem:
    if not isinstance(item, dict):
        raise DataError(f"{where}: got {type(item).__name__}, not an object. {_FORMAT}")
    for name in ("question", "answer"):
        if not isinstance(item.get(name), str) or not item[name].strip():
            raise DataError(f"{where}: field {name!r} is missing, empty or not text. {_FORMAT}")
    steps = item.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        raise DataError(f"{where}: field 'steps' must be a list of non-empty texts. {_FORMAT}")
    try:
        graph = _graph(item)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the graph is damaged: {error!r}. Mend it or leave its fields out.") from error
    return Problem(item["question"], tuple(steps), item["answer"], graph)


def _graph(item: dict[str, Any]) -> Graph | None:
    """The graph in our own form (`graph`) or in the original's (`idx_to_symbol`, `neg_target`, ...)."""
    values = item.get("graph")
    if values is None and "idx_to_symbol" in item:
        values = {**item, "symbols": item["idx_to_symbol"], "distractor": item["neg_target"]}
    if values is None:
        return None
    edges = tuple((int(source), int(destination)) for source, destination in values["edges"])
    nodes = {name: int(values[name]) for name in ("root", "target", "distractor")}
    return Graph(symbols=tuple(values["symbols"]), edges=edges, **nodes)
