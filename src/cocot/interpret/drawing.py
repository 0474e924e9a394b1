"""One problem of a search as plain data to draw: its graph with a place for each node, and all that is known of it.

In: a `SearchData`, a problem's index. Out: a JSON-ready mapping, which the page's script and `tree_html.py` draw.

    drawing(search, 0)["places"]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import networkx as nx

from cocot.interpret.search_data import SearchData
from cocot.methods.tokens import ANSWER_MARK
from cocot.tasks.graphs import mentioned
from cocot.tasks.problem import Graph

_GAP = 70
_SWEEPS = 8

Order = dict[int, float]
"""Where a node stands in its row, from 0 to 1."""


def drawing(search: SearchData, index: int) -> dict[str, Any]:
    """What a drawing of a problem shows; of one without a graph, its texts alone."""
    problem = search.problems[index]
    texts = {
        "question": problem.question,
        "answer": problem.answer,
        "outputs": [texts[index] for texts in search.outputs],
        "correct": search.correct[:, index].tolist(),
        "nearest": [
            list(zip(tokens, (round(value, 4) for value in values.tolist()), strict=True))
            for tokens, values in zip(search.nearest[index], search.nearest_values[index], strict=True)
        ],
    }
    return {**texts, **_nodes(search, index, problem.steps, problem.graph)} if problem.graph else texts


def _nodes(search: SearchData, index: int, steps: Sequence[str], graph: Graph) -> dict[str, Any]:
    """Where the nodes of a problem's graph stand, and what the model thinks of them."""
    own = search.problem == index
    places = layout(graph)
    chosen = [mentioned(graph, texts[index].rpartition(ANSWER_MARK)[2]) for texts in search.outputs]
    return {
        "names": graph.symbols,
        "edges": graph.edges,
        "target": graph.target,
        "distractor": graph.distractor,
        "way": [tuple(place.node for place in mentioned(graph, step)[:2]) for step in steps],
        "places": places,
        "size": [max(x for x, _ in places), max(y for _, y in places)],
        "depth": search.depth[own].tolist(),
        "values": [[round(value, 4) for value in row] for row in search.values[:, own].tolist()],
        "chosen": [nodes[-1].node if nodes else None for nodes in chosen],
    }


def layout(graph: Graph) -> list[list[float]]:
    """A place (x, y) for each node: below every node that leads to it, and near those, so that few edges cross.

    Source: the barycenter method of Sugiyama, Tagawa and Toda, IEEE Trans. SMC 11 (1981).
    """
    directed = nx.DiGraph()
    directed.add_nodes_from(range(len(graph.symbols)))
    directed.add_edges_from(graph.edges)
    rank = {node: number for number, node in enumerate(nx.dfs_preorder_nodes(directed, graph.root))}
    first = {node: rank.get(node, len(rank) + number) for number, node in enumerate(nx.dfs_preorder_nodes(directed))}
    rows = [sorted(row, key=first.__getitem__) for row in nx.topological_generations(directed)]
    order: Order = {}
    for row in rows:
        order |= _spread(row)
    for sweep in range(_SWEEPS):
        goes_down = sweep % 2 == 0
        neighbours = directed.predecessors if goes_down else directed.successors
        for number in range(len(rows)) if goes_down else reversed(range(len(rows))):
            rows[number].sort(key=lambda node: _centre(neighbours(node), order, order[node]))
            order |= _spread(rows[number])
    width = max(map(len, rows))
    depth = {node: number for number, row in enumerate(rows) for node in row}
    left = min(order.values()) * width
    return [
        [round(_GAP * (order[node] * width - left), 1), round(_GAP * depth[node], 1)]
        for node in range(len(graph.symbols))
    ]


def _spread(row: Sequence[int]) -> Order:
    return {node: (number + 0.5) / len(row) for number, node in enumerate(row)}


def _centre(neighbours: Iterable[int], order: Order, otherwise: float) -> float:
    places = [order[node] for node in neighbours]
    return fmean(places) if places else otherwise
