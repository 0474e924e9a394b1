"""The graphs of ProsQA: three laws that draw them, and the questions that each of them offers.

In: random numbers and checked `Sizes`. Out: a `DrawnGraph`, whose nodes have no names yet and whose questions are drawn
one after another; the shortest paths in it.

`released` and `paper` grow a graph node by node (the paper's Algorithm 1), `balanced` draws two trees alike.

Read next: `prosqa.py`, which names the nodes and writes the text.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from random import Random
from typing import Literal, NamedTuple

from cocot.errors import ConfigError
from cocot.tasks.problem import one_of

Edge = tuple[int, int]
_Leaves = tuple[list[int], list[int]]  # those below root 0 alone, those below root 1 alone
_Choice = tuple[int, int, list[int]]  # a root, a target, and the nodes of which one becomes the distractor

_MEAN_PARENTS = 1.5
_DEPTH_WEIGHT = 1.5
_MOST_TRIES = 10_000
_MOST_WORK = 8_000_000  # growing a graph costs as much as the square of its ids


class Query(NamedTuple):
    """What a question asks of a graph: which of two nodes the root reaches."""

    root: int
    target: int
    distractor: int


class DrawnGraph(NamedTuple):
    """A graph without names; nodes 0 and 1 are the roots, an edge goes from a lower id to a higher.

    Attributes:
        num_nodes: How many nodes it has.
        edges: Pairs (source id, destination id).
        queries: Without end; each is drawn when it is taken.
    """

    num_nodes: int
    edges: list[Edge]
    queries: Iterator[Query]


class Sizes(NamedTuple):
    """Checked settings of the graphs; a tuple has what each graph (or node, or question) draws one of.

    Attributes:
        layers: Mode `balanced`: layers under each root.
        width: Mode `balanced`: nodes in a layer of one family.
        nodes: Mode `balanced`: nodes in all; None for those of the two families.
        parents: Mode `balanced`: in-edges of a node of the families.
        hops: Steps from root to target; None for those of the mode's law.
        ids: Modes `released` and `paper`: nodes that are grown; None for those of the mode's law.
        names: The most nodes without an in-edge, and the most with one; a graph with more is grown again.
        starts: Modes `released` and `paper`: questions begin at one of the two `roots`, at any node without an in-edge
            (`sources`), or at `any` node with an out-edge.
    """

    layers: tuple[int, ...]
    width: int
    nodes: int | None
    parents: tuple[int, ...]
    hops: tuple[int, ...] | None
    ids: tuple[int, ...] | None
    names: tuple[int, int] | None
    starts: Literal["roots", "sources", "any"] = "roots"


def _balanced(rng: Random, sizes: Sizes) -> DrawnGraph:
    """Two families drawn by the same law, and noise below them."""
    families = [[[0]], [[1]]]
    edges: list[Edge] = []
    new = 2
    for _ in range(rng.choice(sizes.layers)):
        for family in families:
            above, layer = family[-1], list(range(new, new + sizes.width))
            edges += [(parent, node) for node in layer for parent in _tree_parents(rng, above, sizes.parents)]
            family.append(layer)
            new += sizes.width
    inner = [[node for layer in family[:-1] for node in layer] for family in families]
    num_nodes = sizes.nodes or new
    edges += [(rng.choice(rng.choice(inner)), noise) for noise in range(new, num_nodes)]
    return DrawnGraph(num_nodes, edges, _balanced_queries(rng, families, sizes.hops))


def _tree_parents(rng: Random, above: list[int], numbers: tuple[int, ...]) -> list[int]:
    """Different nodes of the layer above, at most as many as there are."""
    number = min(one_of(rng, numbers), len(above))
    return [rng.choice(above)] if number == 1 else rng.sample(above, number)


def _balanced_queries(rng: Random, families: list[list[list[int]]], hops: tuple[int, ...] | None) -> Iterator[Query]:
    """One option from the same layer of each family, and only then a coin for the root."""
    last = len(families[0]) - 1
    offered = (last,) if hops is None else tuple(sorted({hop for hop in hops if hop <= last}))
    while True:
        hop = one_of(rng, offered)
        options = [rng.choice(family[hop]) for family in families]
        # The coin comes last: all that the question shows without its entity was fixed before.
        root = rng.randrange(2)
        yield Query(root, options[root], options[1 - root])


class Law(NamedTuple):
    """What differs between the two grown modes.

    Attributes:
        num_ids: Roots included; ids that stay isolated are dropped afterwards.
        redraws: Whether the choice between group 2 and all nodes takes a random number of its own.
        open_labels: Labels that are candidates beside either group.
        deep_labels: Labels whose distance from a root counts in the weight.
        targets: Draws targets among the leaves below one root alone; none: grow another graph.
    """

    num_ids: int
    redraws: bool
    open_labels: tuple[int, ...]
    deep_labels: tuple[int, ...]
    targets: Callable[[Random, _Leaves, list[int]], Iterator[int]]


def _released_targets(rng: Random, leaves: _Leaves, depths: list[int]) -> Iterator[int]:
    both = leaves[0] + leaves[1]
    deepest = max(depths[node] for node in both)
    choices = [node for node in both if depths[node] == deepest]
    while 3 <= deepest <= 6:
        yield rng.choice(choices)


def _paper_targets(rng: Random, leaves: _Leaves, _: list[int]) -> Iterator[int]:
    while True:
        yield rng.choice(leaves[rng.randrange(2)])


PAPER = Law(23, False, (0,), (1, 2, 3), _paper_targets)
RELEASED = Law(28, True, (), (1, 2), _released_targets)
LAWS: dict[str, Law] = {"released": RELEASED, "paper": PAPER}


def _candidates(rng: Random, law: Law, labels: list[int]) -> list[int]:
    """The nodes that may become parents of the next one."""
    first = rng.random()
    second = rng.random() if law.redraws else first
    if first > 0.35 and second > 0.7:
        return list(range(len(labels)))
    group = 1 if first <= 0.35 else 2
    return [node for node, label in enumerate(labels) if label == group or label in law.open_labels]


def _poisson(rng: Random, mean: float) -> int:
    """Knuth's method: how many uniform factors it takes to fall below exp(-mean), less one."""
    floor, product, count = math.exp(-mean), rng.random(), 0
    while product > floor:
        product *= rng.random()
        count += 1
    return count


