"""A search in the terminal: tables of what a model thinks of it, and the tree of one problem.

In: a `Search`. Out: text.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cocot.frontiers import MIN_PROBLEMS, read_frontiers
from cocot.plan import align
from cocot.process import CATEGORIES
from cocot.search import Search

_BAR = "▁▂▃▄▅▆▇█"


def describe(search: Search) -> str:
    """All tables that the search has enough for."""
    parts = [f"where the next step can lead\n{mass_table(search)}", f"what is written\n{category_table(search)}"]
    if search.thoughts.shape[1]:
        parts.append(f"the thoughts themselves\n{lens_table(search)}")
        if len(search.problems) >= MIN_PROBLEMS:
            parts.append(f"the nodes that a linear probe reads off them\n{reading_table(search)}")
    return "\n\n".join(parts)


def mass_table(search: Search) -> str:
    """How the probability of the next step is shared out after each number of thoughts, for a terminal."""
    rows: list[tuple[str, ...]] = [
        ("thoughts", "problems", "frontier", "reachable", "elsewhere", "no node", "accuracy")
    ]
    for k in range(len(search.values)):
        masses = search.masses(k)
        parts = (_mean(part) for part in masses.values())
        rows.append((str(k), f"{len(masses['frontier']):,}", *parts, f"{search.correct[k].mean():.1%}"))
    return align(rows)


def category_table(search: Search) -> str:
    """The share of each of the paper's categories of outputs after each number of thoughts, for a terminal."""
    rows: list[tuple[str, ...]] = [("thoughts", *CATEGORIES)]
    for k in range(len(search.values)):
        found = search.categories(k)
        rows.append((str(k), *(f"{found.count(name) / len(found):.1%}" for name in CATEGORIES)))
    return align(rows)


def reading_table(search: Search) -> str:
    """What a linear probe finds in the thoughts, and what the thoughts are near to, for a terminal."""
    rows: list[tuple[str, ...]] = [("thought", "depth", "recall", "shuffled", "guessing", "problems")]
    for one in read_frontiers(search):
        shares = (f"{share:.3f}" for share in (one.recall, one.shuffled, one.guessing))
        rows.append((str(one.thought), str(one.depth), *shares, f"{one.problems:,}"))
    return align(rows)


def lens_table(search: Search) -> str:
    """Length, cosine to the thought before, and the token that the head most often reads in it, thought by thought."""
    rows: list[tuple[str, ...]] = [
        ("thought", "length / embedding", "cosine to the last", "nearest token", "probability")
    ]
    for thought in range(search.thoughts.shape[1]):
        (token, _), *_ = Counter(texts[thought][0] for texts in search.nearest).most_common(1)
        length = search.norms[:, thought].mean() / search.embedding_norm
        cosine = f"{search.cosines[:, thought - 1].mean():.3f}" if thought else ""
        value = search.nearest_values[:, thought, 0].mean()
        rows.append((str(thought + 1), f"{length:.3f}", cosine, repr(token), f"{value:.3f}"))
    return align(rows)


def _mean(values: Any) -> str:
    """The mean with its 95 % interval (normal approximation); nothing of nothing."""
    if not len(values):
        return "-"
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def draw_tree(search: Search, index: int, console: Console | None = None) -> None:
    """Print the problem, its tree and what the model writes after k = 0 ... K thoughts.

    A node's bars and numbers are its probability as the next step, one a k. Target and distractor are marked; a node
    with several parents is drawn below each of them. What the root does not lead to stands apart.
    """
    console = console or Console()
    problem = search.problems[index]
    graph = problem.graph
    assert graph is not None
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

    console.print(Text(f"problem {index}: {problem.question}"))
    tree = Tree(label(graph.root))
    grow(tree, graph.root)
    console.print(tree)
    depth = search.depth[search.problem == index]
    apart = Tree(Text("where the root does not lead"))
    for node in range(len(graph.symbols)):
        if depth[node] < 0:
            apart.add(label(node))
    console.print(apart)
    for k, texts in enumerate(search.outputs):
        verdict = "right" if search.correct[k, index] else "wrong"
        console.print(Text(f"after {k} thoughts: {texts[index]}  [{verdict}]"))
