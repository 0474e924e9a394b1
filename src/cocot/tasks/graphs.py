"""Measures of a problem's graph: how deep and how high a node is, and which nodes a text names.

In: a `Graph`. Out: numbers by node id.
Read next: `problem.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import networkx as nx

from cocot.errors import DataError
from cocot.tasks.problem import Graph


class Place(NamedTuple):
    """Where a text names a node."""

    start: int
    node: int


def depths(graph: Graph) -> list[int]:
    """Steps from the root to each node on a shortest way; -1 where there is none."""
    known = nx.single_source_shortest_path_length(_directed(graph), graph.root)
    return [known.get(node, -1) for node in range(len(graph.symbols))]


def heights(graph: Graph, choose: Callable[[Iterable[int]], int]) -> list[int]:
    """Steps from each node down to a leaf, a node without out-edges.

    Args:
        graph: The graph.
        choose: `min` for the nearest leaf, `max` for the farthest: the paper (section 5) defines height both ways.

    Raises:
        DataError: the graph has a cycle.
    """
    directed = _directed(graph)
    found: dict[int, int] = {}
    for node in reversed(_from_top_to_bottom(directed)):
        found[node] = 1 + choose(found[child] for child in directed[node]) if directed[node] else 0
    return [found[node] for node in range(len(graph.symbols))]


def walk_shares(graph: Graph) -> list[float]:
    """The share of random walks from the root that pass each node, if a walk leaves every node by any edge alike.

    Raises:
        DataError: the graph has a cycle.
    """
    directed = _directed(graph)
    found = [float(node == graph.root) for node in range(len(graph.symbols))]
    for node in _from_top_to_bottom(directed):
        for child in directed[node]:
            found[child] += found[node] / len(directed[node])
    return found


def mentioned(graph: Graph, text: str) -> list[Place]:
    """The nodes that a text names, as whole words, in the order of the text."""
    nodes = {name: node for node, name in enumerate(graph.symbols)}
    names = "|".join(re.escape(name) for name in sorted(nodes, key=len, reverse=True))
    return [Place(match.start(), nodes[match[0]]) for match in re.finditer(rf"(?<!\w)(?:{names})(?!\w)", text)]


def is_chain_of_names(graph: Graph, steps: Sequence[str]) -> bool:
    """Whether a step names the node that it arrives at, and no other; else it names an edge, both of its nodes."""
    return bool(steps) and len(mentioned(graph, steps[0])) == 1


def leads_to(graph: Graph, target: int) -> list[bool]:
    """Whether a way leads from each node to `target`; the target leads to itself."""
    above = nx.ancestors(_directed(graph), target) | {target}
    return [node in above for node in range(len(graph.symbols))]


def _from_top_to_bottom(directed: nx.DiGraph) -> list[int]:
    """The nodes, each behind those that lead to it."""
    try:
        return list(nx.topological_sort(directed))
    except nx.NetworkXUnfeasible as error:
        raise DataError("a problem's graph has a cycle, so its nodes have no height; remove the problem.") from error


def _directed(graph: Graph) -> nx.DiGraph:
    directed = nx.DiGraph()
    directed.add_nodes_from(range(len(graph.symbols)))
    directed.add_edges_from(graph.edges)
    return directed