class Growth(NamedTuple):
    """What Algorithm 1 grew.

    Attributes:
        parents: Of each node.
        labels: Of each node: bit 1 for "below root 0", bit 2 for "below root 1".
        depths: Steps from the nearest root to each node, 0 where the law does not count them.
    """

    parents: list[list[int]]
    labels: list[int]
    depths: list[int]


def _grow(rng: Random, law: Law, num_ids: int) -> Growth:
    """Algorithm 1."""
    parents: list[list[int]] = [[], []]
    labels, depths = [1, 2], [0, 0]
    for _ in range(2, num_ids):
        count = _poisson(rng, _MEAN_PARENTS)
        candidates = _candidates(rng, law, labels)
        # An exponential race is a weighted draw without replacement: the first `count` to ring are drawn.
        rings = [(rng.expovariate(_DEPTH_WEIGHT * depths[node] + 1), node) for node in candidates]
        chosen = [node for _, node in heapq.nsmallest(count, rings)]
        label = 0
        for node in chosen:
            label |= labels[node]
        nearest = min((depths[node] for node in chosen if labels[node]), default=0)
        depths.append(1 + nearest if label in law.deep_labels else 0)
        labels.append(label)
        parents.append(chosen)
    return Growth(parents, labels, depths)


def _law_choices(rng: Random, law: Law, grown: Growth) -> Iterator[_Choice]:
    """As the law says: target and distractor are leaves, each below one root alone."""
    inner = {node for above in grown.parents for node in above}
    alone = [node for node in range(2, len(grown.parents)) if node not in inner]
    leaves = [n for n in alone if grown.labels[n] == 1], [n for n in alone if grown.labels[n] == 2]
    if all(leaves):
        for target in law.targets(rng, leaves, grown.depths):
            yield grown.labels[target] - 1, target, leaves[2 - grown.labels[target]]


def _hop_choices(rng: Random, grown: Growth, hops: Sequence[int]) -> Iterator[_Choice]:
    """Targets so many steps from the only root that reaches them; the distractor is a leaf if the target is one."""
    inner = {node for above in grown.parents for node in above}
    groups = defaultdict(list)
    for node, label in enumerate(grown.labels[2:], start=2):
        if label in (1, 2):
            groups[label, node in inner].append(node)
    offered = defaultdict(list)
    for (label, is_inner), nodes in groups.items():
        others = groups.get((3 - label, is_inner), [])
        for node in nodes:
            if others and grown.depths[node] in hops:
                offered[grown.depths[node]].append((label - 1, node, others))
    return _of_offered(rng, offered)


