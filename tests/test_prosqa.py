"""Tests of the ProsQA task: solvable text, published form and statistics, no shortcut in `balanced`."""

import doctest
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, variance

import pytest

from cocot.errors import ConfigError, DataError
from cocot.tasks import prosqa, prosqa_graphs
from cocot.tasks.base import Task
from cocot.tasks.problem import Graph, Problem
from cocot.tasks.prosqa import ProsQA

TASK = ProsQA()
MODES = ("released", "paper", "balanced")
RENDERINGS = ("sentences", "symbolic")
BALANCED = (
    {"layers": 1, "width": 1},
    {"layers": 2, "width": 3, "nodes": 24},
    {"layers": (1, 2, 4), "width": 2},
    {"layers": [2, 3], "width": 2, "nodes": 30},
)
# Settings of `balanced` beyond its sizes: each must keep the balance.
CURRICULA = (
    {"parents": [1, 2, 3], "width": 4},
    {"hops": [1, 2, 3], "nodes": 20},
    {"layers": [2, 3, 4], "width": 4, "nodes": 36, "parents": [1, 2], "hops": [1, 2, 4], "questions": 4},
)
# Settings that no graph has by default, in the two modes that grow one.
GROWN = (
    {"hops": 2},
    {"hops": [1, 2, 3, 4, 5, 6], "questions": 8},
    {"hops": [1, 3], "ids": [12, 20, 28], "questions": 3},
    {"hops": [2, 4], "ids": 45, "rendering": "symbolic"},
)

# The first 100 problems of seed 7 as they always were: SHA-256 of their text, shortened.
GOLDEN = (
    ({}, "97a9fa5143479a70"),
    ({"mode": "paper"}, "67935281156fceb6"),
    ({"mode": "balanced"}, "e2269cf6e0990acf"),
    ({"rendering": "symbolic"}, "8e6e75914e326c65"),
    ({"mode": "paper", "rendering": "symbolic"}, "e9dc8d02f4ee68db"),
    ({"mode": "balanced", "rendering": "symbolic"}, "e7c4d8a0083c5989"),
    ({"mode": "balanced", "layers": [1, 2, 4], "width": 2, "nodes": 30}, "eb34d70c907cd377"),
    ({"mode": "balanced", "rendering": "symbolic", "layers": 2, "width": 30, "nodes": 200}, "195bdd5fffddb318"),
)

# A mean may lie this many standard errors from where it should; as the seeds are fixed, what passes keeps
# passing. Measured, `released` against the published file: 1.5 at most (22 statistics; question_words 1.0).
MAX_Z = 4.0


@cache
def made(count, mode, rendering="sentences", seed=0):
    return TASK.generate(count, seed=seed, mode=mode, rendering=rendering)


@pytest.fixture(scope="module")
def prosqa_valid():
    """The 300 problems of the published validation file."""
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("COCOT_DATA", root.parent / "shared" / "data")) / "prosqa_valid.json"
    if not path.is_file():
        pytest.skip(f"no published ProsQA data at {path}: set COCOT_DATA to the folder that holds it")
    return [
        Problem(
            row["question"],
            tuple(row["steps"]),
            row["answer"],
            Graph(
                tuple(row["idx_to_symbol"]),
                tuple((source, node) for source, node in row["edges"]),
                row["root"],
                row["target"],
                row["neg_target"],
            ),
        )
        for row in json.loads(path.read_text())
    ]


# An independent solver: it sees text only and shares no code with the generator.


def read_edge(text):
    """The edge of one sentence or `a b ;`, and whether it is written as a rule ("Every ...")."""
    sentence = re.fullmatch(r"(Every )?(\w+) is a (\w+)\.", text)
    if sentence:
        return (sentence[2], sentence[3]), bool(sentence[1])
    symbols = re.fullmatch(r"(\d+) (\d+) ;", text)
    assert symbols, text
    return (symbols[1], symbols[2]), False


def read_question(question):
    """(edge texts in order, root, options in order) of a question in either rendering."""
    sentences = re.fullmatch(r"((?:[^.]+\. )+)Is (\w+) a (\w+) or (\w+)\?", question)
    if sentences:
        return re.findall(r"[^.]+\.", sentences[1].replace(". ", ".")), sentences[2], sentences.group(3, 4)
    symbols = re.fullmatch(r"((?:\d+ \d+ ; )+)\? (\d+) (\d+) (\d+)", question)
    assert symbols, question
    return re.findall(r"\d+ \d+ ;", symbols[1]), symbols[4], symbols.group(2, 3)


def distances_from(start, edges):
    children = defaultdict(list)
    for source, node in edges:
        children[source].append(node)
    found, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for child in children[node]:
            if child not in found:
                found[child] = found[node] + 1
                queue.append(child)
    return found


def solve(question, root=None):
    """(the only option in reach, its distance); `root` replaces the entity that the question names."""
    texts, asked, options = read_question(question)
    found = distances_from(root or asked, [read_edge(text)[0] for text in texts])
    (answer,) = (option for option in options if option in found)
    return answer, found[answer]


def check_solution(problem):
    """The answer is the option in reach; the steps are a shortest path to it, in the question's words."""
    texts, root, options = read_question(problem.question)
    answer, distance = solve(problem.question)
    symbolic = "?" in problem.question.split()
    assert problem.answer == (answer if symbolic else f"{root} is a {answer}.")
    assert set(problem.steps) <= set(texts)
    path = [read_edge(step)[0] for step in problem.steps]
    assert len(path) == distance
    assert [source for source, _ in path] == [root, *(node for _, node in path[:-1])]
    assert path[-1][1] == answer
    names = problem.graph.symbols
    assert sorted(read_edge(text)[0] for text in texts) == sorted(
        (names[source], names[node]) for source, node in problem.graph.edges
    )
    assert names[problem.graph.root] == root
    assert names[problem.graph.target] == answer
    assert {names[problem.graph.target], names[problem.graph.distractor]} == set(options)


