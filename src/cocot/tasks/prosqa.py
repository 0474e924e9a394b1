"""ProsQA: questions that need a search in a graph ("which of these two can the entity reach?").

In: a count, a seed and a mode. Out: `Problem`s with their `Graph`; statistics and frontiers of them.

A mode draws the graph: `released` like the published data, `paper` by the paper's Algorithm 1 to the letter,
`balanced` so that only a search can tell the two options apart. A rendering writes it down: `sentences` (the
published format) or `symbolic` (one token a node, for tiny models). A curriculum is made of settings: how many steps
a question takes (`hops`), how large its graph is, and how many questions are asked about one graph.

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

Read next: `prosqa_graphs.py` (how a graph is drawn), `problem.py` (the values made here).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import chain, islice, repeat
from random import Random
from typing import Any, NamedTuple, TypeVar

from cocot.errors import ConfigError, DataError
from cocot.tasks.base import Task, register
from cocot.tasks.problem import Graph, Problem, check_request, check_whole, mean_statistics, one_of
from cocot.tasks.prosqa_graphs import SAMPLERS, DrawnGraph, Edge, Query, Sizes, search, shortest_path
from cocot.tasks.prosqa_settings import MOST_NODES, check_sizes, most_nodes

_T = TypeVar("_T")

# Split from text: in a wall of quotes a missing comma would join two names unseen.
_PERSONS = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()  # noqa: SIM905
_CONCEPTS = """boompus bompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus
    impus jelpus jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus
    storpus terpus timpus tumpus vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus""".split()  # noqa: SIM905


def _sentence_names(rng: Random, drawn: DrawnGraph) -> tuple[str, ...]:
    """A person's name for every node without an in-edge, a concept for the others."""
    concepts = {node for _, node in drawn.edges}
    persons, kinds = iter(rng.sample(_PERSONS, len(_PERSONS))), iter(rng.sample(_CONCEPTS, len(_CONCEPTS)))
    return tuple(next(kinds if node in concepts else persons) for node in range(drawn.num_nodes))


def _symbolic_names(rng: Random, drawn: DrawnGraph, symbols: int | None = None) -> tuple[str, ...]:
    return tuple(str(number) for number in rng.sample(range(symbols or drawn.num_nodes), drawn.num_nodes))


class _Rendering(NamedTuple):
    """How nodes are named and what the texts look like."""

    names: Callable[[Random, DrawnGraph], tuple[str, ...]]
    every: str  # goes before a subject that has an in-edge
    edge: str
    question: str
    answer: str
    step: str | None = None  # a step of the chain; None: the sentence of its edge, word for word


_MOST_QUESTIONS = 1_000_000
_SHORT_STEPS = {"pairs": "{source} {target}.", "names": "{target}"}
_RENDERINGS = {
    "sentences": _Rendering(
        _sentence_names, "Every ", "{} is a {}.", "{facts} Is {root} a {} or {}?", "{root} is a {target}."
    ),
    # The root comes last: only there can a left-to-right model know what is asked.
    "symbolic": _Rendering(_symbolic_names, "", "{} {} ;", "{facts} ? {} {} {root}", "{target}"),
}


class _Written(NamedTuple):
    """What all questions about a graph share."""

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    sentences: dict[Edge, str]
    facts: str


def _write_facts(rng: Random, drawn: DrawnGraph, rendering: _Rendering) -> _Written:
    names = rendering.names(rng, drawn)
    concepts = {node for _, node in drawn.edges}

    def text(edge: Edge) -> str:
        sentence = rendering.edge.format(names[edge[0]], names[edge[1]])
        return rendering.every + sentence if edge[0] in concepts else sentence

    sentences = {edge: text(edge) for edge in drawn.edges}
    facts = " ".join(sentences[edge] for edge in rng.sample(drawn.edges, len(drawn.edges)))
    return _Written(names, tuple(drawn.edges), sentences, facts)


def _step(written: _Written, edge: Edge, rendering: _Rendering) -> str:
    if rendering.step is None:
        return written.sentences[edge]
    return rendering.step.format(source=written.names[edge[0]], target=written.names[edge[1]])


def _write(rng: Random, drawn: DrawnGraph, rendering: _Rendering) -> Iterator[Problem]:
    """Problems about one graph, as many as it has queries: their facts are the same word for word."""
    written = None
    for query in drawn.queries:
        path = shortest_path(rng, drawn.edges, query)
        # After the first path: in this order the random numbers give every seed the problems that it always gave.
        written = written or _write_facts(rng, drawn, rendering)
        root, target, distractor = (written.names[node] for node in query)
        yield Problem(
            question=rendering.question.format(*rng.sample([target, distractor], 2), facts=written.facts, root=root),
            steps=tuple(_step(written, edge, rendering) for edge in path),
            answer=rendering.answer.format(root=root, target=target),
            graph=Graph(written.names, written.edges, *query),
        )


