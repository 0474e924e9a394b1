"""What a problem is: the value that every task produces and everything downstream reads.

In: nothing. Out: `Problem(question, steps, answer, graph)` and its JSON form.
Read next: `prosqa.py` (a generator), `files.py` (your own data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Protocol

from cocot.errors import DataError


@dataclass(frozen=True, slots=True)
class Graph:
    """The directed graph behind a problem.

    Attributes:
        symbols: Name of each node; the index is the node id.
        edges: Pairs (source id, destination id).
        root: Node the question asks about.
        target: Node that is reachable from the root: the answer.
        distractor: The other option of the question.
    """

    symbols: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    distractor: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its written reasoning.

    Attributes:
        question: The text the model is given.
        steps: The chain of thought, one string a step; empty when the source has none.
        answer: The text the model must end with.
        graph: Present when the problem was made from a graph.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    graph: Graph | None = None

    def to_json(self) -> dict[str, Any]:
        """The problem as JSON-ready values; a missing graph is left out."""
        values = asdict(self)
        if self.graph is None:
            del values["graph"]
        return values


class Task(Protocol):
    """A family of problems: how to make them and how to grade an answer."""

    name: str

    def generate(self, count: int, *, seed: int, **settings: Any) -> list[Problem]:
        """Make `count` problems; the same arguments give the same problems."""

    def is_correct(self, problem: Problem, text: str) -> bool:
        """Whether `text`, the model's answer after the answer mark, solves `problem`."""

    def report(self, problems: Sequence[Problem]) -> dict[str, float]:
        """Statistics worth printing beside a new data set, shortcut baselines among them."""


def mean_statistics(
    problems: Sequence[Problem], statistics: Callable[[int, Problem], dict[str, float]]
) -> dict[str, float]:
    """The mean of each of the `statistics` that a task gives of a problem, by its index.

    Raises:
        DataError: there are no problems.
    """
    if not problems:
        raise DataError("cannot report on 0 problems: give at least one.")
    rows = [statistics(index, problem) for index, problem in enumerate(problems)]
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def num_seen(problems: Sequence[Problem], seen: Sequence[Problem]) -> int:
    """How many of `problems` ask a question that one of `seen` asks, word for word; white space is free."""
    questions = {tuple(problem.question.split()) for problem in seen}
    return sum(tuple(problem.question.split()) in questions for problem in problems)


def is_whole(value: object) -> bool:
    """Whether a setting is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
