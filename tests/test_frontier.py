"""Tests of the method `frontier`: its term and gradients against the definition, row by row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import reference
import torch
from runs_support import twins
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import encode_frontiers, tokenize
from cocot.data.examples import Encoder
from cocot.data.thought_targets import THOUGHT_TARGETS, thought_targets
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError
from cocot.methods import METHODS, CurriculumConfig, Phase
from cocot.methods.frontier import last_word
from cocot.tasks.problem import Problem

TASK = tasks.get("prosqa")
PROBLEMS = TASK.generate(6, seed=3, mode="balanced", rendering="symbolic", layers=[2, 3], width=2)
ABOUT_ONE_GRAPH = TASK.generate(6, seed=4, mode="balanced", rendering="symbolic", layers=3, width=2, questions=3)
TOKENIZER = build_tokenizer([*PROBLEMS, *ABOUT_ONE_GRAPH])
CURRICULUM = CurriculumConfig(
    "frontier",
    max_stage=3,
    phases=[Phase("mixed", {"stage_0": 1.0, "stage_1": 1.0, "stage_2": 1.0, "final": 1.0})],
    pad_thoughts=False,
)


def examples(config: CurriculumConfig = CURRICULUM, problems: Sequence[Problem] = PROBLEMS) -> list[Any]:
    """Problems at all stages of a mixture."""
    encoder, stage = Encoder(config, TOKENIZER), config.stage_of(config.phases[0])
    cut = [
        replace(tokenize(problem, TOKENIZER), frontiers=encode_frontiers([TASK.frontiers(problem)], TOKENIZER)[0])
        for problem in problems
    ]
    return [encoder(problem, stage, Random(number)) for number, problem in enumerate(cut)]


def definition(model: Any, rows: list[Any], latent_id: int) -> torch.Tensor:
    """The term, thought by thought: a thought is what the position before it said."""
    losses = []
    for row in rows:
        logits = reference.row_logits(model, row.input_ids, latent_id)
        places = [place for place, token in enumerate(row.input_ids) if token == latent_id]
        for place, chosen in zip(places, row.targets, strict=False):
            losses.append(-logits[place - 1].softmax(-1)[list(chosen)].sum().log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("problems", [PROBLEMS, ABOUT_ONE_GRAPH], ids=["rows", "shared readings"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_term_and_its_gradients_are_those_of_the_definition(architecture: str, problems: Sequence[Problem]) -> None:
    """Different numbers of thoughts, in rows or shared readings: the term and every gradient equal the slow way's."""
    model, plain = twins(architecture, TOKENIZER)
    latent_id = TOKENIZER.convert_tokens_to_ids("<|latent|>")
    rows = examples(problems=problems)
    assert len({row.num_thoughts for row in rows}) > 1
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=latent_id, shares_reading=True)
    assert ("shared_reading" in batch) == (problems is ABOUT_ONE_GRAPH)
    inputs = {name: value for name, value in batch.items() if name != THOUGHT_TARGETS}
    terms = METHODS["frontier"].losses(lambda **more: model.train()(**inputs, **more), model, batch)
    assert terms.keys() == {"cross_entropy", "frontier"}
    terms["frontier"].backward()
    expected = definition(plain.train(), rows, latent_id)
    expected.backward()
    torch.testing.assert_close(terms["frontier"], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_the_sets_lie_where_the_thoughts_are() -> None:
    """Thoughts end together; the set of thought k holds the nodes k steps from the root, and no other."""
    rows = examples()
    targets = thought_targets(rows)
    assert targets is not None
    most = max(row.num_thoughts for row in rows)
    assert targets.shape[:2] == (len(rows), most)
    for row, problem, sets in zip(rows, PROBLEMS, targets.tolist(), strict=True):
        filled = [{TOKENIZER.decode([token]) for token in ids if token >= 0} for ids in sets]
        nodes = [set(names) for names in TASK.frontiers(problem)][: row.num_thoughts]
        begin = most - row.num_thoughts
        assert filled == [set()] * begin + nodes + [set()] * (row.num_thoughts - len(nodes))


@pytest.mark.parametrize("name", ["prosqa", "prontoqa", "gsm8k"])
def test_of_any_text_the_set_is_the_last_word_of_the_step(name: str) -> None:
    """Where the task says nothing: what each step arrives at, which in a search is one node of its frontier."""
    task = tasks.get(name)
    problems = task.generate(6, seed=5, **({"rendering": "symbolic"} if name == "prosqa" else {}))
    tokenizer = build_tokenizer(problems, "numbers" if name == "gsm8k" else "words")
    encoder, stage = Encoder(replace(CURRICULUM, phases=[]), tokenizer), CURRICULUM.stages[-1]
    for problem in problems:
        row = encoder(tokenize(problem, tokenizer), stage, Random(0))
        words = [re.findall(r"\w+", step)[-1] for step in problem.steps][: row.num_thoughts]
        assert [tokenizer.decode(ids) for ids in row.targets[: len(words)]] == words
        assert not any(row.targets[len(words) :])


@pytest.mark.parametrize(("text", "expected"), [("a b ;\n", " b"), ("<<3*4=128>>\n", "1"), ("(. ,)", ""), ("ω\n", "ω")])
def test_the_last_word_is_found_in_any_tokenizers_pieces(text: str, expected: str) -> None:
    """The first token of the last word, as it stands in the text; nothing where there is no word."""
    tokenizer = Tokenizer(
        BPE(dict(zip([*pre_tokenizers.ByteLevel.alphabet(), "Ġb"], range(257), strict=True)), [("Ġ", "b")])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    cut = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = last_word(cut(text)["input_ids"], cut)
    whole = cut(expected)["input_ids"]
    assert found == tuple(whole[:1])


def test_every_thought_of_a_step_has_the_steps_set() -> None:
    """With two thoughts a step, both are asked for what is right after that step."""
    two = replace(CURRICULUM, thoughts_per_step=2, phases=[Phase("all", {"final": 1.0})])
    for row, problem in zip(examples(two), PROBLEMS, strict=True):
        (sets,) = encode_frontiers([TASK.frontiers(problem)], TOKENIZER)
        of_thoughts = tuple(ids for ids in sets for _ in range(2))[: row.num_thoughts]
        assert row.targets == (*of_thoughts, *[()] * (row.num_thoughts - len(of_thoughts)))


def test_a_batch_of_which_nothing_is_said_trains_as_coconut() -> None:
    """A task without frontiers, or words alone: the cross-entropy is the only term."""
    rows = [replace(row, targets=()) for row in examples()]
    assert thought_targets(rows) is None
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=0)
    assert THOUGHT_TARGETS not in batch
    output = type("Output", (), {"loss": torch.tensor(1.0)})
    assert METHODS["frontier"].losses(lambda **more: output, None, batch) == {"cross_entropy": output.loss}


def test_a_word_that_the_vocabulary_lacks_is_refused() -> None:
    """A name of a node must be in the vocabulary."""
    with pytest.raises(DataError, match="lacks"):
        encode_frontiers([[["nowhere"]]], TOKENIZER)


def test_a_phase_draws_its_stages_by_their_weights() -> None:
    """A mixture gives each of its stages its share, and answers are asked for as at the last of them."""
    config = replace(CURRICULUM, phases=[Phase("mixed", {"stage_1": 1.0, "final": 3.0})], pad_thoughts=True)
    encoder, stage = Encoder(config, TOKENIZER), config.stage_of(config.phases[0])
    assert (stage.name, stage.index, stage.is_final) == ("mixed", 3, True)
    cut = tokenize(PROBLEMS[0], TOKENIZER)
    counts = [encoder(cut, stage, Random(seed)).num_thoughts for seed in range(1000)]
    assert set(counts) == {1, 3}
    assert 200 < counts.count(1) < 300
    assert encoder.longest(cut, stage) >= max(len(encoder(cut, stage, Random(seed)).input_ids) for seed in range(20))


@pytest.mark.parametrize(("method", "index", "is_final"), [("cot", 0, False), ("no_cot", 3, True), ("pause", 3, True)])
def test_methods_without_stages_go_through_the_phases_as_they_are(method: str, index: int, is_final: bool) -> None:
    """All words for `cot` and none for `no_cot`, whatever stages the phase names, with as many epochs."""
    config = replace(CURRICULUM, method=method, pad_thoughts=True)
    stage = config.stage_of(config.phases[0])
    assert (stage.index, stage.is_final, stage.num_epochs) == (index, is_final, 1)
    rows = examples(config)
    assert len({row.num_thoughts for row in rows}) == 1