def z_score(values, expected):
    """Standard errors between the mean of `values` and a number or the mean of other values."""
    others = expected if isinstance(expected, list) else [expected, expected]
    error = variance(values) / len(values) + variance(others) / len(others)
    gap = fmean(values) - fmean(others)
    return gap / math.sqrt(error) if error else (0.0 if gap == 0 else math.inf)


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("mode", MODES)
def test_text_is_solvable(mode, rendering):
    """Whoever reads the text alone finds the answer, and the steps are a shortest path to it."""
    for problem in made(2000, mode, rendering)[:300]:
        check_solution(problem)


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("sizes", BALANCED, ids=str)
def test_balanced_text_is_solvable_at_every_size(sizes, rendering):
    """Sizes, mixed depths and noise nodes keep a `balanced` question solvable."""
    for problem in TASK.generate(200, seed=5, mode="balanced", rendering=rendering, **sizes):
        check_solution(problem)


def test_published_problems_pass_the_same_check(prosqa_valid):
    """The checker is not stricter or laxer than the published format: all 300 published problems pass."""
    for problem in prosqa_valid:
        check_solution(problem)


def exclusive_leaf_depths(graph):
    """{leaf below one root only: (that root, distance)}."""
    below = [distances_from(root, graph.edges) for root in (0, 1)]
    sources = {source for source, _ in graph.edges}
    return {
        leaf: (root, depth)
        for root in (0, 1)
        for leaf, depth in below[root].items()
        if leaf not in sources and leaf not in below[1 - root]
    }


def check_graph(graph):
    """What holds in all published problems, whatever rule picks the target."""
    nodes = set(range(len(graph.symbols)))
    children = {node for _, node in graph.edges}
    assert graph.root in (0, 1)
    assert not children & {0, 1}
    assert nodes == {node for edge in graph.edges for node in edge}
    assert len(set(graph.symbols)) == len(graph.symbols)
    assert len(set(graph.edges)) == len(graph.edges)
    assert all(source < node for source, node in graph.edges)
    assert [node for _, node in graph.edges] == sorted(node for _, node in graph.edges)
    leaves = exclusive_leaf_depths(graph)
    assert leaves[graph.target][0] == graph.root
    assert leaves[graph.distractor][0] == 1 - graph.root


@pytest.mark.parametrize("mode", MODES)
def test_graphs_keep_the_published_form(mode):
    """Ids 0 and 1 are the roots, edges are sorted and point upwards, the options are exclusive leaves."""
    for problem in made(2000, mode)[:300]:
        check_graph(problem.graph)


@pytest.mark.parametrize("sizes", BALANCED, ids=str)
def test_balanced_graphs_with_noise_keep_the_published_form(sizes):
    """Noise nodes leave ids and edges in order and the options exclusive leaves below different roots."""
    for problem in TASK.generate(200, seed=6, mode="balanced", **sizes):
        check_graph(problem.graph)


@pytest.mark.parametrize("mode", MODES)
def test_persons_are_the_nodes_without_an_in_edge(mode):
    """A person's name, and a sentence without "Every", is given to exactly the nodes without in-edges."""
    for problem in made(2000, mode)[:300]:
        children = {node for _, node in problem.graph.edges}
        for node, symbol in enumerate(problem.graph.symbols):
            assert symbol[0].isupper() == (node not in children)
        for text in read_question(problem.question)[0]:
            (source, node), rule = read_edge(text)
            assert rule == source.islower()
            assert node.islower()


def test_released_target_is_a_deepest_exclusive_leaf(prosqa_valid):
    """As in the published data, no leaf below one root only is deeper than the target, at 3 to 6."""
    for problem in [*prosqa_valid, *made(2000, "released")[:300]]:
        depths = {leaf: depth for leaf, (_, depth) in exclusive_leaf_depths(problem.graph).items()}
        assert depths[problem.graph.target] == max(depths.values()) == len(problem.steps)
        assert 3 <= len(problem.steps) <= 6


def features(problem):
    """What is compared with the published data: the report of one problem, shares and reaches."""
    row = TASK.statistics([problem])
    below = [set(distances_from(root, problem.graph.edges)) for root in (0, 1)]
    in_degrees = Counter(node for _, node in problem.graph.edges)
    return row | {
        "below_node_0": len(below[0]),
        "below_node_1": len(below[1]),
        "below_both": len(below[0] & below[1]),
        "three_steps": row["steps"] == 3,
        "six_steps": row["steps"] == 6,
        "one_shortest_path": row["shortest_paths"] == 1,
        "two_persons": row["persons"] == 2,
        "distractor_depth_1": row["distractor_depth"] == 1,
        "one_parent": fmean(degree == 1 for degree in in_degrees.values()),
        "step_words": sum(len(step.split()) for step in problem.steps),
    }


def z_scores(problems, others):
    rows, other_rows = [features(p) for p in problems], [features(p) for p in others]
    return {key: z_score([row[key] for row in rows], [row[key] for row in other_rows]) for key in rows[0]}


def test_released_matches_the_published_statistics(prosqa_valid):
    """2,000 `released` problems have the published data's statistics, words per question among them."""
    scores = z_scores(made(2000, "released"), prosqa_valid)
    assert {key: z for key, z in scores.items() if abs(z) > MAX_Z} == {}


def test_the_statistics_tell_another_generator(prosqa_valid):
    """The comparison above can fail: `paper` is told from the published data on many statistics."""
    scores = z_scores(made(2000, "paper"), prosqa_valid)
    assert {"nodes", "edges", "steps", "persons", "question_words"} <= {
        key for key, z in scores.items() if abs(z) > 2 * MAX_Z
    }


def test_paper_has_the_short_paths_of_algorithm_1():
    """Taken literally, Algorithm 1 gives paths of about 2.3 steps, not the published 3.8; a coin picks the root."""
    report = TASK.statistics(made(2000, "paper"))
    assert 2.2 < report["steps"] < 2.45  # measured 2.32
    assert abs(z_score([problem.graph.root for problem in made(2000, "paper")], 0.5)) < MAX_Z


@pytest.mark.parametrize(
    ("law", "shares"),
    [
        (prosqa_graphs.PAPER, {(0, 2, 5): 0.35, (1, 3, 5): 0.35, (0, 1, 2, 3, 4, 5): 0.3}),
        (prosqa_graphs.RELEASED, {(0, 2): 0.35, (1, 3): 0.65 * 0.7, (0, 1, 2, 3, 4, 5): 0.65 * 0.3}),
    ],
)
def test_candidates_come_as_often_as_they_should(law, shares):
    """`paper` splits one random number, `released` draws a second one and leaves the nodes of no root out."""
    rng = random.Random(3)
    counts = Counter(tuple(prosqa_graphs._candidates(rng, law, [1, 2, 1, 2, 3, 0])) for _ in range(4000))
    assert counts.keys() == shares.keys()
    for nodes, share in shares.items():
        assert abs(counts[nodes] - 4000 * share) / math.sqrt(4000 * share * (1 - share)) < MAX_Z


