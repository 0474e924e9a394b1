"""Tests of thoughts that end by themselves: the decision's loss, and answers with as many thoughts as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import reference
import torch
from conftest import MODELS, make_model, make_thinker
from conftest import PROBLEMS as QUESTIONS
from conftest import TOKENIZER as QUESTION_TOKENIZER
from runs_support import twins
from torch.nn.functional import cross_entropy

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import encode_question, tokenize
from cocot.data.examples import Encoder
from cocot.data.layout import ThoughtSettings
from cocot.data.thought_targets import FOR_METHODS
from cocot.data.word_tokenizer import build_tokenizer
from cocot.methods import METHODS, CurriculumConfig, Phase
from cocot.modeling.generation import answer
from cocot.modeling.method_modules import add_modules
from cocot.tasks.problem import Problem

TASK = tasks.get("prosqa")
PROBLEMS = TASK.generate(6, seed=3, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=2)
ABOUT_ONE_GRAPH = TASK.generate(6, seed=4, mode="balanced", rendering="symbolic", layers=3, width=2, questions=3)
TOKENIZER = build_tokenizer([*PROBLEMS, *ABOUT_ONE_GRAPH])
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")
CURRICULUM = CurriculumConfig(
    "adaptive", max_stage=4, phases=[Phase("mixed", {"stage_0": 1.0, "stage_2": 1.0, "final": 2.0})]
)


def examples(problems: Sequence[Problem] = PROBLEMS, seed: int = 0, **settings: Any) -> list[Any]:
    """Problems at all stages of a mixture."""
    config = replace(CURRICULUM, **settings)
    encoder, stage = Encoder(config, TOKENIZER), config.stage_of(config.phases[0])
    return [encoder(tokenize(each, TOKENIZER), stage, Random(seed + number)) for number, each in enumerate(problems)]


@pytest.mark.parametrize("problems", [PROBLEMS, ABOUT_ONE_GRAPH], ids=["rows", "shared readings"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_term_and_its_gradients_are_those_of_the_definition(architecture: str, problems: Sequence[Problem]) -> None:
    """Rows with different numbers of thoughts: a decision a thought, mean over all of them."""
    model, plain = twins(architecture, TOKENIZER)
    add_modules(model, METHODS["adaptive"])
    add_modules(plain, METHODS["adaptive"])
    plain.method_modules.load_state_dict(model.method_modules.state_dict())
    rows = examples(problems, thoughts_per_step=2)
    assert len({row.num_thoughts for row in rows}) > 2
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID, shares_reading=True)
    assert ("shared_reading" in batch) == (problems is ABOUT_ONE_GRAPH)
    inputs = {name: value for name, value in batch.items() if name not in FOR_METHODS}
    terms = METHODS["adaptive"].losses(lambda **more: model.train()(**inputs, **more), model, batch)
    assert terms.keys() == {"cross_entropy", "stop"}
    terms["stop"].backward()
    losses = []
    for row, problem in zip(rows, problems, strict=True):
        embedded = reference.embeddings(plain, row.input_ids, LATENT_ID)
        places = [place for place, token in enumerate(row.input_ids) if token == LATENT_ID]
        for number, place in enumerate(places, 1):
            enough = int(number >= 2 * len(problem.steps))
            losses.append(cross_entropy(plain.method_modules.stop(embedded[place]), torch.tensor(enough)))
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(terms["stop"], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_examples_have_at_least_the_thoughts_that_they_need() -> None:
    """From as many as the steps take to as many as the stage has, all of them now and then; the longest is known."""
    encoder = Encoder(CURRICULUM, TOKENIZER)
    final = CURRICULUM.stages[-1]
    for problem in PROBLEMS:
        cut = tokenize(problem, TOKENIZER)
        drawn = [encoder(cut, replace(final, is_final=True), Random(seed)) for seed in range(60)]
        assert {example.num_thoughts for example in drawn} == set(range(len(problem.steps), 5))
        assert max(len(example.input_ids) for example in drawn) == encoder.longest(cut, replace(final, is_final=True))
        for example in drawn:
            numbers = range(1, example.num_thoughts + 1)
            assert example.stops == tuple(int(number >= len(problem.steps)) for number in numbers)


@pytest.mark.parametrize("name", MODELS)
def test_answers_take_as_many_thoughts_as_the_model_decides(name: str) -> None:
    """In a batch as alone: the thoughts up to the first decision to stop, and the answer that follows so many."""
    model, bare = make_thinker(name), make_model(name, attn_implementation="eager")
    torch.manual_seed(1)
    add_modules(model, METHODS["adaptive"])
    settings = ThoughtSettings(**model.config.thoughts)
    questions = [problem.question for problem in QUESTIONS[:8]]
    latent = settings.latent_id
    banned = [*model.generation_config.suppress_tokens]
    needed = []
    for question in questions:
        prompt = encode_question(question, 4, settings, QUESTION_TOKENIZER)
        with torch.no_grad():
            fed = reference.embeddings(bare, prompt, latent)
            thoughts = [fed[place] for place, token in enumerate(prompt) if token == latent]
            stops = [bool(model.method_modules.stop(thought).argmax() == 1) for thought in thoughts]
        needed.append([*stops[:3], True].index(True) + 1)
    together = answer(model, QUESTION_TOKENIZER, questions, 4, 5)
    assert [given.num_thoughts for given in together] == needed
    for question, kept, given in zip(questions, needed, together, strict=True):
        prompt = encode_question(question, kept, settings, QUESTION_TOKENIZER)
        written = reference.greedy(bare, prompt, latent, QUESTION_TOKENIZER.eos_token_id, banned, 5)
        assert given.output == QUESTION_TOKENIZER.decode(written, skip_special_tokens=True).strip()
        assert given.num_tokens == kept + len(written)
    budget = answer(model, QUESTION_TOKENIZER, questions, 2, 5)
    assert [given.num_thoughts for given in budget] == [min(kept, 2) for kept in needed]
    assert {given.num_thoughts for given in answer(model, QUESTION_TOKENIZER, questions, 0, 5)} == {0}


def test_the_models_differ_in_what_they_decide() -> None:
    """The test above sees early and late stops, not one number alone."""
    found = set()
    for name in MODELS:
        model = make_thinker(name)
        torch.manual_seed(1)
        add_modules(model, METHODS["adaptive"])
        questions = [problem.question for problem in QUESTIONS[:8]]
        found |= {given.num_thoughts for given in answer(model, QUESTION_TOKENIZER, questions, 4, 1)}
    assert len(found) >= 3
