"""ProsQA: questions that need a search in a graph ("which of these two can the entity reach?").

In: a count, a seed and a mode. Out: `Problem`s with their `Graph`; grading and statistics of them.

A mode draws the graph: `released` like the published data, `paper` by the paper's Algorithm 1 to the letter,
`balanced` so that only a search can tell the two options apart. A rendering writes it down: `sentences` (the
published format) or `symbolic` (one token a node, for tiny models).

Example:
    >>> from cocot.tasks.prosqa import ProsQA
    >>> task = ProsQA()
    >>> (problem,) = task.generate(1, seed=0, mode="balanced", rendering="symbolic", layers=2, width=1)
    >>> problem.question
    '2 5 ; 4 3 ; 0 2 ; 1 4 ; ? 5 3 0'
    >>> problem.steps, problem.answer
    (('0 2 ;', '2 5 ;'), '5')
    >>> task.is_correct(problem, f" {problem.answer} ")
    True

Read next: `problem.py` (the values made here), `prontoqa.py` (the sister task).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from random import Random
from typing import Any, NamedTuple, TypeVar

from cocot.errors import ConfigError, DataError
from cocot.tasks.base import Task, register
from cocot.tasks.problem import Graph, Problem, check_request, check_whole, mean_statistics

_Edge = tuple[int, int]
_Leaves = tuple[list[int], list[int]]  # those below root 0 alone, those below root 1 alone
_T = TypeVar("_T")

# Split from text: in a wall of quotes a missing comma would join two names unseen.
_PERSONS = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()  # noqa: SIM905
_CONCEPTS = """boompus bompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus
    impus jelpus jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus
    storpus terpus timpus tumpus vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus""".split()  # noqa: SIM905

_MEAN_PARENTS = 1.5
_DEPTH_WEIGHT = 1.5


class _Draw(NamedTuple):
    """A graph without names; nodes 0 and 1 are the roots, an edge goes from a lower id to a higher."""

    num_nodes: int
    edges: list[_Edge]
    root: int
    target: int
    distractor: int


class _Sizes(NamedTuple):  # checked settings of mode `balanced`
    layers: tuple[int, ...]
    width: int
    nodes: int | None


def _balanced(rng: Random, sizes: _Sizes) -> _Draw:
    """Two trees drawn by the same law, one option from each, and only then a coin for the root."""
    families = [[[0]], [[1]]]
    edges: list[_Edge] = []
    new = 2
    for _ in range(rng.choice(sizes.layers)):
        for family in families:
            above, layer = family[-1], list(range(new, new + sizes.width))
            edges += [(rng.choice(above), node) for node in layer]
            family.append(layer)
            new += sizes.width
    inner = [[node for layer in family[:-1] for node in layer] for family in families]
    num_nodes = sizes.nodes or new
    edges += [(rng.choice(rng.choice(inner)), noise) for noise in range(new, num_nodes)]
    options = [rng.choice(family[-1]) for family in families]
    # The coin comes last: all that the question shows without its entity was fixed before.
    root = rng.randrange(2)
    return _Draw(num_nodes, edges, root, options[root], options[1 - root])


class _Law(NamedTuple):
    """What differs between the two grown modes."""

    num_ids: int  # roots included; ids that stay isolated are dropped afterwards
    redraws: bool  # the choice between group 2 and all nodes takes a random number of its own
    open_labels: tuple[int, ...]  # labels that are candidates beside either group
    deep_labels: tuple[int, ...]  # labels whose distance from a root counts in the weight
    target: Callable[[Random, _Leaves, list[int]], int | None]  # None: grow another graph


def _released_target(rng: Random, leaves: _Leaves, depths: list[int]) -> int | None:
    both = leaves[0] + leaves[1]
    deepest = max(depths[node] for node in both)
    return rng.choice([node for node in both if depths[node] == deepest]) if 3 <= deepest <= 6 else None


_PAPER = _Law(23, False, (0,), (1, 2, 3), lambda rng, leaves, _: rng.choice(leaves[rng.randrange(2)]))
_RELEASED = _Law(28, True, (), (1, 2), _released_target)


def _candidates(rng: Random, law: _Law, labels: list[int]) -> list[int]:
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


def _grow(rng: Random, law: _Law) -> tuple[list[list[int]], list[int], list[int]]:
    """Algorithm 1: for each node its parents, its label and its depth (0 where the law does not count it)."""
    parents: list[list[int]] = [[], []]
    labels, depths = [1, 2], [0, 0]  # label: bit 1 for "below root 0", bit 2 for "below root 1"
    for _ in range(2, law.num_ids):
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
    return parents, labels, depths


def _exclusive_leaves(parents: list[list[int]], labels: list[int]) -> _Leaves:
    inner = {node for above in parents for node in above}
    leaves = [node for node in range(2, len(parents)) if node not in inner]
    return [n for n in leaves if labels[n] == 1], [n for n in leaves if labels[n] == 2]


def _grown(rng: Random, law: _Law) -> _Draw:
    """Grow graphs until one has a target, a distractor and no more persons than there are names."""
    while True:
        parents, labels, depths = _grow(rng, law)
        leaves = _exclusive_leaves(parents, labels)
        target = law.target(rng, leaves, depths) if all(leaves) else None
        edges = [(source, node) for node, above in enumerate(parents) for source in above]
        used = sorted({node for edge in edges for node in edge})
        if target is None or sum(not parents[node] for node in used) > len(_PERSONS):
            continue
        root = labels[target] - 1
        distractor = rng.choice(leaves[1 - root])
        new = {node: index for index, node in enumerate(used)}
        renumbered = [(new[source], new[node]) for source, node in edges]
        return _Draw(len(used), renumbered, root, new[target], new[distractor])


_SAMPLERS: dict[str, Callable[[Random, _Sizes], _Draw]] = {
    "released": lambda rng, _: _grown(rng, _RELEASED),
    "paper": lambda rng, _: _grown(rng, _PAPER),
    "balanced": _balanced,
}


def _search(edges: Sequence[_Edge], starts: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
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


def _shortest_path(rng: Random, draw: _Draw) -> list[_Edge]:
    """A shortest path from root to target, each equally likely: walk back, weighted by path counts."""
    distances, counts = _search(draw.edges, [draw.root])
    path: list[_Edge] = []
    node = draw.target
    while node != draw.root:
        above = [s for s, child in draw.edges if child == node and distances.get(s) == distances[node] - 1]
        (source,) = rng.choices(above, [counts[source] for source in above])
        path.append((source, node))
        node = source
    return path[::-1]


def _sentence_names(rng: Random, draw: _Draw) -> tuple[str, ...]:
    """A person's name for every node without an in-edge, a concept for the others."""
    concepts = {node for _, node in draw.edges}
    persons, kinds = iter(rng.sample(_PERSONS, len(_PERSONS))), iter(rng.sample(_CONCEPTS, len(_CONCEPTS)))
    return tuple(next(kinds if node in concepts else persons) for node in range(draw.num_nodes))