def test_names_are_those_of_the_published_data(prosqa_valid):
    """The generator uses exactly the published names, each person as often as any other."""
    published = {symbol for problem in prosqa_valid for symbol in problem.graph.symbols}
    used = {symbol for problem in made(2000, "released") for symbol in problem.graph.symbols}
    assert used == published
    roots = Counter(problem.graph.symbols[problem.graph.root] for problem in made(2000, "released"))
    error = math.sqrt(2000 * (1 / 17) * (16 / 17))
    assert len(roots) == 17
    assert all(abs(count - 2000 / 17) / error < MAX_Z for count in roots.values())


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_text_tells_nothing(mode, rendering):
    """Edges stand in random order and the target is the first option as often as the second."""
    target_first, places = [], []
    for problem in made(2000, mode, rendering):
        texts, _, options = read_question(problem.question)
        target_first.append(options[0] == problem.graph.symbols[problem.graph.target])
        places.append(texts.index(problem.steps[0]) / (len(texts) - 1))
    assert abs(z_score(target_first, 0.5)) < MAX_Z
    assert abs(z_score(places, 0.5)) < MAX_Z


def test_symbolic_names_are_a_random_permutation():
    """Symbols are "0" to "n-1", each as likely for the root as any other, in every mode."""
    for mode in MODES:
        for problem in made(2000, mode, "symbolic")[:200]:
            assert sorted(map(int, problem.graph.symbols)) == list(range(len(problem.graph.symbols)))
    graphs = [problem.graph for problem in made(2000, "balanced", "symbolic")]
    relative = [int(graph.symbols[graph.root]) / (len(graph.symbols) - 1) for graph in graphs]
    assert abs(z_score(relative, 0.5)) < MAX_Z


def test_steps_are_uniform_among_the_shortest_paths():
    """Of three shortest paths, two through one parent of the target, each is drawn a third of the time."""
    edges = [(0, 2), (0, 3), (0, 4), (2, 5), (3, 5), (4, 6), (5, 7), (6, 7), (1, 8)]
    query = prosqa_graphs.Query(0, 7, 8)
    rng = random.Random(1)
    firsts = Counter(prosqa_graphs.shortest_path(rng, edges, query)[0][1] for _ in range(3000))
    error = math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert all(abs(firsts[node] - 1000) / error < MAX_Z for node in (2, 3, 4))


def test_the_weights_of_parents_follow_algorithm_1():
    """Parents are drawn with weight 1.5 x depth + 1: a root and its child are chosen as 1 : 2.5."""
    counts = Counter()
    rng = random.Random(2)
    for _ in range(4000):
        parents, labels, _ = prosqa_graphs._grow(rng, prosqa_graphs.RELEASED, 4)
        # Node 2 hangs below root 0 alone; node 3 chose exactly one of the two nodes of group 1.
        if parents[2] == [0] and labels[3] == 1 and len(parents[3]) == 1:
            counts[parents[3][0]] += 1
    total = counts[0] + counts[2]
    share = 2.5 / 3.5
    assert total > 100
    assert abs(counts[2] - share * total) / math.sqrt(total * share * (1 - share)) < MAX_Z


@pytest.mark.parametrize(("law", "deep"), [(prosqa_graphs.RELEASED, {1, 2}), (prosqa_graphs.PAPER, {1, 2, 3})])
def test_labels_and_depths_follow_the_roots(law, deep):
    """A label says which roots reach a node; depth is the distance from the nearest, or 0 uncounted."""
    for seed in range(100):
        parents, labels, depths = prosqa_graphs._grow(random.Random(seed), law, law.num_ids)
        edges = [(source, node) for node, above in enumerate(parents) for source in above]
        below = [distances_from(root, edges) for root in (0, 1)]
        for node, label in enumerate(labels):
            assert label == (node in below[0]) + 2 * (node in below[1])
            nearest = min(found.get(node, math.inf) for found in below)
            assert depths[node] == (nearest if label in deep else 0)


def test_persons_never_outnumber_their_names():
    """A graph with more than 17 persons is drawn again: with 150 ids 17 come up, and never 18."""
    rng = random.Random(4)
    sizes = prosqa_graphs.Sizes((3,), 2, None, (1,), None, (150,), (17, 150))
    persons = set()
    for _ in range(200):
        drawn = prosqa_graphs.grow(rng, prosqa_graphs.PAPER, sizes)
        persons.add(drawn.num_nodes - len({node for _, node in drawn.edges}))
    assert max(persons) == 17


# Measured accuracy of the shortcut on 2,000 problems: released .916, balanced .5 exactly; published file .92.


def test_the_shortcut_solves_the_published_data(prosqa_valid):
    """The baseline that does not search solves 92 % of the published problems and as many of `released`."""
    assert 0.91 <= TASK.statistics(prosqa_valid)["shortcut"] <= 0.925
    assert TASK.statistics(made(2000, "released"))["shortcut"] >= 0.85


@pytest.mark.parametrize("sizes", [{}, *BALANCED, *CURRICULA], ids=str)
def test_the_shortcut_fails_on_balanced(sizes):
    """The baseline is no better than a coin on `balanced`, whatever its sizes."""
    problems = TASK.generate(2000, seed=3, mode="balanced", rendering="symbolic", **sizes)
    assert 0.45 <= TASK.statistics(problems)["shortcut"] <= 0.55


def graph_problem(edges, target, distractor):
    num_nodes = 1 + max(node for edge in edges for node in edge)
    graph = Graph(tuple(map(str, range(num_nodes))), tuple(edges), 0, target, distractor)
    return Problem("three words here", ("s",), "a", graph)


