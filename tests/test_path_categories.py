"""Tests of the paper's categories: each kind of output is told from the others, whole and partial paths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cocot import tasks
from cocot.errors import DataError
from cocot.interpret.path_categories import CATEGORIES, categorise
from cocot.tasks.problem import Graph, Problem

# r -> q -> b -> t, r -> b, b -> c -> t; x -> t; r -> y
NAMES = ("r", "q", "b", "t", "c", "x", "y", "bb")
EDGES = ((0, 1), (1, 2), (2, 3), (0, 2), (2, 4), (4, 3), (5, 3), (0, 6))
PROBLEM = Problem("?", ("r b", "b t"), "t", Graph(NAMES, EDGES, 0, 3, 6))


@pytest.mark.parametrize(
    ("output", "num_thoughts", "is_correct", "category"),
    [
        ("r b ; b t ; ### t", 0, True, "correct path"),
        ("r is a b.\nEvery b is a t.\n### t", 0, True, "correct path"),
        ("r q ; q b ; b t ; ### t", 0, True, "longer path"),
        ("r b ; b c ; c t ; ### t", 0, True, "longer path"),
        ("r b ; b t ; ### y", 0, False, "correct path"),
        ("r t ; ### t", 0, True, "hallucination"),
        ("r b ; c t ; ### t", 0, True, "hallucination"),
        ("b t ; ### t", 0, True, "hallucination"),
        ("r b ; b ### t", 0, True, "hallucination"),
        ("r bb ; bb t ; ### t", 0, True, "hallucination"),
        ("so ### t", 0, True, "hallucination"),
        ("r y ; ### y", 0, False, "wrong target"),
        ("r b ;", 0, False, "wrong target"),
        ("b t ; ### t", 1, True, "correct path"),
        ("q b ; b t ; ### t", 1, True, "longer path"),
        ("r b ; b t ; ### t", 1, True, "correct path"),
        ("x t ; ### t", 1, True, "hallucination"),
        ("b c ; ### c", 1, False, "wrong target"),
        ("### t", 2, True, "correct label"),
        ("### y", 0, False, "incorrect label"),
        ("", 2, False, "incorrect label"),
    ],
)
def test_an_output_has_its_category(output: str, num_thoughts: int, is_correct: bool, category: str) -> None:
    """Shortest and longer ways, missing and broken edges, wrong ends, bare labels; partial paths after thoughts."""
    assert categorise(PROBLEM, output, num_thoughts, is_correct) == category
    assert category in CATEGORIES


@pytest.mark.parametrize(
    ("output", "num_thoughts", "category"),
    [
        ("b t ### t", 0, "correct path"),
        ("q b t ### t", 0, "longer path"),
        ("b c t ### t", 0, "longer path"),
        ("t ### t", 0, "hallucination"),
        ("c t ### t", 0, "hallucination"),
        ("y ### y", 0, "wrong target"),
        ("t ### t", 1, "correct path"),
        ("b t ### t", 1, "correct path"),
        ("q b t ### t", 1, "longer path"),
        ("b q ### t", 1, "hallucination"),
        ("x t ### t", 1, "hallucination"),
        ("so ### t", 1, "hallucination"),
        ("c ### c", 2, "wrong target"),
        ("### t", 2, "correct label"),
    ],
)
def test_a_chain_of_single_names_has_its_category(output: str, num_thoughts: int, category: str) -> None:
    """Each name is where an edge from the one before it arrives, the first from the root unless that was a thought."""
    assert categorise(replace(PROBLEM, steps=("b", "t")), output, num_thoughts, is_correct=True) == category


@pytest.mark.parametrize(
    ("rendering", "short_steps"),
    [("sentences", None), ("sentences", "pairs"), ("sentences", "names"), ("symbolic", None), ("symbolic", "names")],
)
def test_written_solutions_are_correct_paths(rendering: str, short_steps: str | None) -> None:
    """The generator's own steps, and what is left of them after the first ones, in every form."""
    form = {"rendering": rendering, "short_steps": short_steps}
    for problem in tasks.get("prosqa").generate(50, seed=0, mode="released", **form):
        for k in range(len(problem.steps)):
            text = "\n".join([*problem.steps[k:], f"### {problem.answer}"])
            assert categorise(problem, text, k, is_correct=True) == "correct path"


def test_a_problem_without_a_graph_is_refused() -> None:
    """Stories have none."""
    with pytest.raises(DataError, match="has no graph"):
        categorise(Problem("1 + 1?", (), "2"), "### 2", 0, is_correct=True)
