"""Problems in files: a user's own data needs no code.

In: a path. Out: `Problem`s. The format is told by the text, also gzipped (`.gz`):

- JSONL, one object `{"question", "steps", "answer"}` a line, or a JSON list of them, as the original project has it;
  graph fields are kept where present;
- GSM8k's own objects in either, `{"question", "answer": "... <<48/2=24>> ... #### 72"}`;
- iCoT's lines, `question||<<48/2=24>> ... #### 72`, and those of its multiplication, `1 3 * 2||5 + 0 2 #### 5 2`;
- CODI's objects, `{"question", "cot", "answer"}`, with a chain of marks, of sentences, or a list of steps;
- ProntoQA's object, `{"example1": {"test_example": {...}}, ...}`, as the public generator writes it.

Another field that looks like a chain (`rationale`, `solution`, ...) is refused: it would be lost.

`hub:NAME:SPLIT` and `hub:NAME:CONFIG:SPLIT` name a data set of the Hugging Face Hub with rows of these forms, for
example `hub:openai/gsm8k:main:train`; that takes the package `datasets`.

    problems = read_problems("prosqa_valid.json")
    write_problems("train.jsonl", problems)

Files to train on may be larger than the memory: `open_problems` leaves what is large on disk.
Read next: `problem.py`, `problem_table.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from cocot.errors import DataError
from cocot.system.files import new_file
from cocot.tasks import gsm8k, prontoqa
from cocot.tasks.problem import Graph, Problem
from cocot.tasks.problem_table import ProblemTable, question_keys, selected
from cocot.version import __version__

_HUB = "hub:"
_CHAIN_WORDS: tuple[str, ...] = (
    "cot",
    "chain",
    "rational",
    "reason",
    "thought",
    "think",
    "solution",
    "explan",
    "explain",
    "deriv",
)
_CHAIN_WORDS += ("proof", "prove", "scratchpad", "working", "step", "justif", "trace", "deduc", "infer")
"""How the names of fields begin in which other data sets keep their reasoning."""
_MOST_BYTES = 2**29
"""Text that is read into the memory, where its problems take some ten times as much: four times GSM8k-Aug."""
_FORMAT = 'Each problem is an object {"question": text, "steps": [text, ...], "answer": text}.'


def read_problems(source: str | Path) -> list[Problem]:
    """Read problems from a file, or from a data set on the Hub, in order.

    Raises:
        DataError: the file is missing or not readable, a line is malformed, a field is missing, empty or of the wrong
            type. The message names the file and the line (of a list: the item). Or the data set cannot be loaded.
    """
    name = str(source)
    return _all_of(source, _hub_items(name, _hub_rows(name)) if name.startswith(_HUB) else _file_items(Path(source)))


def _all_of(source: str | Path, items: Iterable[tuple[str, Any]]) -> list[Problem]:
    problems = list(_problems(items))
    if not problems:
        raise DataError(f"{source} holds no problems. {_FORMAT}")
    return problems


def open_problems(source: str | Path) -> Sequence[Problem]:
    """As `read_problems`, but more than 512 MiB of problems are read from a table on disk, as they are asked for.

    A list in JSON is read whole, whatever its size, and a packed file refused if it unpacks to more.

    Raises:
        DataError: as `read_problems`; or there is no room for the table.
    """
    name = str(source)
    if name.startswith(_HUB):
        rows = _hub_rows(name)
        if rows.data.nbytes <= _MOST_BYTES:
            return _all_of(source, _hub_items(name, rows))
        files = [Path(file["filename"]) for file in rows.cache_files]
    else:
        files = [Path(source)]
        size = files[0].stat().st_size if _is_of_lines(files[0]) else 0
        if size <= _MOST_BYTES:
            return read_problems(source)
    states = [(str(file.resolve()), (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((__version__, name, states)).encode()).hexdigest()[:32]
    return ProblemTable.of(name, key, partial(_problems_of, name))


def _problems_of(source: str) -> Iterator[Problem]:
    is_on_hub = source.startswith(_HUB)
    return _problems(_hub_items(source, _hub_rows(source)) if is_on_hub else _line_items(Path(source)))


def _problems(items: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
    return (_problem(item, where) for where, item in items)


def _hub_items(source: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The rows of a data set on the Hub."""
    return ((f"{source}, item {number}", row) for number, row in enumerate(rows, start=1))


def _hub_rows(source: str) -> Any:
    """A data set on the Hub."""
    name, *rest = re.split(r":(?![^[]*\])", source.removeprefix(_HUB))  # a split may be a slice, `train[:500]`
    if not name or len(rest) not in (1, 2):
        raise DataError(f"{source!r} is neither hub:NAME:SPLIT nor hub:NAME:CONFIG:SPLIT.")
    try:
        from datasets import load_dataset  # large, and not needed otherwise
    except ImportError as error:
        raise DataError(f"{source} takes the package datasets: pip install 'cocot[hub]'.") from error
    try:
        return load_dataset(name, *rest[:-1], split=rest[-1])
    except Exception as error:  # of many kinds: no network, no such name, a damaged cache
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"cannot load {source}: {reason[0]} Without a network, download its files elsewhere and give their path."
        ) from error


