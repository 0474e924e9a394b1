"""What a thought holds: can a linear probe read off it which nodes the search has reached?

In: a `Search` of many problems. Out: for each thought and depth, how many of the nodes at that depth the probe finds.

For each thought and depth a ridge regression from the thought to "is the node of this name so many steps below the
root" is fitted on some problems and scored on others: of the n nodes that it ranks first among a problem's own, how
many are the n true ones (recall at n)? As a control the same is done with every thought replaced by another problem's.
Read next: `interpret/search_tree.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cocot.errors import DataError
from cocot.interpret.search_tree import Search
from cocot.tasks.problem import Problem

MIN_PROBLEMS = 10
_RIDGE = 1.0
_FITTED = 0.8


@dataclass(frozen=True)
class ProbeScore:
    """What was read off one thought about one depth.

    Attributes:
        thought: Which thought, from 1.
        depth: Steps below the root.
        recall: Share of the true nodes among those ranked first, mean over the problems that were not fitted.
        shuffled: The same with each problem's thought replaced by another's.
        chance: What a random ranking would give.
        problems: Problems that were scored.
    """

    thought: int
    depth: int
    recall: float
    shuffled: float
    chance: float
    problems: int


def probe_frontiers(search: Search) -> list[ProbeScore]:
    """Fit and score a probe for every thought and every depth down to the longest solution.

    Raises:
        DataError: there are fewer than 10 problems, or no thoughts.
    """
    num_problems, num_thoughts = search.thoughts.shape[:2]
    if num_problems < MIN_PROBLEMS or not num_thoughts:
        raise DataError(f"reading thoughts takes at least {MIN_PROBLEMS} problems and a model that thinks.")
    column = {name: number for number, name in enumerate(sorted({n for p in search.problems for n in _names(p)}))}
    columns = np.array([column[name] for problem in search.problems for name in _names(problem)])
    depth = np.full((num_problems, len(column)), -2)  # of no node of the problem
    depth[search.problem, columns] = search.depth
    scores = []
    for thought in range(num_thoughts):
        inputs = np.concatenate([search.thoughts[:, thought], np.ones((num_problems, 1))], axis=1)
        others = np.roll(inputs, 1, axis=0)
        for wanted in range(1, max(len(problem.steps) for problem in search.problems) + 1):
            own, shuffled = (_recall(vectors, depth, wanted) for vectors in (inputs, others))
            chance = _chance(depth, wanted)
            scores.append(ProbeScore(thought + 1, wanted, own.mean(), shuffled.mean(), chance.mean(), len(own)))
    return scores


def _names(problem: Problem) -> tuple[str, ...]:
    return problem.graph.symbols if problem.graph else ()


def _scored(depth: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """The problems that are not fitted and have a node at that depth."""
    later = np.arange(int(_FITTED * len(depth)), len(depth))
    rows: NDArray[np.int64] = later[(depth[later] == wanted).any(axis=1)]
    return rows


def _recall(inputs: NDArray[np.float64], depth: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
    """Recall at n on each problem that is scored."""
    num_fitted = int(_FITTED * len(depth))
    fit, truth = inputs[:num_fitted], (depth[:num_fitted] == wanted).astype(float)
    weights = np.linalg.solve(fit.T @ fit + _RIDGE * np.eye(fit.shape[1]), fit.T @ truth)
    rows = _scored(depth, wanted)
    scores = np.where(depth[rows] == -2, -np.inf, inputs[rows] @ weights)
    ranks = (-scores).argsort(axis=1).argsort(axis=1)
    is_true = depth[rows] == wanted
    counts = is_true.sum(axis=1)
    found: NDArray[np.float64] = (is_true & (ranks < counts[:, None])).sum(axis=1) / counts
    return found


def _chance(depth: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
    rows = _scored(depth, wanted)
    share: NDArray[np.float64] = (depth[rows] == wanted).sum(axis=1) / (depth[rows] != -2).sum(axis=1)
    return share