def _any_choices(rng: Random, grown: Growth, hops: Sequence[int], has_parents: bool) -> Iterator[_Choice]:
    """Questions that begin at any node; the distractor has an in-edge, too, and is a leaf if the target is one.

    Args:
        rng: The source of chance.
        grown: The graph.
        hops: Steps from the node to the target.
        has_parents: Whether a question may begin at a node that has an in-edge.
    """
    edges = [(source, node) for node, above in enumerate(grown.parents) for source in above]
    inner = {source for source, _ in edges}
    options = [node for node, above in enumerate(grown.parents) if above]
    offered = defaultdict(list)
    for start in sorted(inner):
        if has_parents or not grown.parents[start]:
            distances, _ = search(edges, [start])
            for target, distance in distances.items():
                like = [n for n in options if n not in distances and (n in inner) == (target in inner)]
                if like and distance in hops:
                    offered[distance].append((start, target, like))
    return _of_offered(rng, offered)


def _of_offered(rng: Random, offered: Mapping[int, list[_Choice]]) -> Iterator[_Choice]:
    """First a distance of those that there are, then one of the choices."""
    distances = sorted(offered)
    while distances:
        yield rng.choice(offered[one_of(rng, distances)])


def _choices(rng: Random, law: Law, grown: Growth, sizes: Sizes) -> Iterator[_Choice]:
    if sizes.hops is None:
        return _law_choices(rng, law, grown)
    if sizes.starts == "roots":
        return _hop_choices(rng, grown, sizes.hops)
    return _any_choices(rng, grown, sizes.hops, has_parents=sizes.starts == "any")


def grow(rng: Random, law: Law, sizes: Sizes) -> DrawnGraph:
    """Grow graphs until one offers a question and has no more nodes than there are names.

    Raises:
        ConfigError: none of many was such a graph.
    """
    num_ids = one_of(rng, sizes.ids or (law.num_ids,))
    tries = min(_MOST_TRIES, max(20, _MOST_WORK // num_ids**2))
    for _ in range(tries):
        grown = _grow(rng, law, num_ids)
        choices = _choices(rng, law, grown, sizes)
        first = next(choices, None)
        used = {node for node, above in enumerate(grown.parents) if above}.union(*grown.parents)
        if first is not None and _has_names(grown, used, sizes.names):
            return _without_isolated(rng, grown, sorted(used), chain([first], choices))
    asked = "" if sizes.hops is None else f" with a question of {' or '.join(map(str, sizes.hops))} hops"
    raise ConfigError(
        f"none of {tries} graphs grown with ids={num_ids} could be used: one{asked} and with names for all its "
        "nodes is too rare; take hops and ids nearer to the defaults, or rendering 'symbolic'"
    )


def _has_names(grown: Growth, used: set[int], names: tuple[int, int] | None) -> bool:
    if names is None:
        return True
    persons = sum(not grown.parents[node] for node in used)
    return persons <= names[0] and len(used) - persons <= names[1]


def _without_isolated(rng: Random, grown: Growth, used: list[int], choices: Iterator[_Choice]) -> DrawnGraph:
    """The graph of the nodes that have an edge, numbered in order."""
    new = {node: index for index, node in enumerate(used)}
    edges = [(new[source], new[node]) for node in used for source in grown.parents[node]]
    queries = (Query(new[root], new[target], new[rng.choice(others)]) for root, target, others in choices)
    return DrawnGraph(len(used), edges, queries)


SAMPLERS: dict[str, Callable[[Random, Sizes], DrawnGraph]] = {
    "released": lambda rng, sizes: grow(rng, RELEASED, sizes),
    "paper": lambda rng, sizes: grow(rng, PAPER, sizes),
    "balanced": _balanced,
}


def search(edges: Sequence[Edge], starts: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Breadth first: distance from the nearest start and number of shortest paths, for each node in reach."""
    children = defaultdict(list)
    for source, node in edges:
        children[source].append(node)
    distances, counts, queue = dict.fromkeys(starts, 0), dict.fromkeys(starts, 1), list(starts)
    for source in queue:
        for node in children[source]:
            if node not in distances:
                distances[node], counts[node] = distances[source] + 1, 0
                queue.append(node)
            if distances[node] == distances[source] + 1:
                counts[node] += counts[source]
    return distances, counts


def shortest_path(rng: Random, edges: Sequence[Edge], query: Query) -> list[Edge]:
    """A shortest path from root to target, each equally likely: walk back, weighted by path counts."""
    distances, counts = search(edges, [query.root])
    path: list[Edge] = []
    node = query.target
    while node != query.root:
        above = [s for s, child in edges if child == node and distances.get(s) == distances[node] - 1]
        (source,) = rng.choices(above, [counts[source] for source in above])
        path.append((source, node))
        node = source
    return path[::-1]
