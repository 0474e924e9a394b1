"""Problems in files: a user's own data needs no code.

In: a path. Out: `Problem`s. The format is told by the text, also gzipped (`.gz`):

- JSONL, one object `{"question", "steps", "answer"}` a line, or a JSON list of them, as the original project has it;
  graph fields are kept where present;
- GSM8k's own objects in either, `{"question", "answer": "... <<48/2=24>> ... #### 72"}`;
- iCoT's lines, `question||<<48/2=24>> ... #### 72`;
- ProntoQA's object, `{"example1": {"test_example": {...}}, ...}`, as the public generator writes it.

`hub:NAME:SPLIT` and `hub:NAME:CONFIG:SPLIT` name a data set of the Hugging Face Hub with rows of these forms, for
example `hub:openai/gsm8k:main:train`; that takes the package `datasets`.

    problems = read_problems("prosqa_valid.json")
    write_problems("train.jsonl", problems)

Read next: `problem.py`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from cocot.errors import DataError
from cocot.tasks import gsm8k, prontoqa
from cocot.tasks.problem import Graph, Problem
from cocot.writing import new_file

_HUB = "hub:"
_FORMAT = 'Each problem is an object {"question": text, "steps": [text, ...], "answer": text}.'


def read_problems(source: str | Path) -> list[Problem]:
    """Read problems from a file, or from a data set on the Hub, in order.

    Raises:
        DataError: the file is missing or not readable, a line is malformed, a field is missing, empty or of the wrong
            type. The message names the file and the line (of a list: the item). Or the data set cannot be loaded.
    """
    is_on_hub = str(source).startswith(_HUB)
    items = _hub_items(str(source)) if is_on_hub else _file_items(Path(source))
    problems = [_problem(item, where) for where, item in items]
    if not problems:
        raise DataError(f"{source} holds no problems. {_FORMAT}")
    return problems


def _hub_items(source: str) -> Iterator[tuple[str, Any]]:
    """The rows of a data set on the Hub."""
    name, *rest = re.split(r":(?![^[]*\])", source.removeprefix(_HUB))  # a split may be a slice, `train[:500]`
    if not name or len(rest) not in (1, 2):
        raise DataError(f"{source!r} is neither hub:NAME:SPLIT nor hub:NAME:CONFIG:SPLIT.")
    try:
        from datasets import load_dataset  # large, and not needed otherwise
    except ImportError as error:
        raise DataError(f"{source} takes the package datasets: pip install 'cocot[hub]'.") from error
    try:
        rows = load_dataset(name, *rest[:-1], split=rest[-1])
    except Exception as error:  # of many kinds: no network, no such name, a damaged cache
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"cannot load {source}: {reason[0]} Without a network, download its files elsewhere and give their path."
        ) from error
    yield from ((f"{source}, item {number}", row) for number, row in enumerate(rows, start=1))


def _file_items(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read problems from {path}: {error}.") from error
    yield from _items(path, text)


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL; an existing file is replaced only once the new one is whole.

    Raises:
        RunError: the file cannot be written.
    """
    with new_file(Path(path)) as file:
        file.writelines(json.dumps(problem.to_json(), ensure_ascii=False) + "\n" for problem in problems)


def _items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Where every item stands, and the item: an object, or a line of text."""
    start = text.lstrip()[:1000]
    if start.startswith("[") or '"test_example"' in start:
        items = _listed(_parsed(text, path, 1))
        yield from ((f"{path}, item {number}", item) for number, item in enumerate(items, start=1))
        return
    is_json = "||" not in start.split("\n")[0] or start.startswith("{")
    # split("\n"), not splitlines(): JSON strings may hold other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, path, number) if is_json else line


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where, reason = f"{path}:{first_line + error.lineno - 1}", error.msg
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        where, reason = f"{path}:{first_line}", str(error)
    raise DataError(f"{where}: malformed JSON: {reason}. {_FORMAT}")


def _listed(items: Any) -> list[Any]:
    if isinstance(items, dict):
        return list(items.values())
    return list(items) if isinstance(items, list) else [items]


def _problem(item: Any, where: str) -> Problem:
    try:
        published = _published(item)
    except ValueError as error:
        raise DataError(f"{where}: {error}.") from error
    return problem_of({**published.to_json(), "steps": list(published.steps)} if published else item, where)


def _published(item: Any) -> Problem | None:
    """The problem of an item in a published data set's own form; None if it has none of these forms."""
    if isinstance(item, str):
        return gsm8k.from_line(item)
    if not isinstance(item, dict):
        return None
    if isinstance(item.get("test_example"), dict):
        return prontoqa.from_example(item["test_example"])
    question, answer = item.get("question"), item.get("answer")
    if "steps" not in item and isinstance(question, str) and isinstance(answer, str) and "####" in answer:
        return gsm8k.from_original(question, answer)
    return None


def problem_of(item: Any, where: str) -> Problem:
    """The problem of an object in our own form, or the original project's.

    Raises:
        DataError: it is of another form; the message begins with `where`.
    """
    if not isinstance(item, dict):
        raise DataError(f"{where}: got {type(item).__name__}, not an object. {_FORMAT}")
    for name in ("question", "answer"):
        if not _is_text(item.get(name)):
            raise DataError(f"{where}: field {name!r} is missing, empty or not text. {_FORMAT}")
    steps = item.get("steps", [])
    if not isinstance(steps, list) or not all(map(_is_text, steps)):
        raise DataError(f"{where}: field 'steps' must be a list of non-empty texts. {_FORMAT}")
    try:
        graph = _graph(item)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: the graph is damaged: {error!r}. Mend it or leave its fields out.") from error
    return Problem(item["question"], tuple(steps), item["answer"], graph)


def _is_text(value: Any) -> bool:
    """Whether a value is text with something in it; JSON can also spell halves of characters (lone surrogates)."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _graph(item: dict[str, Any]) -> Graph | None:
    """The graph in our own form (`graph`) or in the original's (`idx_to_symbol`, `neg_target`, ...)."""
    values = item.get("graph")
    if values is None and "idx_to_symbol" in item:
        values = {**item, "symbols": item["idx_to_symbol"], "distractor": item["neg_target"]}
    if values is None:
        return None
    edges = tuple((int(source), int(destination)) for source, destination in values["edges"])
    nodes = {name: int(values[name]) for name in ("root", "target", "distractor")}
    symbols = tuple(values["symbols"])
    if not all(map(_is_text, symbols)) or len(set(symbols)) < len(symbols):
        raise ValueError("its symbols are not texts that differ")
    if unknown := {*chain.from_iterable(edges), *nodes.values()} - set(range(len(symbols))):
        raise ValueError(f"node {min(unknown)} has no symbol")
    return Graph(symbols=symbols, edges=edges, **nodes)
