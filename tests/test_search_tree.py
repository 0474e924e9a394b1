"""Tests of `search`: every node's probability is that of the definition; a folder gives back what was written."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import reference
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, set_seed

from cocot import tasks
from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError, RunError
from cocot.interpret.search_tree import SearchTree, probe_search
from cocot.interpret.terminal import draw_tree, tables
from cocot.methods.tokens import LATENT, PAUSE, SPECIAL_TOKENS
from cocot.modeling.config import InitConfig
from cocot.modeling.from_scratch import build_model
from cocot.modeling.generation import ThoughtRecorder, answer
from cocot.modeling.latent_model import give_thoughts
from cocot.tasks.graphs import depths, heights, mentioned, walk_shares
from cocot.tasks.problem import Graph, Problem

TASK = tasks.get("prosqa")
# Largest difference allowed to a probability. Measured, worst of this file: 6.0e-8.
TOLERANCE = 1e-6
INIT = InitConfig("llama", layers=2, width=32, heads=2, embedding_std=0.5, settings={"intermediate_size": 64})
DIAMOND = Graph(("a", "b", "bb", "c", "d", "e"), ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (0, 4)), 0, 4, 5)


def subwords(problems):
    """A byte-level BPE, as GPT-2's: a name takes several tokens, the first with its blank."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator((problem.question for problem in problems), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=[*SPECIAL_TOKENS, PAUSE],
    )


FORMS = {
    "sentences": {},
    "symbolic": {"rendering": "symbolic"},
    "pairs of names": {"short_steps": "pairs"},
    "single names": {"short_steps": "names"},
    "single symbols": {"rendering": "symbolic", "short_steps": "names"},
}


def made(form, count=4):
    return TASK.generate(count, seed=3, mode="balanced", layers=[1, 2], width=2, **FORMS[form])


def thinker(tokenizer, num_thoughts=2):
    set_seed(0)
    model = give_thoughts(build_model(INIT, tokenizer), tokenizer)
    latent = tokenizer.convert_tokens_to_ids(LATENT)
    model.config.thoughts = ThoughtSettings(latent, LATENT, num_thoughts, start_marker=False).to_json()
    return model.eval()


def next_names(problem, k):
    """Independently of `search`: the text before the next step's node, by what a rendering's steps look like."""
    step = problem.steps[min(k, len(problem.steps) - 1)]
    words = step.split()
    if len(words) == 1:
        return ""
    if words[-1] == ";":
        return words[0] if k == 0 else ""
    return " ".join(words[:-1]) if k == 0 else "Every" if words[0] == "Every" else ""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make_tokenizer", [build_tokenizer, subwords])
def test_values_are_those_of_the_definition(form, make_tokenizer):
    """For every k and node: the product of the slow oracle's probabilities of its tokens, after the same text."""
    problems = made(form)
    tokenizer = make_tokenizer(problems)
    model = thinker(tokenizer)
    search = probe_search(model, tokenizer, TASK, problems, batch_size=3, max_new_tokens=4)
    bare = build_model(INIT, tokenizer)
    bare.resize_token_embeddings(len(tokenizer))
    bare.load_state_dict(model.state_dict())
    settings = ThoughtSettings(**model.config.thoughts)
    lengths = set()
    for k in range(3):
        values = []
        for problem in problems:
            lead = next_names(problem, k)
            before = tokenizer.encode(lead, add_special_tokens=False) if lead else []
            prompt = [*encode_question(problem.question, k, settings, tokenizer), *before]
            for name in problem.graph.symbols:
                ids = tokenizer.encode(f" {name}" if lead else name, add_special_tokens=False)
                lengths.add(len(ids))
                values.append(np.exp(reference.log_probability(bare.eval(), prompt, ids, settings.latent_id)))
        assert search.values[k] == pytest.approx(values, abs=TOLERANCE)
        assert np.std(values) > 100 * TOLERANCE
    assert (max(lengths) > 1) == (make_tokenizer is subwords and "symbol" not in form)


