"""Tests of thoughts that are mixtures of words: training and answers against the definition, row by row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
import reference
import torch
from conftest import LATENT_ID as WORDS_LATENT_ID
from conftest import MODELS, make_model, make_thinker
from runs_support import twins
from test_recurrence import ALIGNMENTS, LAYOUTS, TOLERANCE, cocot_results, make_rows, pad, worst
from torch.nn.functional import cross_entropy

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import encode_frontiers, tokenize
from cocot.data.examples import Encoder
from cocot.data.thought_targets import FOR_METHODS
from cocot.data.word_tokenizer import build_tokenizer
from cocot.methods import METHODS, CurriculumConfig

TASK = tasks.get("prosqa")
PROBLEMS = TASK.generate(5, seed=3, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=2)
TOKENIZER = build_tokenizer(PROBLEMS)
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")


@cache
def mixed(name: str, layouts: str) -> Any:
    """What the oracle says of the recurrence."""
    bare = make_model(name, attn_implementation="eager")
    return reference.batch_results(bare, make_rows(layouts), WORDS_LATENT_ID, mixes_words=True)


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_recurrence_is_that_of_the_definition(name: str, layouts: str) -> None:
    """Loss, logits and every gradient of a model that thinks in its own mixtures, for any rows and any padding."""
    model = make_thinker(name)
    model.config.thoughts["mixes_words"] = True
    for align in ALIGNMENTS:
        value, where = worst(cocot_results(model, pad(make_rows(layouts), align)), mixed(name, layouts))
        assert value < TOLERANCE, f"{where} is off by {value:.1e}, {align}"


def examples(with_frontiers: bool, **settings: Any) -> list[Any]:
    """The problems as the method has them, three thoughts each."""
    config = CurriculumConfig("soft", max_stage=3, **settings)
    encoder = Encoder(config, TOKENIZER)
    cut = [tokenize(each, TOKENIZER) for each in PROBLEMS]
    if with_frontiers:
        sets = encode_frontiers([TASK.frontiers(each) for each in PROBLEMS], TOKENIZER)
        cut = [replace(each, frontiers=right) for each, right in zip(cut, sets, strict=True)]
    return [encoder(each, config.stages[0], Random(0)) for each in cut]


def definition(model: Any, rows: list[Any]) -> dict[str, torch.Tensor]:
    """Both terms, one row at a time: the right mixtures are fed, and each is predicted from what is before it."""
    answers, mixtures, num_tokens = [], [], 0
    table = model.get_input_embeddings().weight
    for row in rows:
        places = [place for place, token in enumerate(row.input_ids) if token == LATENT_ID]
        embedded = [table[token] for token in row.input_ids]
        for place, ids in zip(places, row.targets, strict=True):
            embedded[place] = table[list(ids)].mean(dim=0)
        logits = model(inputs_embeds=torch.stack(embedded)[None], use_cache=False).logits[0]
        learned = [token for token in row.labels if token >= 0]
        num_tokens += len(learned)
        answers.append(cross_entropy(logits[-len(learned) - 1 : -1], torch.tensor(learned), reduction="sum"))
        for place, ids in zip(places, row.targets, strict=True):
            target = torch.zeros(len(table))
            target[list(ids)] = 1 / len(ids)
            mixtures.append(cross_entropy(logits[place - 1], target))
    return {"cross_entropy": torch.stack(answers).sum() / num_tokens, "mixture": torch.stack(mixtures).mean()}


@pytest.mark.parametrize("with_frontiers", [True, False], ids=["frontiers", "steps"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("term", ["cross_entropy", "mixture"])
def test_terms_and_gradients_are_those_of_the_definition(architecture: str, term: str, with_frontiers: bool) -> None:
    """Rows of unlike lengths in one batch: both terms and all gradients equal the slow way's."""
    model, plain = twins(architecture, TOKENIZER)
    rows = examples(with_frontiers)
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    inputs = {name: value for name, value in batch.items() if name not in FOR_METHODS}
    terms = METHODS["soft"].losses(lambda **more: model.train()(**{**inputs, **more}), model, batch)
    assert [*terms] == ["cross_entropy", "mixture"]
    terms[term].backward()
    expected = definition(plain.train(), rows)[term]
    expected.backward()
    torch.testing.assert_close(terms[term], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_every_thought_has_its_mixture() -> None:
    """What the search has reached; or the step's words; behind the last step, what follows the thoughts."""
    end, mark = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<|end-latent|>", "###"))
    found = examples(True), examples(False), examples(False, end_marker=False)
    for searched, stepped, unmarked, problem in zip(*found, PROBLEMS, strict=True):
        pieces, frontiers = tokenize(problem, TOKENIZER), TASK.frontiers(problem)
        for number in range(3):
            words = TOKENIZER.convert_ids_to_tokens(list(searched.targets[number]))
            if number < len(pieces.steps):
                assert sorted(words) == sorted(frontiers[number])
                assert set(stepped.targets[number]) == set(pieces.steps[number])
            else:
                assert (searched.targets[number], stepped.targets[number]) == ((end,), (end,))
                assert unmarked.targets[number] == (mark,)


def test_only_this_method_mixes_words() -> None:
    """What a model keeps about it follows from the method."""
    settings = {name: Encoder(CurriculumConfig(name), TOKENIZER).settings.mixes_words for name in METHODS}
    assert [name for name, mixes in settings.items() if mixes] == ["soft"]
