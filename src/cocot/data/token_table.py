"""Problems in token ids, on disk: what `tokenize` makes of a `ProblemTable`.

They are made once a tokenizer, by as many processes as there are cores, and kept in the cache of `datasets` beside the
problems, where every later stage, run and process finds them.

    cut = tokenized(table, tokenizer, None)
    many(cut, [7, 3])

Read next: `data/dataset.py`, which reads them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cocot.data.encoding import Tokenized, encode_frontiers, tokenize
from cocot.data.layout import Tokenizer
from cocot.system.hardware import allowed_cores
from cocot.system.interrupts import with_helpers
from cocot.tasks.problem import Problem
from cocot.tasks.problem_table import ProblemTable, no_room, problem_of_line
from cocot.version import __version__

Frontiers = Callable[[Problem], Sequence[Sequence[str]]]
"""What is right after each step of a problem (`Task.frontiers`)."""
_AT_ONCE = 1000
"""Problems that are taken from the disk together."""


class TokenTable(Sequence[Tokenized]):
    """Tokenized problems on disk."""

    def __init__(self, rows: Any) -> None:
        """Take what is on disk: Hugging Face's data set of it."""
        self._rows = rows

    def __len__(self) -> int:
        """How many problems."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Tokenized: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokenized]: ...
    def __getitem__(self, index: int | slice) -> Tokenized | list[Tokenized]:
        """A problem; several of them in memory."""
        found = range(len(self))[index]
        return self.many([found])[0] if isinstance(found, int) else self.many(found)

    def many(self, indices: Sequence[int]) -> list[Tokenized]:
        """The problems of those indices, in their order: together they are found faster than one by one."""
        return _tokenized(self._rows[[*indices]])

    def __iter__(self) -> Iterator[Tokenized]:
        """All problems, in order."""
        return chain.from_iterable(_tokenized(part) for part in self._rows.iter(_AT_ONCE))

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of every problem, all its pieces together, and its steps."""
        columns = self._rows.select_columns(["num_tokens", "num_steps"]).with_format("numpy")[:]
        return columns["num_tokens"], columns["num_steps"]


def tokenized(problems: Sequence[Problem], tokenizer: Tokenizer, frontiers: Frontiers | None) -> Sequence[Tokenized]:
    """`tokenize` every problem; those of a table stay on disk.

    Args:
        problems: A list, or a table.
        tokenizer: The model's.
        frontiers: What is right after each step of a problem; None where nobody asks.

    Raises:
        DataError: as `tokenize` and `encode_frontiers`, or the disk is full.
    """
    if isinstance(problems, ProblemTable):
        return _token_table(problems, tokenizer, frontiers)
    return _cut(problems, tokenizer, frontiers)


def sizes(cut: Sequence[Tokenized]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of every problem, all its pieces together, and its steps."""
    if isinstance(cut, TokenTable):
        return cut.sizes()
    rows = np.array([(_num_tokens(problem), len(problem.steps)) for problem in cut], np.int64)
    return rows[:, 0], rows[:, 1]


def many(cut: Sequence[Tokenized], indices: Sequence[int]) -> list[Tokenized]:
    """The problems of those indices, in their order."""
    return cut.many(indices) if isinstance(cut, TokenTable) else [cut[index] for index in indices]


def _cut(problems: Sequence[Problem], tokenizer: Tokenizer, frontiers: Frontiers | None) -> list[Tokenized]:
    cut = [tokenize(problem, tokenizer) for problem in problems]
    if frontiers is None:
        return cut
    sets = encode_frontiers(list(map(frontiers, problems)), tokenizer)
    return [replace(each, frontiers=own) for each, own in zip(cut, sets, strict=True)]


def _token_table(table: ProblemTable, tokenizer: Tokenizer, frontiers: Frontiers | None) -> TokenTable:
    from datasets import Features, List, Value

    ids = List(Value("int32"))
    pieces = {"question": ids, "steps": List(ids), "answer": ids, "frontiers": List(ids)}
    columns = Features({**pieces, "num_tokens": Value("int64"), "num_steps": Value("int64")})
    key = hashlib.sha256(f"{table.key} {_key_of(tokenizer)} {_key_of_task(frontiers)}".encode()).hexdigest()[:32]
    folder = Path(table.rows.cache_files[0]["filename"]).parent
    cores = allowed_cores()
    try:
        with FileLock(folder / f"cocot-tokens-{key}.lock"), with_helpers():  # one process makes them, for all
            rows = table.rows.map(
                partial(_rows, tokenizer=tokenizer, frontiers=frontiers),
                batched=True,
                input_columns="problem",
                remove_columns=table.rows.column_names,
                features=columns,
                num_proc=cores if cores > 1 else None,
                new_fingerprint=f"cocot-tokens-{key}",
                desc="Problems in token ids",
            )
    except OSError as error:
        raise no_room("the training file", error) from error
    return TokenTable(table.among(rows))


def _rows(lines: Sequence[str], tokenizer: Tokenizer, frontiers: Frontiers | None) -> dict[str, list[Any]]:
    """Several problems as columns of a table."""
    cut = _cut([problem_of_line(line) for line in lines], tokenizer, frontiers)
    return {
        "question": [problem.question for problem in cut],
        "steps": [problem.steps for problem in cut],
        "answer": [problem.answer for problem in cut],
        "frontiers": [problem.frontiers for problem in cut],
        "num_tokens": [_num_tokens(problem) for problem in cut],
        "num_steps": [len(problem.steps) for problem in cut],
    }


def _tokenized(columns: dict[str, list[Any]]) -> list[Tokenized]:
    rows = zip(*(columns[name] for name in ("question", "steps", "answer", "frontiers")), strict=True)
    return [
        Tokenized(tuple(question), tuple(map(tuple, steps)), tuple(answer), tuple(map(tuple, frontiers)))
        for question, steps, answer, frontiers in rows
    ]


def _num_tokens(problem: Tokenized) -> int:
    return len(problem.question) + sum(map(len, problem.steps)) + len(problem.answer)


def _key_of(tokenizer: Any) -> str:
    """Tells a tokenizer from others: by what it saves, since its own state changes when it is used."""
    digest = hashlib.sha256(f"{__version__} {type(tokenizer).__qualname__}".encode())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            digest.update(file.name.encode() + file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _key_of_task(frontiers: Frontiers | None) -> str:
    """Tells what a task says of its problems from what others say: by its name, and the file in which it stands."""
    if frontiers is None:
        return ""
    file = Path(inspect.getsourcefile(frontiers) or "")
    text = file.read_bytes() if file.is_file() else b""
    return f"{frontiers.__qualname__} {hashlib.sha256(text).hexdigest()}"