def test_nodes_are_labelled():
    """Problem, node, depth and both heights, in the order of the problems and their nodes."""
    problems = made("symbolic")
    tokenizer = build_tokenizer(problems)
    search = probe_search(thinker(tokenizer), tokenizer, TASK, problems, num_thoughts=1, max_new_tokens=4)
    assert search.values.shape == (2, sum(len(problem.graph.symbols) for problem in problems))
    assert search.correct.shape == (2, len(problems))
    assert [len(row) for row in search.outputs] == [len(problems)] * 2
    for index, problem in enumerate(problems):
        own = search.problem == index
        assert list(search.node[own]) == list(range(len(problem.graph.symbols)))
        assert list(search.depth[own]) == depths(problem.graph)
        assert list(search.height_longest[own]) == heights(problem.graph, max)
        assert list(search.height_shortest[own]) == heights(problem.graph, min)
        assert search.depth[own][problem.graph.target] == len(problem.steps)
    assert list(search.is_reachable) == [depth > 0 for depth in search.depth]


def test_thoughts_are_kept_and_read():
    """The thoughts are what is fed back; the head's likeliest tokens, the lengths and the cosines are theirs."""
    problems = made("symbolic")
    tokenizer = build_tokenizer(problems)
    model = thinker(tokenizer)
    search = probe_search(model, tokenizer, TASK, problems, batch_size=3, max_new_tokens=4)
    for index, problem in enumerate(problems):
        fed = ThoughtRecorder(1)
        answer(model, tokenizer, [problem.question], 2, 4, thought_hook=fed)
        own = search.thoughts[index]
        assert own == pytest.approx(fed.thoughts[0].numpy(), abs=1e-5)
        logits = own @ model.get_output_embeddings().weight.detach().numpy().T
        likeliest = [tokenizer.decode([token]) for token in logits.argmax(-1)]
        assert [texts[0] for texts in search.nearest[index]] == likeliest
        assert search.nearest_values[index].max(-1) == pytest.approx(
            np.exp(logits).max(-1) / np.exp(logits).sum(-1), rel=1e-3
        )
        assert search.norms[index] == pytest.approx(np.sqrt((own**2).sum(-1)), rel=1e-5)
        first, second = own
        assert search.cosines[index] == pytest.approx(
            [first @ second / np.sqrt(first @ first * (second @ second))], rel=1e-4
        )
    in_words = probe_search(model, tokenizer, TASK, problems, num_thoughts=0, max_new_tokens=4)
    assert in_words.thoughts.shape[:2] == (4, 0)
    assert in_words.nearest == [[]] * 4


def test_depth_and_both_heights():
    """A graph where the two heights differ, with a node that the root does not lead to."""
    assert depths(DIAMOND) == [0, 1, 1, 2, 1, -1]
    assert heights(DIAMOND, min) == [1, 2, 2, 1, 0, 0]
    assert heights(DIAMOND, max) == [3, 2, 2, 1, 0, 0]
    with pytest.raises(DataError, match="has a cycle"):
        heights(replace(DIAMOND, edges=(*DIAMOND.edges, (4, 0))), max)


def test_walk_shares_are_those_of_all_walks():
    """Counted walk by walk on real graphs; what the root does not lead to is passed by none."""
    for problem in [*tasks.get("prosqa").generate(3, seed=0, mode="released"), *made("symbolic")]:
        graph = problem.graph
        expected = [0.0] * len(graph.symbols)

        def walk(node: int, share: float, graph=graph, expected=expected) -> None:
            expected[node] += share
            ends = [end for source, end in graph.edges if source == node]
            for end in ends:
                walk(end, share / len(ends))

        walk(graph.root, 1.0)
        assert walk_shares(graph) == pytest.approx(expected)
        assert [share > 0 for share in expected] == [depth >= 0 for depth in depths(graph)]
    assert walk_shares(DIAMOND)[DIAMOND.root] == 1
    with pytest.raises(DataError, match="has a cycle"):
        walk_shares(replace(DIAMOND, edges=(*DIAMOND.edges, (4, 0))))