@pytest.mark.parametrize(
    ("edges", "target", "distractor", "score"),
    [
        ([(0, 2), (1, 3), (2, 4)], 4, 3, 1.0),  # the target is farther
        ([(0, 2), (1, 3), (3, 4)], 2, 4, 0.0),  # the distractor is farther
        ([(0, 2), (2, 3), (3, 4), (1, 5), (5, 6), (7, 4)], 4, 6, 0.0),  # entity 7 is next to the target
        ([(0, 2), (1, 3), (0, 4), (2, 4)], 4, 3, 0.0),  # equally far, the target has more in-edges
        ([(0, 2), (1, 3), (1, 4), (3, 4)], 2, 4, 1.0),  # equally far, the target has fewer
        ([(0, 2), (1, 3)], 2, 3, 0.5),  # nothing to tell them apart
    ],
)
def test_the_shortcut_rule(edges, target, distractor, score):
    """The baseline picks the option farther from its nearest entity, then fewer in-edges, then guesses."""
    assert TASK.statistics([graph_problem(edges, target, distractor)])["shortcut"] == score


def test_report_counts():
    """Each statistic is what its name says, on a graph counted by hand."""
    edges = [(0, 2), (0, 3), (1, 4), (2, 5), (3, 5), (4, 6), (7, 5)]
    report = TASK.statistics([graph_problem(edges, 5, 6), graph_problem([(0, 2), (1, 3)], 2, 3)])
    first = TASK.statistics([graph_problem(edges, 5, 6)])
    assert first == {
        "nodes": 8,
        "edges": 7,
        "steps": 1,
        "shortest_paths": 2,
        "persons": 3,
        "leaves": 2,
        "root_is_node_1": 0,
        "distractor_depth": 2,
        "target_in_degree": 3,
        "distractor_in_degree": 1,
        "question_words": 3,
        "shortcut": 0.0,
    }
    assert report["nodes"] == (8 + 4) / 2
    diamonds = [(0, 2), (0, 3), (2, 4), (3, 4), (4, 5), (4, 6), (5, 7), (6, 7), (1, 8)]
    assert TASK.statistics([graph_problem(diamonds, 7, 8)])["shortest_paths"] == 4


@pytest.mark.parametrize("sizes", BALANCED, ids=str)
def test_balanced_options_have_one_depth_and_one_parent(sizes):
    """Target and distractor are equally deep (the number of layers) and have the same in-degree."""
    layers = sizes["layers"]
    allowed = {layers} if isinstance(layers, int) else set(layers)
    depths = set()
    for problem in TASK.generate(300, seed=7, mode="balanced", rendering="symbolic", **sizes):
        row = TASK.statistics([problem])
        assert row["steps"] == row["distractor_depth"]
        assert row["target_in_degree"] == row["distractor_in_degree"] == 1
        assert row["persons"] == 2
        depths.add(row["steps"])
    assert depths == allowed


@pytest.mark.parametrize("sizes", CURRICULA, ids=str)
def test_balanced_options_come_from_one_layer(sizes):
    """With hops and several parents, too, both options are equally deep; every layer asked for comes."""
    problems = TASK.generate(300, seed=7, mode="balanced", rendering="symbolic", **sizes)
    rows = [TASK.statistics([problem]) for problem in problems]
    assert all(row["steps"] == row["distractor_depth"] for row in rows)
    assert {row["steps"] for row in rows} == set(sizes.get("hops", [3]))


@pytest.mark.parametrize("sizes", BALANCED, ids=str)
def test_balanced_sizes(sizes):
    """A layer of a family has `width` nodes, `nodes` is the total, noise is never deeper than the options."""
    for problem in TASK.generate(200, seed=8, mode="balanced", rendering="symbolic", **sizes):
        graph, depth = problem.graph, len(problem.steps)
        tree_nodes = 2 + 2 * depth * sizes["width"]
        assert len(graph.symbols) == sizes.get("nodes", tree_nodes)
        for root in (0, 1):
            found = distances_from(root, graph.edges)
            sizes_found = Counter(level for node, level in found.items() if node < tree_nodes)
            assert sizes_found == {0: 1} | dict.fromkeys(range(1, depth + 1), sizes["width"])
            assert max(found.values()) == depth


def family_features(graph, top):
    """What could tell a family apart: its size, leaves, leaves at each depth, children of each layer."""
    found = distances_from(top, graph.edges)
    children = defaultdict(list)
    for source, node in graph.edges:
        children[source].append(node)
    option = graph.target if graph.target in found else graph.distractor
    parents = [source for source, node in graph.edges if node == option]
    return {
        "nodes": len(found),
        "leaves": sum(not children[node] for node in found),
        "last_layer": sum(depth == max(found.values()) for depth in found.values()),
        "first_layer": len(children[top]),
        "siblings_of_option": sum(len(children[parent]) for parent in parents),
        "parents_of_option": len(parents),
        "depth_of_option": found[option],
        "below_option": len(distances_from(option, graph.edges)),
        "edges": sum(len(children[node]) for node in found),
        "option_id": option,
        "busiest": max(len(children[node]) for node in found),
    }


@pytest.mark.parametrize("sizes", [{}, *BALANCED, *CURRICULA], ids=str)
def test_balanced_families_are_drawn_alike(sizes):
    """No part of the structure tells the target's family from the other; a fair coin picks the root."""
    gaps = defaultdict(list)
    problems = TASK.generate(2000, seed=9, mode="balanced", rendering="symbolic", **sizes)
    for graph in (problem.graph for problem in problems):
        asked, other = family_features(graph, graph.root), family_features(graph, 1 - graph.root)
        for key in asked:
            gaps[key].append(asked[key] - other[key])
    assert {key: z_score(gap, 0.0) for key, gap in gaps.items() if abs(z_score(gap, 0.0)) > MAX_Z} == {}
    assert abs(z_score([problem.graph.root for problem in problems], 0.5)) < MAX_Z


def test_balanced_draws_are_uniform():
    """Parents and options are uniform in their layer: each of two equal cases comes half of the time."""
    shared, first = [], []
    for graph in (problem.graph for problem in made(2000, "balanced", "symbolic")):
        found = distances_from(graph.root, graph.edges)
        last = sorted(node for node, depth in found.items() if depth == 3)
        parents = [source for source, node in graph.edges if node in last]
        shared.append(parents[0] == parents[1])
        first.append(graph.target == last[0])
    assert abs(z_score(shared, 0.5)) < MAX_Z
    assert abs(z_score(first, 0.5)) < MAX_Z