def _symbolic_names(rng: Random, draw: _Draw) -> tuple[str, ...]:
    return tuple(str(number) for number in rng.sample(range(draw.num_nodes), draw.num_nodes))


class _Rendering(NamedTuple):
    """How nodes are named and what the texts look like."""

    names: Callable[[Random, _Draw], tuple[str, ...]]
    every: str  # goes before a subject that has an in-edge
    edge: str
    question: str
    answer: str


_MOST_NODES = 100_000
_RENDERINGS = {
    "sentences": _Rendering(
        _sentence_names, "Every ", "{} is a {}.", "{facts} Is {root} a {} or {}?", "{root} is a {target}."
    ),
    # The root comes last: only there can a left-to-right model know what is asked.
    "symbolic": _Rendering(_symbolic_names, "", "{} {} ;", "{facts} ? {} {} {root}", "{target}"),
}


def _write(rng: Random, draw: _Draw, rendering: _Rendering) -> Problem:
    path = _shortest_path(rng, draw)
    names = rendering.names(rng, draw)
    concepts = {node for _, node in draw.edges}

    def text(edge: _Edge) -> str:
        sentence = rendering.edge.format(names[edge[0]], names[edge[1]])
        return rendering.every + sentence if edge[0] in concepts else sentence

    facts = " ".join(text(edge) for edge in rng.sample(draw.edges, len(draw.edges)))
    root, target, distractor = (names[node] for node in (draw.root, draw.target, draw.distractor))
    return Problem(
        question=rendering.question.format(*rng.sample([target, distractor], 2), facts=facts, root=root),
        steps=tuple(text(edge) for edge in path),
        answer=rendering.answer.format(root=root, target=target),
        graph=Graph(names, tuple(draw.edges), draw.root, draw.target, draw.distractor),
    )


def _known(kind: str, table: Mapping[str, _T], name: str) -> _T:
    """The entry of `table`, or an error with the nearest name."""
    if name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown ProsQA {kind} {name!r}: {hint}choose one of {', '.join(table)}")


def _sizes(rendering: str, layers: int | Sequence[int], width: int, nodes: int | None) -> _Sizes:
    """Check the sizes of mode `balanced`, and that the rendering has names for so many nodes."""
    depths = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    if not depths:
        raise ConfigError(f"layers={layers!r} is empty: give one whole number or several to draw from")
    for depth in depths:
        check_whole("layers", depth, 1, _MOST_NODES)
    check_whole("width", width, 1, _MOST_NODES)
    tree_nodes, most = 2 + 2 * max(depths) * width, 2 + len(_CONCEPTS)
    if tree_nodes > _MOST_NODES:
        raise ConfigError(f"layers and width make {tree_nodes} nodes; the most is {_MOST_NODES}")
    if nodes is not None:
        check_whole("nodes", nodes, tree_nodes, _MOST_NODES, " (2 roots + 2 families x layers x width)")
    if rendering == "sentences" and (nodes or tree_nodes) > most:
        raise ConfigError(
            f"{nodes or tree_nodes} nodes are more than rendering 'sentences' has names for ({most}): "
            "lower layers, width or nodes, or use rendering 'symbolic'"
        )
    return _Sizes(depths, width, nodes)