def test_answers_are_counted_by_how_thin_the_way_to_them_is():
    """Parts in order of the share of random walks that pass the answer; problems without a graph are in none."""
    problems = [*tasks.get("gsm8k").generate(1, seed=0), *tasks.get("prosqa").generate(30, seed=1, mode="released")]
    shares = [walk_shares(problem.graph)[problem.graph.target] for problem in problems[1:]]
    middle = sorted(shares)[len(shares) // 2]
    tokenizer = build_tokenizer(problems)
    search = probe_search(thinker(tokenizer), tokenizer, TASK, problems, num_thoughts=0, max_new_tokens=1)
    found = tables(replace(search, correct=np.array([[True, *(share > middle for share in shares)]])))
    (rows,) = (rows for title, rows in found.items() if "random walks" in title)
    assert [int(row[3]) for row in rows[1:]] == [6] * 5
    assert [row[1] for row in rows[1:]] == ["0.0%", "0.0%", rows[3][1], "100.0%", "100.0%"]
    assert rows[1][0].startswith(f"{min(shares):.3f} to ")
    assert rows[5][0].endswith(f" to {max(shares):.3f}")


def test_names_are_found_as_whole_words():
    """Neither a part of a word nor the beginning of a longer name is a node."""
    assert [(place.start, place.node) for place in mentioned(DIAMOND, "Every bb is a b, not abc.")] == [
        (6, 2),
        (12, 0),
        (14, 1),
    ]


def test_a_folder_gives_back_what_was_written(tmp_path: Path):
    """Every array and text; also by the two lines of the module's documentation; another schema is refused."""
    problems = made("sentences")
    tokenizer = build_tokenizer(problems)
    search = probe_search(thinker(tokenizer), tokenizer, TASK, problems, num_thoughts=1, max_new_tokens=4)
    for _ in range(2):
        search.write(tmp_path / "search")
    again = SearchTree.read(tmp_path / "search")
    for field in fields(SearchTree):
        assert np.array_equal(getattr(again, field.name), getattr(search, field.name)), field.name
    nodes = load_file(tmp_path / "search" / "arrays.safetensors")
    texts = json.loads((tmp_path / "search" / "search.json").read_text())
    assert nodes["values"].shape == search.values.shape
    assert texts["problems"][0]["question"] == problems[0].question
    (tmp_path / "search" / "search.json").write_text(json.dumps({**texts, "schema": 99}))
    with pytest.raises(RunError, match=r"of schema 99, and this version reads 1; run `cocot probe` again"):
        SearchTree.read(tmp_path / "search")
    with pytest.raises(RunError, match=r"holds no search.json; make one with `cocot probe`"):
        SearchTree.read(tmp_path)


def test_problems_that_cannot_be_probed_are_refused():
    """No problems, no steps to find in a graph, a step that names no nodes: each says so."""
    problems = made("symbolic")
    tokenizer = build_tokenizer(problems)
    model = thinker(tokenizer)
    for bad, message in (
        ([], "no problems to probe"),
        ([replace(problems[0], steps=())], "problem 0 .* has no steps"),
        ([replace(problems[0], steps=(";",))], "does not name two nodes"),
    ):
        with pytest.raises(DataError, match=message):
            probe_search(model, tokenizer, TASK, bad, max_new_tokens=4)
    assert isinstance(problems[0], Problem)


def test_problems_without_a_graph_have_answers_and_thoughts():
    """Among others, they add no node and change no other problem's; alone, the tables about nodes are left out."""
    problems = made("symbolic")
    stories = tasks.get("gsm8k").generate(2, seed=0)
    tokenizer = build_tokenizer([*problems, *stories])
    model = thinker(tokenizer)
    mixed = probe_search(model, tokenizer, TASK, [stories[0], *problems, stories[1]], max_new_tokens=4)
    plain = probe_search(model, tokenizer, TASK, problems, max_new_tokens=4)
    assert list(mixed.problem) == [index + 1 for index in plain.problem]
    assert mixed.values == pytest.approx(plain.values, abs=TOLERANCE)
    assert mixed.thoughts[1:-1] == pytest.approx(plain.thoughts, abs=1e-4)
    assert mixed.probability_mass(1)["frontier"] == pytest.approx(plain.probability_mass(1)["frontier"], abs=TOLERANCE)
    assert mixed.categories(1) == plain.categories(1)
    alone = probe_search(model, tokenizer, TASK, stories, max_new_tokens=4)
    assert alone.values.shape == (3, 0)
    assert alone.thoughts.shape[:2] == (2, 2)
    assert list(tables(alone)) == ["Answers after k thoughts", "The thoughts themselves"]
    text = StringIO()
    draw_tree(alone, 1, Console(file=text, width=1000))
    assert text.getvalue().startswith(f"problem 1: {stories[1].question}\nafter 0 thoughts: ")


def test_masses_share_out_the_next_step():
    """The parts add up to one, problems without a step to go are left out, and the frontier is where the step leads."""
    problems = made("symbolic", 6)
    tokenizer = build_tokenizer(problems)
    search = probe_search(thinker(tokenizer), tokenizer, TASK, problems, max_new_tokens=4)
    longest = max(len(problem.steps) for problem in problems)
    for k in range(3):
        probability_mass = search.probability_mass(k)
        assert len(probability_mass["frontier"]) == sum(len(problem.steps) > k for problem in problems)
        assert sum(probability_mass.values()) == pytest.approx(1)
    assert longest == 2
    assert len(search.probability_mass(2)["frontier"]) == 0
    sure = replace(search, values=(search.depth == 1).astype(np.float32)[None] / 4)
    per_problem = [sum(depth == 1 for depth in depths(problem.graph)) / 4 for problem in problems]
    assert sure.probability_mass(0)["frontier"] == pytest.approx(per_problem)
    assert sure.probability_mass(0)["elsewhere"] == pytest.approx(0)


def test_a_single_name_leads_one_step_farther_than_an_edge_begins():
    """The next step after k thoughts names a node k + 1 steps below the root; an edge begins at one k steps below."""
    stories = tasks.get("gsm8k").generate(1, seed=0)
    problems = [*made("single names"), *stories, *made("symbolic")]
    tokenizer = build_tokenizer(problems)
    search = probe_search(thinker(tokenizer), tokenizer, TASK, problems, num_thoughts=0, max_new_tokens=1)
    is_single = search.problem < 4
    for k, (single, edge) in enumerate([(1, 1), (2, 1), (3, 2)]):
        assert list(search.next_depth(k)) == [single if own else edge for own in is_single]


def test_a_tree_shows_every_node(capsys):
    """Each node stands there with its probability after every k, below each of its parents; the texts in the end."""
    problem = Problem("? <b>[red]", ("a b", "b c"), "d", DIAMOND)
    values = np.linspace(0, 0.5, 12, dtype=np.float32).reshape(2, 6)
    nodes = np.arange(6, dtype=np.int32)
    measures = [
        np.array(found, dtype=np.int32) for found in (depths(DIAMOND), heights(DIAMOND, min), heights(DIAMOND, max))
    ]
    search = SearchTree(
        values,
        np.zeros(6, np.int32),
        nodes,
        *measures,
        [problem],
        [["b c"], ["[bold]d"]],
        np.array([[False], [True]]),
        np.zeros((1, 1, 2), np.float32),
        [[["b"]]],
        np.ones((1, 1, 1), np.float32),
        1.0,
    )
    draw_tree(search, 0, Console(width=100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "problem 0: ? <b>[red]"
    named = [line.strip("│├└─ ").split()[0] for line in lines[1:]]
    assert named[:10] == ["a", "b", "c", "d", "bb", "c", "d", "d", "where", "e"]
    assert lines[2].endswith("0.05 0.32")
    assert "d (answer)" in lines[4]
    assert "e (other option)" in lines[10]
    assert lines[-2:] == ["after 0 thoughts: b c  [wrong]", "after 1 thoughts: [bold]d  [right]"]