def test_balanced_noise_is_uniform_over_families_and_inner_nodes():
    """A noise node picks a family by a coin and then any node of it but the last layer's, alike."""
    problems = TASK.generate(1000, seed=10, mode="balanced", rendering="symbolic", layers=2, width=1, nodes=12)
    parents = Counter(source for p in problems for source, node in p.graph.edges if node >= 6)
    assert sum(parents.values()) == 6000
    error = math.sqrt(6000 * (1 / 4) * (3 / 4))
    assert set(parents) == {0, 1, 2, 3}
    assert all(abs(count - 1500) / error < MAX_Z for count in parents.values())


@pytest.mark.parametrize("sizes", [{}, *CURRICULA], ids=str)
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_swapping_the_entity_swaps_the_answer(rendering, sizes):
    """Asking the other root makes the other option the answer: none can be read off without the entity."""
    for problem in TASK.generate(300, seed=0, mode="balanced", rendering=rendering, **sizes):
        graph = problem.graph
        swapped, _ = solve(problem.question, root=graph.symbols[1 - graph.root])
        assert swapped == graph.symbols[graph.distractor]


def test_balanced_with_parents_and_hops_has_every_graph_as_often_as_its_mirror():
    """A question comes as often with the families exchanged, and as often with the other root (chi-square)."""
    sizes = {"layers": 2, "width": 2, "parents": [1, 2], "hops": [1, 2]}
    counts = Counter()
    for problem in TASK.generate(40_000, seed=13, mode="balanced", rendering="symbolic", **sizes):
        graph = problem.graph
        counts[frozenset(graph.edges), graph.root, graph.target, graph.distractor] += 1
    assert len(counts) == 3**4 * 8 * 2  # parents of each of 4 nodes, pairs of options, roots
    other_family = dict(enumerate((1, 0, 4, 5, 2, 3, 8, 9, 6, 7)))
    mirrored, swapped = Counter(), Counter()
    for (edges, *asked), count in counts.items():
        root, target, distractor = asked
        mirror = frozenset((other_family[source], other_family[node]) for source, node in edges)
        mirrored[mirror, *(other_family[node] for node in asked)] = count
        swapped[edges, 1 - root, distractor, target] = count
    for others in (mirrored, swapped):
        # each pair of cases stands in the sum twice
        chi_square = sum((counts[case] - others[case]) ** 2 / (counts[case] + others[case]) for case in counts) / 2
        assert chi_square < len(counts) / 2 + MAX_Z * math.sqrt(len(counts))


def test_the_question_without_its_entity_says_nothing():
    """Among questions equal but for the entity, the first option is right half of the time (chi-square)."""
    right = defaultdict(list)
    for problem in TASK.generate(12_000, seed=11, mode="balanced", rendering="symbolic", layers=1, width=1):
        stem, _ = problem.question.rsplit(" ", 1)
        right[stem].append(problem.answer == stem.split()[-2])
    assert len(right) == math.factorial(4) * 2  # 4! namings and edge orders, each pair written twice
    chi_square = sum((sum(hits) - len(hits) / 2) ** 2 / (len(hits) / 4) for hits in right.values())
    assert chi_square < len(right) + MAX_Z * math.sqrt(2 * len(right))


@pytest.mark.parametrize("mode", MODES)
def test_same_arguments_same_problems(mode):
    """Problems depend on the arguments alone, not on the count, on other calls or on the hash seed."""
    problems = made(2000, mode)
    state = random.getstate()
    assert TASK.generate(40, seed=0, mode=mode) == problems[:40]
    assert random.getstate() == state
    assert TASK.generate(0, seed=0, mode=mode) == []
    code = f"from cocot.tasks.prosqa import ProsQA; print(ProsQA().generate(5, seed=0, mode={mode!r}))"
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(Path(prosqa.__file__).parents[2]),
        }
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stdout.strip() == str(problems[:5])


@pytest.mark.parametrize(("settings", "digest"), GOLDEN, ids=str)
def test_problems_stay_the_same(settings, digest):
    """A seed gives the problems that it gave when runs were measured with it, to the letter."""
    problems = TASK.generate(100, seed=7, **settings)
    assert hashlib.sha256(repr(problems).encode()).hexdigest()[:16] == digest


def test_defaults_said_aloud_change_nothing():
    """A setting at its default draws no random number."""
    for mode in ("paper", "balanced"):
        said = {"balanced": {"parents": 1, "layers": 3, "width": 2}, "paper": {"ids": 23}}[mode]
        assert TASK.generate(40, seed=0, mode=[mode], questions=1, **said) == made(2000, mode)[:40]


def test_seeds_give_different_problems():
    """Every seed has problems of its own, negative ones too."""
    sets = [{p.question for p in made(40, "released", seed=seed)} for seed in (-1, 0, 1, 2)]
    assert all(not one & other for one, other in itertools.combinations(sets, 2))


def test_problems_do_not_repeat():
    """2,000 `released` problems are 2,000 different questions."""
    assert len({problem.question for problem in made(2000, "released")}) == 2000


CURRICULUM = [
    *({"mode": mode, **settings} for mode in ("released", "paper", ["released", "paper"]) for settings in GROWN),
    *({"mode": "balanced", "rendering": "symbolic", **settings} for settings in CURRICULA),
    {"mode": ["released", "paper", "balanced"], "hops": [1, 2, 5], "questions": 5},
    {"rendering": "symbolic", "symbols": 60, "questions": 2},
]


@pytest.mark.parametrize("settings", CURRICULUM, ids=str)
def test_a_curriculum_is_solvable(settings):
    """Whatever the settings, the text alone has one answer, in as many steps as were asked for; fewer are a prefix."""
    problems = TASK.generate(203, seed=5, **settings)
    assert len(problems) == 203
    for problem in problems:
        check_solution(problem)
        hops = settings.get("hops")
        assert hops is None or len(problem.steps) in ([hops] if isinstance(hops, int) else hops)
    assert TASK.generate(50, seed=5, **settings) == problems[:50]


