"""What a thought holds: can a linear probe read off it which nodes the search has reached?

In: a `SearchData` of many problems. Out: for each thought and depth, how many of the nodes at that depth the probe
finds.

For each thought and depth a ridge regression from the thought to "is the node of this name so many steps below the
root" is fitted on four fifths of the problems and scored on the rest, five times over (cross-validation): of the n
nodes that it ranks first among a problem's own, how many are the n true ones (recall at n)? As a control the same is
done with every thought replaced by another problem's.
Read next: `interpret/search_tree.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict

from cocot.errors import DataError
from cocot.interpret.search_data import SearchData
from cocot.tasks.problem import Problem

MIN_PROBLEMS = 10
_RIDGE = 1.0
_FOLDS = 5
_ABSENT = -2  # the depth of a name that a problem does not have


@dataclass(frozen=True)
class ProbeScore:
    """What was read off one thought about one depth.

    Attributes:
        thought: Which thought, from 1.
        depth: Steps below the root.
        recall: Share of the true nodes among those ranked first, mean over the problems, each while it is not fitted.
        shuffled: The same with each problem's thought replaced by another's.
        chance: What a random ranking would give.
        problems: Problems that have a node at that depth, and were scored.
    """

    thought: int
    depth: int
    recall: float
    shuffled: float
    chance: float
    problems: int


def probe_frontiers(search: SearchData) -> list[ProbeScore]:
    """Fit and score a probe for every thought and every depth down to the longest solution.

    Raises:
        DataError: there are fewer than 10 problems, or no thoughts.
    """
    num_problems, num_thoughts = search.thoughts.shape[:2]
    if num_problems < MIN_PROBLEMS or not num_thoughts:
        raise DataError(f"reading thoughts takes at least {MIN_PROBLEMS} problems and a model that thinks.")
    depth = _depth_by_name(search)
    longest = max(len(problem.steps) for problem in search.problems)
    thoughts = search.thoughts.astype(np.float64)
    return [
        _score(thoughts[:, thought], depth, thought + 1, wanted)
        for thought in range(num_thoughts)
        for wanted in range(1, longest + 1)
    ]


def _depth_by_name(search: SearchData) -> NDArray[np.int64]:
    """The depth of every name in every problem, (problems, names)."""
    column = {name: number for number, name in enumerate(sorted({n for p in search.problems for n in _names(p)}))}
    columns = np.array([column[name] for problem in search.problems for name in _names(problem)])
    depth = np.full((len(search.problems), len(column)), _ABSENT)
    depth[search.problem, columns] = search.depth
    return depth


def _names(problem: Problem) -> tuple[str, ...]:
    return problem.graph.symbols if problem.graph else ()


def _score(thoughts: NDArray[np.float64], depth: NDArray[np.int64], thought: int, wanted: int) -> ProbeScore:
    """What one thought of every problem, (problems, width), says about the nodes at one depth."""
    own, shuffled = (_recall(vectors, depth, wanted) for vectors in (thoughts, np.roll(thoughts, 1, axis=0)))
    is_true = depth == wanted
    counts = is_true.sum(axis=1)
    share = (counts / (depth != _ABSENT).sum(axis=1))[counts > 0]
    return ProbeScore(thought, wanted, own.mean(), shuffled.mean(), share.mean(), len(own))


def _recall(thoughts: NDArray[np.float64], depth: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
    """Recall at n on each problem that has a node at that depth."""
    is_true = depth == wanted
    predicted = cross_val_predict(Ridge(_RIDGE), thoughts, is_true.astype(float), cv=KFold(_FOLDS))
    scores = np.where(depth == _ABSENT, -np.inf, predicted)
    ranks = (-scores).argsort(axis=1).argsort(axis=1)
    counts = is_true.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = (is_true & (ranks < counts)).sum(axis=1)[counts[:, 0] > 0] / counts[counts > 0]
    return found