def _file_items(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        raw = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")  # a byte-order mark is no text
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    # Neither JSON nor a line of text holds a bare carriage return: it ends a line, as in Windows' and old Macs' files.
    yield from _items(path, text.replace("\r\n", "\n").replace("\r", "\n"))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"cannot read problems from {path}: {error}.")


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise DataError(
            f"{path} unpacks to more than {_MOST_BYTES // 2**20} MiB; unpack it yourself if you trust it, or part it."
        )
    return raw


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL; an existing file is replaced only once the new one is whole.

    Raises:
        RunError: the file cannot be written.
    """
    with new_file(Path(path)) as file:
        file.writelines(json.dumps(problem.to_json(), ensure_ascii=False) + "\n" for problem in problems)


def set_aside(
    problems: Sequence[Problem], share: float, most: int, seed: int
) -> tuple[Sequence[Problem], list[Problem]]:
    """Part problems in two, by their questions: those that are left, and those that are set aside.

    Args:
        problems: Any problems; those with the same question stay together, so that none is on both sides.
        share: Share of the questions that is set aside.
        most: How many questions at most.
        seed: Chooses them.

    Raises:
        ValueError: there are fewer than two questions.
    """
    import numpy as np

    keys = question_keys(problems)
    distinct = keys[np.sort(np.unique(keys, return_index=True)[1])]
    if len(distinct) < 2:
        raise ValueError("holds one question alone, and none can be set aside")
    count = min(most, len(distinct) - 1, math.ceil(share * len(distinct)))
    chosen = Random(f"{seed}/set aside").sample(range(len(distinct)), count)
    is_aside = np.isin(keys, distinct[chosen])
    return selected(problems, ~is_aside), list(selected(problems, is_aside))


def _items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Where every item stands, and the item: an object, or a line of text."""
    if _is_whole(start := _start(text)):
        items = _listed(_parsed(text, path, 1))
        yield from ((f"{path}, item {number}", item) for number, item in enumerate(items, start=1))
        return
    # split("\n"), not splitlines(): JSON strings may hold other line separators
    yield from _items_of_lines(path, text.split("\n"), start)


def _is_of_lines(path: Path) -> bool:
    """Whether a file has a problem on each line, so that it can be read one by one."""
    return path.suffix != ".gz" and path.is_file() and not _is_whole(_start_of(path))


def _line_items(path: Path) -> Iterator[tuple[str, Any]]:
    """`_file_items` of a file with a problem on each line, which is never whole in the memory."""
    start = _start_of(path)
    try:
        with path.open(encoding="utf-8-sig") as file:  # ends every line in "\n", as `_file_items` does
            yield from _items_of_lines(path, file, start)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _start_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _start(file.read(100_000))
    except OSError as error:
        raise _unreadable(path, error) from error


def _start(text: str) -> str:
    """By which the format is told."""
    return text.lstrip()[:1000]


def _is_whole(start: str) -> bool:
    """Whether it begins a list or an object that holds all problems."""
    return start.startswith("[") or '"test_example"' in start


def _items_of_lines(path: Path, lines: Iterable[str], start: str) -> Iterator[tuple[str, Any]]:
    is_json = "||" not in start.split("\n")[0] or start.startswith("{")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, path, number) if is_json else line.removesuffix("\n")


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where, reason = f"{path}:{first_line + error.lineno - 1}", error.msg
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        where, reason = f"{path}:{first_line}", str(error)
    raise DataError(f"{where}: malformed JSON: {reason}. {_FORMAT}")


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's own reader keeps the last of several fields of one name and says nothing."""
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} is given more than once")
    return found


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
    question, answer, chain = item.get("question"), item.get("answer"), item.get("cot")
    if item.get("steps") or not isinstance(question, str) or not isinstance(answer, str):
        return None
    if chain:
        return Problem(question.strip(), _steps_of(chain), answer.strip())
    if lost := sorted(name for name, value in item.items() if _is_chain(name, value)):
        raise ValueError(
            f"field {lost[0]!r} looks like the chain of thought, which cocot reads from 'steps', a list of texts; "
            "rename it, or take it out"
        )
    return gsm8k.from_original(question, answer) if "steps" not in item and "####" in answer else None


def _steps_of(chain: Any) -> tuple[str, ...]:
    """The steps of CODI's field `cot`."""
    if isinstance(chain, str):
        return gsm8k.steps_of(chain)
    if isinstance(chain, list) and all(map(_is_text, chain)):
        return tuple(chain)
    raise ValueError("field 'cot' must be a text or a list of non-empty texts")


def _is_chain(name: str, value: Any) -> bool:
    """Whether a field without a meaning here holds reasoning, to judge by its name."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    is_named_so = any(word.startswith(_CHAIN_WORDS) for word in words)
    return is_named_so and name != "steps" and isinstance(value, str | list | dict) and bool(value)


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
        raise DataError(f"{where}: the graph is corrupted: {error!r}. Mend it or leave its fields out.") from error
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