@pytest.mark.parametrize("settings", CURRICULUM, ids=str)
def test_questions_share_the_facts_of_their_graph(settings):
    """Questions about a graph have its facts word for word and differ in what they ask; the next graph is another."""
    questions = settings.get("questions", 1)
    problems = TASK.generate(20 * questions, seed=6, **settings)
    facts = [
        problem.question[: problem.question.rindex("Is " if ". Is " in problem.question else "?")]
        for problem in problems
    ]
    groups = [facts[start : start + questions] for start in range(0, len(facts), questions)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(facts)) == 20
    if questions > 1:
        assert len({problem.question for problem in problems}) > 20
        assert {problem.graph.root for problem in problems} == {0, 1}


@pytest.mark.parametrize(
    "settings", [case for case in CURRICULUM if case.get("mode") in ("released", "paper")], ids=str
)
def test_hops_choose_the_options(settings):
    """The target is so far from the root that alone reaches it, the distractor below the other; leaves go together."""
    leaves = []
    for problem in TASK.generate(300, seed=7, **settings):
        graph = problem.graph
        below = [distances_from(root, graph.edges) for root in (graph.root, 1 - graph.root)]
        assert below[0][graph.target] == len(problem.steps)
        assert graph.target not in below[1]
        assert graph.distractor in below[1]
        assert graph.distractor not in (*below[0], 0, 1)
        sources = {source for source, _ in graph.edges}
        assert (graph.target in sources) == (graph.distractor in sources)
        leaves.append(graph.target not in sources)
    assert {True, False} == set(leaves)


@pytest.mark.parametrize("mode", ["released", "paper", "balanced"])
@pytest.mark.parametrize(
    ("rendering", "short_steps", "text"),
    [("sentences", "pairs", "{} {}."), ("sentences", "names", "{1}"), ("symbolic", "names", "{1}")],
)
def test_short_steps_are_the_names_of_the_same_steps(mode, rendering, short_steps, text):
    """Nothing else of a problem changes: not its question, answer or graph."""
    settings = {"seed": 3, "mode": mode, "rendering": rendering}
    pairs = zip(TASK.generate(200, short_steps=short_steps, **settings), TASK.generate(200, **settings), strict=True)
    for short, published in pairs:
        names = [re.fullmatch(r"(?:Every )?(\w+) (?:is a )?(\w+) ?[.;]", step).groups() for step in published.steps]
        assert short.steps == tuple(text.format(*step) for step in names)
        assert replace(short, steps=()) == replace(published, steps=())


@pytest.mark.parametrize("rendering", ["sentences", "symbolic"])
@pytest.mark.parametrize("mode", ["released", "paper", ["released", "paper"]], ids=str)
def test_questions_may_begin_at_any_root(mode, rendering):
    """At any node with an out-edge, in sentences any person; the root does not reach the distractor, which is like the
    target: a leaf or none, and with an in-edge. Graphs without such questions are as they were."""
    settings = {"mode": mode, "rendering": rendering, "hops": [1, 2, 3, 4], "questions": 8, "any_root": True}
    problems = TASK.generate(800, seed=11, **settings)
    roots = set()
    for problem in problems:
        check_solution(problem)
        graph = problem.graph
        sources, concepts = ({edge[end] for edge in graph.edges} for end in (0, 1))
        reached = distances_from(graph.root, graph.edges)
        assert reached[graph.target] == len(problem.steps) in settings["hops"]
        assert graph.distractor not in reached
        assert {graph.target, graph.distractor} <= concepts
        assert (graph.target in sources) == (graph.distractor in sources)
        assert rendering == "symbolic" or graph.root not in concepts
        roots.add(graph.root)
    assert len(roots) > 5
    is_inner = [problem.graph.root in {node for _, node in problem.graph.edges} for problem in problems]
    assert any(is_inner) == (rendering == "symbolic")


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_each_question_draws_its_hops_among_those_of_its_graph(mode):
    """Hops 1 and 2, which nearly every graph offers, come alike often; 6, which few offer, come less."""
    problems = TASK.generate(4000, seed=8, mode=mode, hops=[1, 2, 6], questions=8)
    counts = Counter(len(problem.steps) for problem in problems)
    assert 0.9 < counts[1] / counts[2] < 1.3  # measured: released 1.11, paper 1.10
    assert 0 < counts[6] < counts[2] / 2


def test_ids_say_how_large_graphs_grow():
    """Each graph draws one of the ids; in symbols graphs may have more nodes than sentences have names for."""
    few = TASK.generate(200, seed=9, mode="paper", ids=8)
    assert max(len(problem.graph.symbols) for problem in few) <= 8
    many = TASK.generate(200, seed=9, hops=3, ids=[10, 80], rendering="symbolic")
    sizes = [len(problem.graph.symbols) for problem in many]
    assert 60 < sum(size > 55 for size in sizes) < 140
    assert sum(size <= 10 for size in sizes) > 60


def test_graphs_that_are_too_rare_are_refused():
    """Where no graph offers the question, the search for one ends with the hops and the ids."""
    with pytest.raises(ConfigError, match=r"none of 10000 .*ids=12 .* 9 hops"):
        TASK.generate(1, seed=0, mode="paper", hops=9, ids=12)
    with pytest.raises(ConfigError, match=r"none of 355 .*ids=150 .*2 or 3 hops .*'symbolic'"):
        TASK.generate(1, seed=0, hops=[2, 3], ids=150)


def test_parents_add_edges_of_the_family():
    """Every node of the families has as many parents as were drawn, different ones of the layer above."""
    sizes = {"layers": 3, "width": 4, "nodes": 30}
    degrees = Counter()
    for problem in TASK.generate(200, seed=10, mode="balanced", rendering="symbolic", parents=[1, 3], **sizes):
        graph, noise = problem.graph, 2 + 2 * 3 * 4
        check_graph(graph)
        found = {**distances_from(0, graph.edges), **distances_from(1, graph.edges)}
        in_degrees = Counter(node for _, node in graph.edges)
        assert all(found[node] == found[source] + 1 for source, node in graph.edges)
        assert all(in_degrees[node] == 1 for node in range(2, len(graph.symbols)) if found[node] == 1 or node >= noise)
        degrees.update(in_degrees[node] for node in range(2, noise) if found[node] > 1)
    assert degrees.keys() == {1, 3}
    assert abs(degrees[1] - 1600) / math.sqrt(3200 / 4) < MAX_Z
    (problem,) = TASK.generate(1, seed=0, mode="balanced", parents=9, width=3)
    assert set(Counter(node for _, node in problem.graph.edges).values()) == {1, 3}