def _known(kind: str, table: Mapping[str, _T], name: str) -> _T:
    """The entry of `table`, or an error with the nearest name."""
    if name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown ProsQA {kind} {name!r}: {hint}choose one of {', '.join(table)}")


def _renderer(
    rendering: str, short_steps: str | None, symbols: int | None, modes: Sequence[str], sizes: Sizes
) -> _Rendering:
    """The rendering of that name, with short steps if asked for, and with names from as many symbols as there are."""
    renderer = _known("rendering", _RENDERINGS, rendering)
    if short_steps is not None:
        renderer = renderer._replace(step=_known("setting short_steps", _SHORT_STEPS, short_steps))
    if short_steps == "pairs" and rendering == "symbolic":
        raise ConfigError("the steps of rendering 'symbolic' are pairs as they are: leave short_steps out")
    if symbols is None:
        return renderer
    if rendering != "symbolic":
        raise ConfigError(f"rendering {rendering!r} has no symbols, got {symbols!r}: leave it out or use 'symbolic'")
    most = max(most_nodes(mode, sizes) for mode in modes)
    check_whole("symbols", symbols, most, MOST_NODES, " (as many as the largest graph may have nodes)")
    return renderer._replace(names=partial(_symbolic_names, symbols=symbols))


def _shortcut(graph: Graph, in_degrees: Counter[int]) -> float:
    """Whether "farther from its nearest entity, then fewer in-edges" finds the target; 0.5 on a tie."""
    far, _ = search(graph.edges, [node for node in range(len(graph.symbols)) if not in_degrees[node]])
    options = (graph.target, graph.distractor)
    target, distractor = ((far.get(node, math.inf), -in_degrees[node]) for node in options)
    return 0.5 if target == distractor else float(target > distractor)


