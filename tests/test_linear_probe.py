"""Tests of the linear probe: it finds what a thought holds and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from cocot import tasks
from cocot.errors import DataError
from cocot.interpret.linear_probe import probe_frontiers
from cocot.interpret.search_tree import SearchTree
from cocot.tasks.graphs import depths

COUNT = 600


def search_of(thoughts, problems):
    """A search of which only thoughts, problems and depths matter."""
    sizes = [len(problem.graph.symbols) for problem in problems]
    depth = np.array([value for problem in problems for value in depths(problem.graph)], dtype=np.int32)
    total = sum(sizes)
    index = np.repeat(np.arange(len(problems), dtype=np.int32), sizes)
    none = np.zeros(total, np.int32)
    values = np.zeros((1, total), np.float32)
    correct = np.zeros((1, len(problems)), bool)
    nearest = np.zeros((len(problems), 0, 5), np.float32)
    return SearchTree(values, index, none, depth, none, none, problems, [[]], correct, thoughts, [], nearest, 1.0)


def problems_of(count):
    return tasks.get("prosqa").generate(
        count, seed=0, mode="balanced", rendering="symbolic", layers=2, width=2, nodes=12
    )


def test_what_a_thought_holds_is_found():
    """The first thought is a mark for every child of the root, mixed linearly; the second is noise."""
    problems = problems_of(COUNT)
    draw = np.random.default_rng(0)
    marks = np.zeros((COUNT, 12))
    for row, problem in zip(marks, problems, strict=True):
        for name, depth in zip(problem.graph.symbols, depths(problem.graph), strict=True):
            row[int(name)] = depth == 1
    mixed = marks @ draw.normal(size=(12, 16)) + 0.01 * draw.normal(size=(COUNT, 16))
    thoughts = np.stack([mixed, draw.normal(size=(COUNT, 16))], axis=1).astype(np.float32)
    scores = {(reading.thought, reading.depth): reading for reading in probe_frontiers(search_of(thoughts, problems))}
    assert sorted(scores) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    children = scores[1, 1]
    assert children.recall > 0.99
    for reading in (scores[2, 1], scores[2, 2]):
        assert abs(reading.recall - reading.chance) < 0.08
    for reading in scores.values():
        assert abs(reading.shuffled - reading.chance) < 0.08
        assert reading.problems == COUNT
    assert 2 / 12 <= children.chance < 4 / 12


def test_problems_differ_in_their_nodes():
    """Names that a problem does not have are never ranked: with one node at a depth among few, chance says so."""
    few, many = (
        tasks.get("prosqa").generate(20, seed=0, mode="balanced", rendering="symbolic", layers=1, width=width)
        for width in (1, 6)
    )
    problems = [problem for pair in zip(few, many, strict=True) for problem in pair]
    thoughts = np.zeros((40, 1, 3), np.float32)
    (reading,) = probe_frontiers(search_of(thoughts, problems))
    assert reading.chance == pytest.approx((1 / 4 + 6 / 14) / 2)


def test_a_problem_is_scored_while_it_is_not_fitted():
    """Noise of more numbers than there are problems could be learned by heart, and then nothing is found."""
    problems = problems_of(60)
    noise = 100 * np.random.default_rng(0).normal(size=(60, 1, 100)).astype(np.float32)
    for reading in probe_frontiers(search_of(noise, problems)):
        assert abs(reading.recall - reading.chance) < 0.15


def test_where_the_origin_lies_does_not_matter():
    """The intercept is not penalised: the same vector added to every thought changes no score."""
    problems = problems_of(60)
    draw = np.random.default_rng(0)
    thoughts = draw.normal(size=(60, 1, 8))
    moved = (thoughts + 50 * draw.normal(size=8)).astype(np.float32)
    near, far = (probe_frontiers(search_of(vectors, problems)) for vectors in (thoughts.astype(np.float32), moved))
    assert [(one.recall, one.shuffled) for one in near] == [(one.recall, one.shuffled) for one in far]


def test_too_little_to_read_is_refused():
    """A handful of problems, or a model that does not think."""
    problems = problems_of(12)
    for thoughts, given in ((np.zeros((5, 1, 4)), problems[:5]), (np.zeros((12, 0, 0)), problems)):
        with pytest.raises(DataError, match="at least 10 problems and a model that thinks"):
            probe_frontiers(search_of(thoughts.astype(np.float32), given))