def test_modes_are_drawn_for_each_graph():
    """Each graph draws one of several modes: those of other sizes come half of the time."""
    problems = TASK.generate(
        400, seed=11, mode=["paper", "balanced"], layers=1, width=1, questions=2, rendering="symbolic"
    )
    small = [len(problem.graph.symbols) == 4 for problem in problems]
    assert small[::2] == small[1::2]
    assert 70 < sum(small[::2]) < 130


def test_symbols_say_which_names_there_are():
    """Names are different numbers below `symbols`, each as likely as any other."""
    settings = {"mode": "balanced", "rendering": "symbolic", "layers": 1, "width": 1}
    used = Counter()
    for problem in TASK.generate(2000, seed=12, symbols=10, **settings):
        assert len(set(problem.graph.symbols)) == 4
        used.update(map(int, problem.graph.symbols))
    assert used.keys() == set(range(10))
    assert all(abs(count - 800) / math.sqrt(2000 * 0.4 * 0.6) < MAX_Z for count in used.values())


def check_rendered(problem, rendering):
    """The same graph and options in other words, solvable; the same seed writes the same."""
    written = TASK.render(problem, rendering, seed=3)
    check_solution(written)
    assert ("?" in written.question.split()) == (rendering == "symbolic")
    for part in ("edges", "root", "target", "distractor"):
        assert getattr(written.graph, part) == getattr(problem.graph, part)
    assert len(written.steps) == len(problem.steps)
    assert TASK.render(problem, rendering, seed=3) == written
    assert TASK.render(problem, rendering, seed=4).question != written.question


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_published_problems_in_another_rendering(prosqa_valid, rendering):
    """Each of the 300 published problems can be written in either rendering."""
    for problem in prosqa_valid:
        check_rendered(problem, rendering)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_generated_problems_in_another_rendering(rendering):
    """A problem of either rendering can be written in either."""
    for problem in (*made(2000, "released")[:20], *made(2000, "balanced", "symbolic")[:20]):
        check_rendered(problem, rendering)


def test_each_problem_is_rendered_with_names_of_its_own():
    """Problems of one graph size and one seed do not get the same names in the same order."""
    problems = made(2000, "balanced")[:50]
    assert len({TASK.render(problem, "symbolic", seed=0).graph.symbols for problem in problems}) == 50


def test_what_cannot_be_rendered_is_refused():
    """No graph, no way to the target, too few names, an unknown rendering, a seed that is none: one line each."""
    (large,) = TASK.generate(1, seed=0, mode="balanced", rendering="symbolic", nodes=100)
    cases = (
        (DataError, "no graph", Problem("q", (), "a"), "symbolic", 0),
        (DataError, "no way from its root", graph_problem([(0, 2), (1, 3)], 3, 2), "symbolic", 0),
        (ConfigError, "2 nodes without an in-edge and 98 with one", large, "sentences", 0),
        (ConfigError, "did you mean 'symbolic'", large, "symbols", 0),
        (ConfigError, "seed must be a whole number", large, "symbolic", "a"),
    )
    for kind, message, problem, rendering, seed in cases:
        with pytest.raises(kind, match=message):
            TASK.render(problem, rendering, seed)