def _shortcut(graph: Graph, in_degrees: Counter[int]) -> float:
    """Whether "farther from its nearest entity, then fewer in-edges" finds the target; 0.5 on a tie."""
    far, _ = _search(graph.edges, [node for node in range(len(graph.symbols)) if not in_degrees[node]])
    options = (graph.target, graph.distractor)
    target, distractor = ((far.get(node, math.inf), -in_degrees[node]) for node in options)
    return 0.5 if target == distractor else float(target > distractor)


def _statistics(index: int, problem: Problem) -> dict[str, float]:
    """The row of one problem; `ProsQA.report` averages them."""
    graph = problem.graph
    if graph is None or graph.root not in (0, 1):
        raise DataError(
            f"problem {index} ({problem.question[:40]!r}...) has no graph with roots 0 and 1: "
            "report on generated or published problems only"
        )
    num_nodes = len(graph.symbols)
    in_degrees = Counter(node for _, node in graph.edges)
    _, path_counts = _search(graph.edges, [graph.root])
    below_other, _ = _search(graph.edges, [1 - graph.root])
    return {
        "nodes": num_nodes,
        "edges": len(graph.edges),
        "steps": len(problem.steps),
        "shortest_paths": path_counts.get(graph.target, 0),
        "persons": num_nodes - len(in_degrees),
        "leaves": num_nodes - len({source for source, _ in graph.edges}),
        "root_is_node_1": graph.root,
        "distractor_depth": below_other.get(graph.distractor, math.nan),
        "target_in_degree": in_degrees[graph.target],
        "distractor_in_degree": in_degrees[graph.distractor],
        "question_words": len(problem.question.split()),
        "shortcut": _shortcut(graph, in_degrees),
    }


@register
class ProsQA(Task):
    """The ProsQA task of arXiv 2412.06769, appendix A.2: make problems, grade answers, report statistics."""

    name = "prosqa"

    def generate(
        self,
        count: int,
        *,
        seed: int,
        mode: str = "released",
        rendering: str = "sentences",
        layers: int | Sequence[int] | None = None,
        width: int | None = None,
        nodes: int | None = None,
        **settings: Any,
    ) -> list[Problem]:
        """Make problems; fewer of them with the same settings are a prefix of more.

        Args:
            count: How many.
            seed: Any whole number; another one gives other problems.
            mode: `released` (like the published data), `paper` (Algorithm 1 to the letter; beyond it: 23 ids,
                a coin for the root, options uniform among the leaves below one root alone) or `balanced`
                (no shortcut: without its entity the question says nothing about the answer).
            rendering: `sentences` (the published format) or `symbolic` (one token a node, the root last).
            layers: Only `balanced`: layers under each root (default 3); of several, each problem draws one.
            width: Only `balanced`: nodes in a layer of one family (default 2).
            nodes: Only `balanced`: total number of nodes; those beyond the two trees are noise.
            **settings: Refused, with the nearest setting that exists.

        Returns:
            The problems, each with its graph and with one shortest path as its steps.

        Raises:
            ConfigError: A setting, mode or rendering is unknown, a size is impossible or given for a mode
                without any, or `sentences` has too few names for so many nodes.

        Source: arXiv 2412.06769, appendix A.2 "ProsQA".
        """
        check_request(count, seed, mode=mode, rendering=rendering)
        sampler, renderer = _known("mode", _SAMPLERS, mode), _known("rendering", _RENDERINGS, rendering)
        given = {"layers": layers, "width": width, "nodes": nodes}
        for name in settings:
            _known("setting", {"mode": mode, "rendering": rendering, **given}, name)
        for name, size in given.items():
            if mode != "balanced" and size is not None:
                raise ConfigError(f"mode {mode!r} has no {name}, got {size!r}: leave it out or use 'balanced'")
        sizes = _sizes(rendering, 3 if layers is None else layers, 2 if width is None else width, nodes)
        rng = Random(f"{self.name} {seed}")  # seeded by text, as Random(-1) would repeat Random(1)
        return [_write(rng, sampler(rng, sizes), renderer) for _ in range(count)]

    def statistics(self, problems: Sequence[Problem]) -> dict[str, float]:
        """Means over the problems, and the accuracy of a rule that does not search.

        Args:
            problems: Generated or published problems: with graphs whose two roots are nodes 0 and 1.

        Returns:
            The mean of each statistic; `shortcut` is the accuracy of "pick the option farther from its
            nearest entity (a node without in-edges), on a tie the one with fewer in-edges, else guess".

        Raises:
            DataError: There are no problems, or one of them has no such graph.
        """
        return mean_statistics(problems, _statistics)
