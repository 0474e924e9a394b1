"""What a problem is: the value that every task produces and everything downstream reads.

In: nothing. Out: `Problem(question, steps, answer, graph)` and its JSON form.
Read next: `base.py` (what a task is), `files.py` (your own data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import fmean
from typing import Any, TypeVar

from cocot.errors import ConfigError, DataError
from cocot.settings.typed import short

_T = TypeVar("_T")

_MOST_PROBLEMS = 100_000_000


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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Problem:
        """The problem that `to_json` wrote down."""
        graph = values.get("graph")
        if graph is not None:
            symbols, edges = tuple(graph["symbols"]), tuple((source, end) for source, end in graph["edges"])
            graph = Graph(**{**graph, "symbols": symbols, "edges": edges})
        return cls(values["question"], tuple(values["steps"]), values["answer"], graph)


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


def check_request(count: object, seed: object, **names: object) -> None:
    """Refuse a count, a seed or a name that no generator can use.

    Args:
        count: How many problems.
        seed: Any whole number.
        **names: The settings whose values are names.

    Raises:
        ConfigError: one of them is of another type, or the count is negative or larger than can be made.
    """
    check_whole("count", count, 0, _MOST_PROBLEMS)
    if not is_whole(seed):
        raise ConfigError(f"seed must be a whole number, got {short(seed)}")
    for name, value in names.items():
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a name, got {short(value)}")


def check_whole(name: str, value: object, low: int, high: int, why: str = "") -> None:
    """Refuse what is no whole number between `low` (`why` says where that comes from) and `high`.

    Raises:
        ConfigError: with the name and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} must be a whole number of at least {low}{why}, got {short(value)}")
    if value > high:
        raise ConfigError(f"{name} must be a whole number of at most {high}, got {short(value)}")


def one_of(rng: Random, values: Sequence[_T]) -> _T:
    """One of the values, each equally likely; the only one costs no random number."""
    return values[0] if len(values) == 1 else rng.choice(values)


def is_whole(value: object) -> bool:
    """Whether a setting is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
