"""A search in the terminal: the tree below the root, with every node's probability after each number of thoughts.

In: a `Search`, the index of a problem. Out: text.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cocot.search import Search

_BAR = "▁▂▃▄▅▆▇█"


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
