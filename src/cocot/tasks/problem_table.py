"""Problems that are too many for the memory: a table on disk.

A large file is read once into the cache of Hugging Face's `datasets`, where every later run and every process finds it
until the file changes. It is read through a memory map, and any problem in it as fast as any other: so order, resume
and shares of processes are those of a list.

    table = ProblemTable.of("train.jsonl", key, problems)
    table[3], len(table)

Read next: `files.py`, which decides; `data/token_table.py`, the same problems in token ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from cocot.errors import DataError
from cocot.tasks.problem import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AT_ONCE = 1000
"""Problems that are taken from the disk together."""


class ProblemTable(Sequence[Problem]):
    """Problems on disk.

    Attributes:
        key: Tells the problems of a file from any others.
        rows: Hugging Face's data set of all of them: `problem`, its JSON; `question`, its `question_key`.
        chosen: Which of them are in this table, ascending; None for all.
    """

    def __init__(self, key: str, rows: Any, chosen: NDArray[np.int64] | None = None) -> None:
        """Take problems that are on disk."""
        self.key, self.rows, self.chosen = key, rows, chosen
        self._own = self.among(rows)

    def among(self, rows: Any) -> Any:
        """Those of a data set with a row for each problem of the file that are in this table."""
        return rows if self.chosen is None else rows.select(self.chosen)

    @classmethod
    def of(cls, source: str, key: str, problems: Callable[[], Iterator[Problem]]) -> ProblemTable:
        """The table of that key; made of the `problems` unless it is there.

        Args:
            source: Where the problems come from, human-readable.
            key: Another one for other problems.
            problems: Gives them, one after the other.

        Raises:
            DataError: a problem cannot be read, the package `datasets` is not installed, or the disk is full.
        """
        try:
            from datasets import Dataset, Features, Value  # large, and not needed otherwise
            from datasets.exceptions import DatasetGenerationError
        except ImportError as error:
            raise DataError(
                f"{source} is too large for the memory; from the disk it is read by the package datasets: "
                "pip install 'cocot[hub]'."
            ) from error
        columns = Features({"problem": Value("string"), "question": Value("int64")})
        try:
            rows = Dataset.from_generator(
                _rows, features=columns, gen_kwargs={"problems": problems}, fingerprint=f"cocot-problems-{key}"
            )
        except DatasetGenerationError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, DataError) else no_room(source, cause or error) from error
        except OSError as error:
            raise no_room(source, error) from error
        return cls(key, rows)

    def __len__(self) -> int:
        """How many problems."""
        return len(self._own)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        """A problem; several of them in memory."""
        found = self._own[index]["problem"]
        return problem_of_line(found) if isinstance(found, str) else [problem_of_line(line) for line in found]

    def __iter__(self) -> Iterator[Problem]:
        """All problems, in order."""
        return map(problem_of_line, self.lines())

    def lines(self) -> Iterator[str]:
        """All problems, in order, each as `line_of` writes it."""
        for part in self._own.select_columns("problem").iter(_AT_ONCE):
            yield from part["problem"]

    def question_keys(self) -> NDArray[np.int64]:
        """The `question_key` of every problem."""
        found: NDArray[np.int64] = self._own.select_columns("question").with_format("numpy")[:]["question"]
        return found

    def selected(self, chosen: NDArray[np.bool_]) -> ProblemTable:
        """The problems where `chosen` is true."""
        import numpy as np

        found = np.flatnonzero(chosen)
        return ProblemTable(self.key, self.rows, found if self.chosen is None else self.chosen[found])


def no_room(source: str, error: BaseException) -> DataError:
    """Why a table could not be written."""
    return DataError(
        f"cannot keep the problems of {source} on disk: {error}. They take two or three times the room of the file; "
        "HF_DATASETS_CACHE names another folder for them."
    )


def line_of(problem: Problem) -> str:
    """A problem as one line of JSON; equal problems give equal lines."""
    return json.dumps(problem.to_json(), sort_keys=True)


def problem_of_line(line: str) -> Problem:
    """The problem that `line_of` wrote down."""
    return Problem.from_json(json.loads(line))


def lines_of(problems: Sequence[Problem]) -> Iterator[str]:
    """`line_of` every problem, in order."""
    return problems.lines() if isinstance(problems, ProblemTable) else map(line_of, problems)


def question_keys(problems: Sequence[Problem]) -> NDArray[np.int64]:
    """The `question_key` of every problem."""
    if isinstance(problems, ProblemTable):
        return problems.question_keys()
    import numpy as np  # takes a while, and tasks are looked at without it

    return np.fromiter(map(question_key, problems), np.int64, len(problems))


def question_key(problem: Problem) -> int:
    """64 bits that stand for a question; white space is free."""
    text = " ".join(problem.question.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def selected(problems: Sequence[Problem], chosen: NDArray[np.bool_]) -> Sequence[Problem]:
    """The problems where `chosen` is true; those of a table stay on disk."""
    if isinstance(problems, ProblemTable):
        return problems.selected(chosen)
    return [problem for problem, keep in zip(problems, chosen.tolist(), strict=True) if keep]


def num_seen(problems: Sequence[Problem], seen: Sequence[Problem]) -> int:
    """How many of `problems` ask a question that one of `seen` asks, word for word; white space is free."""
    import numpy as np

    return int(np.isin(question_keys(problems), question_keys(seen)).sum())


def _rows(problems: Callable[[], Iterator[Problem]]) -> Iterator[dict[str, Any]]:
    for problem in problems():
        yield {"problem": line_of(problem), "question": question_key(problem)}