@pytest.mark.parametrize("mode", MODES)
def test_frontiers_are_the_names_at_each_distance(mode):
    """The k-th frontier has exactly the nodes k steps from the root; the target is in that of the last step."""
    for problem in made(2000, mode)[:100]:
        graph, frontiers = problem.graph, TASK.frontiers(problem)
        found = distances_from(graph.root, graph.edges)
        assert len(frontiers) == max(found.values())
        for distance, names in enumerate(frontiers, start=1):
            assert sorted(names) == sorted(graph.symbols[node] for node in found if found[node] == distance)
        assert graph.symbols[graph.target] in frontiers[len(problem.steps) - 1]
    assert TASK.frontiers(Problem("q", ("s",), "a")) == ()
    assert TASK.frontiers(graph_problem([(1, 2)], 2, 1)) == (), "a root without an out-edge"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "balance"}, ["mode", "'balance'", "did you mean 'balanced'?"]),
        ({"mode": "xyz"}, ["'xyz'", "released, paper, balanced"]),
        ({"rendering": "symbols"}, ["rendering", "'symbols'", "did you mean 'symbolic'?"]),
        ({"layer": 3}, ["setting", "'layer'", "did you mean 'layers'?"]),
        ({"layers": 3}, ["'released'", "layers", "got 3", "leave it out", "'balanced'"]),
        ({"mode": "paper", "width": 2}, ["'paper'", "width", "got 2", "leave it out"]),
        ({"mode": "paper", "nodes": 20}, ["'paper'", "nodes", "got 20", "leave it out"]),
        ({"mode": "balanced", "layers": 0}, ["layers", "at least 1", "got 0"]),
        ({"mode": "balanced", "layers": []}, ["layers", "[]", "give one whole number"]),
        ({"mode": "balanced", "layers": [2, 0]}, ["layers", "at least 1", "got 0"]),
        ({"mode": "balanced", "layers": "3"}, ["layers", "whole number", "got '3'"]),
        ({"mode": "balanced", "layers": 2.5}, ["layers", "whole number", "got 2.5"]),
        ({"mode": "balanced", "width": 0}, ["width", "at least 1", "got 0"]),
        ({"mode": "balanced", "width": True}, ["width", "whole number", "got True"]),
        ({"mode": "balanced", "nodes": 13}, ["nodes", "at least 14", "got 13"]),
        ({"mode": "balanced", "nodes": 0}, ["nodes", "at least 14", "got 0"]),
        ({"mode": "balanced", "layers": [1, 4], "nodes": 17}, ["nodes", "at least 18", "got 17"]),
        ({"mode": "balanced", "nodes": 41}, ["41", "'sentences'", "(40)", "'symbolic'"]),
        ({"mode": "balanced", "layers": [1, 10], "width": 2}, ["42", "'sentences'", "'symbolic'"]),
        ({"count": -1}, ["count", "at least 0", "got -1"]),
        ({"mode": 3}, ["mode must be a name", "got 3"]),
        ({"mode": []}, ["mode=[]", "empty", "released, paper, balanced"]),
        ({"mode": ["paper", 3]}, ["mode must be a name", "got 3"]),
        ({"mode": ["paper", "balance"]}, ["'balance'", "did you mean 'balanced'?"]),
        ({"mode": ["paper", "released"], "width": 2}, ["'paper' or 'released'", "width", "got 2", "'balanced'"]),
        ({"mode": "paper", "parents": 2}, ["'paper'", "parents", "got 2", "leave it out", "'balanced'"]),
        ({"mode": "balanced", "parents": 0}, ["parents", "at least 1", "got 0"]),
        ({"mode": "balanced", "parents": []}, ["parents=[]", "empty"]),
        ({"mode": "balanced", "parents": "2"}, ["parents", "whole number", "got '2'"]),
        ({"mode": "balanced", "ids": 20}, ["'balanced'", "ids", "got 20", "'released' or 'paper'"]),
        ({"ids": 20}, ["'released'", "ids only with hops", "ids=20", "leave ids out"]),
        ({"mode": ["balanced", "released"], "ids": 20}, ["'released'", "ids only with hops", "ids=20"]),
        ({"mode": "paper", "ids": 3}, ["ids", "at least 4", "got 3"]),
        ({"mode": "paper", "ids": [20, 2.5]}, ["ids", "whole number", "got 2.5"]),
        ({"mode": "paper", "ids": 1001}, ["ids", "at most 1000", "got 1001"]),
        ({"hops": 0}, ["hops", "at least 1", "got 0"]),
        ({"hops": True}, ["hops", "whole number", "got True"]),
        ({"hops": []}, ["hops=[]", "empty"]),
        ({"hops": [1, 26]}, ["hops", "at most 25", "got 26"]),
        ({"hops": 6, "ids": [8, 20]}, ["6 hops", "'released'", "ids=8", "raise ids"]),
        ({"mode": "balanced", "hops": 4}, ["hops", "at most 3", "got 4"]),
        ({"mode": "balanced", "hops": [2, 3], "layers": [1, 3]}, ["2 hops", "'balanced'", "layers=1", "raise layers"]),
        ({"any_root": True}, ["any_root needs hops", "leave any_root out"]),
        ({"any_root": 1, "hops": 3}, ["any_root", "true or false", "got 1"]),
        ({"mode": "balanced", "hops": 3, "any_root": True}, ["'balanced'", "any_root", "'released' or 'paper'"]),
        ({"short_steps": "pair"}, ["short_steps", "'pair'", "did you mean 'pairs'"]),
        ({"rendering": "symbolic", "short_steps": "pairs"}, ["'symbolic'", "leave short_steps out"]),
        ({"questions": 0}, ["questions", "at least 1", "got 0"]),
        ({"questions": [2]}, ["questions", "whole number", "got [2]"]),
        ({"question": 2}, ["setting", "'question'", "did you mean 'questions'?"]),
        ({"symbols": 40}, ["'sentences'", "symbols", "got 40", "'symbolic'"]),
        ({"rendering": "symbolic", "symbols": 27}, ["symbols", "at least 28", "got 27"]),
        ({"rendering": "symbolic", "symbols": "x"}, ["symbols", "whole number", "got 'x'"]),
        ({"mode": "balanced", "rendering": "symbolic", "symbols": 13}, ["symbols", "at least 14", "got 13"]),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, words):
    """A bad setting is refused before any problem is made: what is wrong, the value got and what to do."""
    with pytest.raises(ConfigError) as caught:
        TASK.generate(**({"count": 0, "seed": 0} | settings))
    assert [word for word in words if word not in str(caught.value)] == []


def test_it_is_a_task():
    """The command line may pass any settings by name: the signature is the one that every `Task` has."""
    parameters = inspect.signature(TASK.generate).parameters
    assert parameters.keys() >= inspect.signature(Task.generate).parameters.keys() - {"self"}
    assert parameters["settings"].kind is inspect.Parameter.VAR_KEYWORD
    assert TASK.name == "prosqa"


def test_the_most_nodes_that_have_names():
    """40 nodes still have names in sentences; symbols never run out."""
    (problem,) = TASK.generate(1, seed=0, mode="balanced", nodes=40)
    assert len(problem.graph.symbols) == 40
    (problem,) = TASK.generate(1, seed=0, mode="balanced", rendering="symbolic", nodes=100)
    assert len(problem.graph.symbols) == 100


def test_report_refuses_what_it_cannot_count():
    """No problems, a problem without its graph and foreign roots are refused, naming the problem."""
    with pytest.raises(DataError, match="0 problems"):
        TASK.statistics([])
    good = made(40, "released")[0]
    bare = Problem("Is Tom a lempus or wumpus?", (), "Tom is a lempus.")
    with pytest.raises(DataError, match=r"problem 1 \('Is Tom a lempus or wumpus\?'.*graph"):
        TASK.statistics([good, bare])
    foreign = Problem("q", (), "a", Graph(("0", "1", "2", "3"), ((2, 3),), 2, 3, 1))
    with pytest.raises(DataError, match="roots 0 and 1"):
        TASK.statistics([foreign])


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_grading(rendering):
    """The answer is right however it is spaced; the other option, more, less or other text is wrong."""
    for problem in made(2000, "balanced", rendering)[:50]:
        graph = problem.graph
        target, other = graph.symbols[graph.target], graph.symbols[graph.distractor]
        assert TASK.is_correct(problem, problem.answer)
        assert TASK.is_correct(problem, "\n " + problem.answer.replace(" ", "  ") + "\n")
        assert not TASK.is_correct(problem, problem.answer.replace(target, other))
        assert not TASK.is_correct(problem, problem.answer + " " + other)
        assert not TASK.is_correct(problem, other)
        assert not TASK.is_correct(problem, "")
    person = made(2000, "released")[0]
    assert not TASK.is_correct(person, person.answer.lower())
    assert not TASK.is_correct(person, person.answer.replace(" ", ""))


def test_the_example_in_the_docstring_is_true():
    """The example that a reader meets first runs and prints what it says."""
    result = doctest.testmod(prosqa)
    assert result.attempted > 0
    assert result.failed == 0