def _statistics(index: int, problem: Problem) -> dict[str, float]:
    """The row of one problem; `ProsQA.statistics` averages them."""
    graph = problem.graph
    if graph is None or graph.root not in (0, 1):
        raise DataError(
            f"problem {index} ({problem.question[:40]!r}...) has no graph with roots 0 and 1: "
            "report on generated or published problems only"
        )
    num_nodes = len(graph.symbols)
    in_degrees = Counter(node for _, node in graph.edges)
    _, path_counts = search(graph.edges, [graph.root])
    below_other, _ = search(graph.edges, [1 - graph.root])
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
        mode: str | Sequence[str] = "released",
        rendering: str = "sentences",
        short_steps: str | None = None,
        questions: int = 1,
        hops: int | Sequence[int] | None = None,
        ids: int | Sequence[int] | None = None,
        any_root: bool = False,
        layers: int | Sequence[int] | None = None,
        width: int | None = None,
        nodes: int | None = None,
        parents: int | Sequence[int] | None = None,
        symbols: int | None = None,
        **settings: Any,
    ) -> list[Problem]:
        """Make problems; fewer of them with the same settings are a prefix of more.

        A setting that only some modes have may be given if any of the modes has it.

        Args:
            count: How many problems (not graphs).
            seed: Any whole number; another one gives other problems.
            mode: `released` (like the published data), `paper` (Algorithm 1 to the letter; beyond it: 23 ids,
                a coin for the root, options uniform among the leaves below one root alone) or `balanced`
                (no shortcut: without its entity the question says nothing about the answer). Of several, each
                graph draws one.
            rendering: `sentences` (the published format) or `symbolic` (one token a node, the root last).
            short_steps: How a step of the chain is written in place of the sentence of its edge: `pairs` is its two
                names alone, `Tom lempus.`, `names` the one that it leads to, `lempus`. Facts, question and answer stay
                as published. A small model then learns far sooner to look up the next step, because the name to look
                up stands right before the one to write.
            questions: Questions about each graph, one after another: the same facts word for word, then a root, two
                options and their order of its own, so that training can read a graph once for several questions.
            hops: Steps from the root to the target on a shortest way; of several, each question draws one of those
                that its graph offers. `released` and `paper`: the target is any node so far from the only root that
                reaches it, the distractor one that only the other root reaches, a leaf if the target is one; instead
                of the law's own choice of leaves. `balanced`: the layer that both options come from (default: the
                last).
            ids: Only `released`, with `hops`, and `paper`: nodes that the law grows, roots included (default 28, 23);
                of several, each graph draws one. Those that stay isolated are dropped.
            any_root: Only `released` and `paper`, with `hops`: a question may begin at any node that has an out-edge,
                in `sentences` at any person, so that those about one graph differ in what they search; the
                distractor is any node with an in-edge that it does not reach, a leaf if the target is one.
            layers: Only `balanced`: layers under each root (default 3); of several, each graph draws one.
            width: Only `balanced`: nodes in a layer of one family (default 2).
            nodes: Only `balanced`: total number of nodes; those beyond the two families are noise.
            parents: Only `balanced`: in-edges of every node of the families (default 1), from the layer above in the
                same family and at most as many as that has nodes; of several, each node draws one.
            symbols: Only `symbolic`: names are drawn from so many numbers, 0 first (default: as many as the graph has
                nodes).
            **settings: Refused, with the nearest setting that exists.

        Returns:
            The problems, each with its graph and with one shortest path as its steps.

        Raises:
            ConfigError: A setting, mode or rendering is unknown, a size is impossible or given for modes
                without any, `sentences` has too few names for so many nodes, or graphs that offer one of the `hops`
                are too rare.

        Source: arXiv 2412.06769, appendix A.2 "ProsQA".
        """
        modes = tuple(mode) if isinstance(mode, Sequence) and not isinstance(mode, str) else (mode,)
        if not modes:
            raise ConfigError(f"mode={mode!r} is empty: give one of {', '.join(SAMPLERS)}, or several to draw from")
        for each in modes:
            check_request(count, seed, mode=each, rendering=rendering)
        samplers = [_known("mode", SAMPLERS, each) for each in modes]
        _known("rendering", _RENDERINGS, rendering)
        for name in settings:
            _known("setting", ProsQA.generate.__kwdefaults__ or {}, name)
        check_whole("questions", questions, 1, _MOST_QUESTIONS)
        names = (len(_PERSONS), len(_CONCEPTS))
        given = {"layers": layers, "width": width, "nodes": nodes, "parents": parents, "hops": hops, "ids": ids}
        given["any_root"] = any_root or None
        sizes = check_sizes(modes, rendering, names, given)
        renderer = _renderer(rendering, short_steps, symbols, modes, sizes)
        rng = Random(f"{self.name} {seed}")  # seeded by text, as Random(-1) would repeat Random(1)
        graphs = (one_of(rng, samplers)(rng, sizes) for _ in repeat(None))
        return list(islice(chain.from_iterable(islice(_write(rng, g, renderer), questions) for g in graphs), count))

    def render(self, problem: Problem, rendering: str, seed: int) -> Problem:
        """Write a problem down in another rendering: the same graph, root and options.

        Args:
            problem: A generated or published problem.
            rendering: `sentences` or `symbolic`.
            seed: Any whole number: it draws names, the order of the facts and of the options, and one shortest path,
                for each problem others.

        Raises:
            ConfigError: The rendering is unknown, or has too few names for the graph.
            DataError: The problem has no graph, or its root does not reach the target.
        """
        check_request(0, seed, rendering=rendering)
        renderer = _known("rendering", _RENDERINGS, rendering)
        graph, about = problem.graph, f"problem {problem.question[:40]!r}..."
        if graph is None:
            raise DataError(f"{about} has no graph to write down: render generated or published problems only")
        if graph.target not in search(graph.edges, [graph.root])[0]:
            raise DataError(f"{about} has no way from its root to its target: remove the problem")
        num_concepts = len({node for _, node in graph.edges})
        num_persons = len(graph.symbols) - num_concepts
        if rendering == "sentences" and (num_persons > len(_PERSONS) or num_concepts > len(_CONCEPTS)):
            raise ConfigError(
                f"{about} has {num_persons} nodes without an in-edge and {num_concepts} with one: 'sentences' "
                f"has names for {len(_PERSONS)} and {len(_CONCEPTS)}; use 'symbolic'"
            )
        query = Query(graph.root, graph.target, graph.distractor)
        rng = Random(f"{self.name} {seed} {problem.question}")
        return next(_write(rng, DrawnGraph(len(graph.symbols), list(graph.edges), iter([query])), renderer))

    def frontiers(self, problem: Problem) -> tuple[tuple[str, ...], ...]:
        """The names of the nodes that are exactly k steps from the root, for k = 1 to the farthest.

        Args:
            problem: Any; without a graph there are none.
        """
        graph = problem.graph
        if graph is None:
            return ()
        distances, _ = search(graph.edges, [graph.root])
        frontiers: list[list[str]] = [[] for _ in range(max(distances.values()))]
        for node, distance in distances.items():
            if distance:
                frontiers[distance - 1].append(graph.symbols[node])
        return tuple(map(tuple, frontiers))

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
