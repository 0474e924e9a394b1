"""How a written path came about: the paper's categories of outputs, graded against the problem's graph.

In: a problem with a graph, what a model wrote after k thoughts. Out: one of `CATEGORIES`.

    categorise(problem, "6 9 ; ### 9", num_thoughts=1, is_correct=True)

Source: arXiv 2412.06769, section 5.1. Read next: `interpret/search_tree.py`.
"""

from __future__ import annotations

from itertools import pairwise

from cocot.errors import DataError
from cocot.methods.tokens import ANSWER_MARK
from cocot.tasks.graphs import depths, is_chain_of_names, mentioned
from cocot.tasks.problem import Problem

CORRECT_PATH, LONGER_PATH = "correct path", "longer path"
HALLUCINATION, WRONG_TARGET = "hallucination", "wrong target"
CORRECT_LABEL, INCORRECT_LABEL = "correct label", "incorrect label"
CATEGORIES = (CORRECT_PATH, LONGER_PATH, HALLUCINATION, WRONG_TARGET, CORRECT_LABEL, INCORRECT_LABEL)


def categorise(problem: Problem, output: str, num_thoughts: int, is_correct: bool) -> str:
    """The category of an output.

    A path is *correct* if it leads to the target on a shortest way, and *longer* if on another. It is a *hallucination*
    if one of its edges does not exist, if it is broken, or if it does not begin where it could: at the root, after
    thoughts at any node that the root leads to. It has a *wrong target* if it ends elsewhere. After thoughts the path
    is partial, and the steps that were thoughts count as those from the root to its first node. An output without
    steps has only a *label*. A step names an edge, or, in a problem whose own steps do, the node that it arrives at.

    Args:
        problem: The problem.
        output: All that the model wrote after its thoughts.
        num_thoughts: How many those were.
        is_correct: Whether its answer is right.

    Raises:
        DataError: the problem has no graph.
    """
    graph = problem.graph
    if graph is None:
        raise DataError(f"{problem.question[:40]!r}... has no graph to grade a path against.")
    written = output.partition(ANSWER_MARK)[0].strip()
    if not written:
        return CORRECT_LABEL if is_correct else INCORRECT_LABEL
    nodes = [place.node for place in mentioned(graph, written)]
    if not nodes:
        return HALLUCINATION
    if is_chain_of_names(graph, problem.steps):
        path = nodes if num_thoughts else [graph.root, *nodes]
    else:
        if len(nodes) % 2 or nodes[1:-1:2] != nodes[2::2]:  # an edge begins where the one before it ends
            return HALLUCINATION
        path = [nodes[0], *nodes[1::2]]
    steps, depth = list(pairwise(path)), depths(graph)
    if not set(steps) <= set(graph.edges):
        return HALLUCINATION
    first, last = path[0], path[-1]
    if first != graph.root and (num_thoughts == 0 or depth[first] < 0):
        return HALLUCINATION
    if last != graph.target:
        return WRONG_TARGET
    return CORRECT_PATH if depth[first] + len(steps) == depth[graph.target] else LONGER_PATH
