"""A search in the terminal: tables of what a model thinks of it, and the tree of one problem.

In: a `SearchData`. Out: text.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cocot.evaluation.statistics import wilson_interval
from cocot.interpret.linear_probe import MIN_PROBLEMS, probe_frontiers
from cocot.interpret.path_categories import CATEGORIES
from cocot.interpret.search_data import SearchData
from cocot.system.console import align
from cocot.tasks.graphs import walk_shares
from cocot.tasks.problem import Graph

_BAR = "▁▂▃▄▅▆▇█"


Table = list[tuple[str, ...]]
"""Rows of text cells, the heading first."""


def tables(search: SearchData) -> dict[str, Table]:
    """All tables that the search has enough for, by title."""
    found = {"Answers after k thoughts": _answers(search)}
    if search.node.size:
        found["Where the next step can lead: its probability, shared out"] = _masses(search)
        found["What is written: shares of the problems"] = _categories(search)
        if len(rows := _by_walks(search)) > 2:
            found["Answers after all thoughts, by the share of random walks from the root that pass the answer"] = rows
    if search.thoughts.shape[1]:
        found["The thoughts themselves"] = _lens(search)
        if search.node.size and len(search.problems) >= MIN_PROBLEMS:
            found["The nodes that a linear probe reads off the thoughts"] = _readings(search)
    return found


def describe(search: SearchData) -> str:
    """The tables for a terminal."""
    return "\n\n".join(f"{title}\n{align(rows)}" for title, rows in tables(search).items())


def _answers(search: SearchData) -> Table:
    """Accuracy after each number of thoughts."""
    rows: Table = [("thoughts", "accuracy", "95 % interval", "problems")]
    for k, correct in enumerate(search.correct):
        low, high = wilson_interval(int(correct.sum()), len(correct))
        rows.append((str(k), f"{correct.mean():.1%}", f"{low:.1%} to {high:.1%}", f"{len(correct):,}"))
    return rows


def _masses(search: SearchData) -> Table:
    """How the probability of the next step is shared out after each number of thoughts."""
    rows: Table = [("thoughts", "frontier", "reachable", "elsewhere", "no node", "problems")]
    for k in range(len(search.values)):
        probability_mass = search.probability_mass(k)
        rows.append(
            (str(k), *(_mean(part) for part in probability_mass.values()), f"{len(probability_mass['frontier']):,}")
        )
    return rows


def _categories(search: SearchData) -> Table:
    """The share of each of the paper's categories of outputs after each number of thoughts."""
    rows: Table = [("thoughts", *CATEGORIES)]
    for k in range(len(search.values)):
        found = search.categories(k)
        rows.append((str(k), *(f"{found.count(name) / len(found):.1%}" for name in CATEGORIES)))
    return rows


def _by_walks(search: SearchData) -> Table:
    """Accuracy by how likely a random walk is to find the answer, in up to five parts of about as many problems.

    A model that held all nodes of a frontier alike would answer as well where the answer hangs on a thin branch.
    """
    graphs = {index: problem.graph for index, problem in enumerate(search.problems) if problem.graph}
    shares = np.array([walk_shares(graph)[graph.target] for graph in graphs.values()])
    correct = search.correct[-1][list(graphs)]
    part = np.searchsorted(np.unique(np.quantile(shares, (0.2, 0.4, 0.6, 0.8))), shares)
    rows: Table = [("share of the walks", "accuracy", "95 % interval", "problems")]
    for number in np.unique(part):
        own = part == number
        low, high = wilson_interval(int(correct[own].sum()), int(own.sum()))
        walks = f"{shares[own].min():.3f} to {shares[own].max():.3f}"
        rows.append((walks, f"{correct[own].mean():.1%}", f"{low:.1%} to {high:.1%}", f"{own.sum():,}"))
    return rows


def _readings(search: SearchData) -> Table:
    """What a linear probe finds in the thoughts."""
    rows: Table = [("thought", "depth", "recall", "shuffled", "chance", "problems")]
    for one in probe_frontiers(search):
        shares = (f"{share:.3f}" for share in (one.recall, one.shuffled, one.chance))
        rows.append((str(one.thought), str(one.depth), *shares, f"{one.problems:,}"))
    return rows


def _lens(search: SearchData) -> Table:
    """Length, cosine to the thought before, and the token that the head most often reads in it, thought by thought."""
    rows: Table = [("thought", "length / embedding", "cosine to the last", "nearest token", "probability")]
    for thought in range(search.thoughts.shape[1]):
        (token, _), *_ = Counter(texts[thought][0] for texts in search.nearest).most_common(1)
        length = search.norms[:, thought].mean() / search.embedding_norm
        cosine = f"{search.cosines[:, thought - 1].mean():.3f}" if thought else ""
        value = search.nearest_values[:, thought, 0].mean()
        rows.append((str(thought + 1), f"{length:.3f}", cosine, repr(token), f"{value:.3f}"))
    return rows


def _mean(values: Any) -> str:
    """The mean with its 95 % interval (normal approximation); nothing of nothing."""
    if not len(values):
        return "-"
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def draw_tree(search: SearchData, index: int, console: Console | None = None) -> None:
    """Print the problem, its tree and what the model writes after k = 0 ... K thoughts.

    A node's bars and numbers are its probability as the next step, one a k. Target and distractor are marked; a node
    with several parents is drawn below each of them. What the root does not lead to stands apart. A problem without a
    graph has only its texts.
    """
    console = console or Console()
    problem = search.problems[index]
    console.print(Text(f"problem {index}: {problem.question}"))
    if problem.graph:
        _draw_graph(search, index, problem.graph, console)
    for k, texts in enumerate(search.outputs):
        verdict = "right" if search.correct[k, index] else "wrong"
        console.print(Text(f"after {k} thoughts: {texts[index]}  [{verdict}]"))


def _draw_graph(search: SearchData, index: int, graph: Graph, console: Console) -> None:
    values = search.values[:, search.problem == index]
    children = {node: [b for a, b in graph.edges if a == node] for node in range(len(graph.symbols))}

    def label(node: int) -> Text:
        mark = {graph.target: " (answer)", graph.distractor: " (other option)"}.get(node, "")
        bars = "".join(_BAR[min(7, int(8 * value))] for value in values[:, node])
        numbers = " ".join(f"{value:.2f}" for value in values[:, node])
        style = "bold" if node == graph.target else "dim" if values[:, node].max() < 0.01 else ""
        return Text(f"{graph.symbols[node]}{mark}  {bars}  {numbers}", style)

    def grow(tree: Tree, node: int) -> None:
        for child in children[node]:
            grow(tree.add(label(child)), child)

    tree = Tree(label(graph.root))
    grow(tree, graph.root)
    console.print(tree)
    depth = search.depth[search.problem == index]
    apart = Tree(Text("where the root does not lead"))
    for node in range(len(graph.symbols)):
        if depth[node] < 0:
            apart.add(label(node))
    console.print(apart)


def tree_text(search: SearchData, index: int) -> str:
    """What `draw_tree` prints, as plain text."""
    console = Console(file=io.StringIO(), width=160)
    with console.capture() as capture:
        draw_tree(search, index, console)
    return capture.get().rstrip()
