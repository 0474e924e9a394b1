"""Tests of thoughts that are mixtures of words: training and answers against the definition, row by row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import reference
import torch
from conftest import LATENT_ID as WORDS_LATENT_ID
from conftest import MODELS, let_a_word_stop, make_model, make_thinker, words_behind_thoughts
from conftest import PROBLEMS as QUESTIONS
from conftest import TOKENIZER as QUESTION_TOKENIZER
from runs_support import NO_DROPOUT_INIT, tiny_config, twins
from test_recurrence import ALIGNMENTS, LAYOUTS, TOLERANCE, cocot_results, make_rows, pad, worst
from torch.nn.functional import cross_entropy

from cocot import load, tasks
from cocot.data.collator import collate
from cocot.data.encoding import encode_frontiers, encode_question, tokenize
from cocot.data.examples import Encoder
from cocot.data.layout import ThoughtSettings
from cocot.data.thought_targets import FOR_METHODS
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError
from cocot.methods import METHODS, CurriculumConfig, Phase
from cocot.modeling.generation import answer
from cocot.modeling.thought_settings import thought_settings
from cocot.training.run import train

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


def examples(with_frontiers: bool, method: str = "soft", **settings: Any) -> list[Any]:
    """The problems as the method has them, with at most three thoughts each."""
    config = CurriculumConfig(method, max_stage=3, **settings)
    encoder = Encoder(config, TOKENIZER)
    cut = [tokenize(each, TOKENIZER) for each in PROBLEMS]
    if with_frontiers:
        sets = encode_frontiers([TASK.frontiers(each) for each in PROBLEMS], TOKENIZER)
        cut = [replace(each, frontiers=right) for each, right in zip(cut, sets, strict=True)]
    return [encoder(each, config.stages[0], Random(number)) for number, each in enumerate(cut)]


def definition(model: Any, rows: list[Any], thinks_itself: bool = False) -> dict[str, torch.Tensor]:
    """Both terms, one row at a time: the right mixtures are fed, and each is predicted from what is before it.

    With `thinks_itself` the model's own mixtures are fed, as what they are: no gradient reaches what made them.
    """
    answers, mixtures, num_tokens = [], [], 0
    table = model.get_input_embeddings().weight
    for row in rows:
        places = [place for place, token in enumerate(row.input_ids) if token == LATENT_ID]
        embedded = [table[token] for token in row.input_ids]
        for place, ids in zip(places, row.targets, strict=True):
            embedded[place] = table[list(ids)].mean(dim=0)
        if thinks_itself:
            with torch.no_grad():
                own = reference.embeddings(model, row.input_ids, LATENT_ID, mixes_words=True)
            embedded = [own[place] if place in places else word for place, word in enumerate(embedded)]
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
@pytest.mark.parametrize("method", ["soft", "soft_adaptive", "soft_own_mixtures"])
def test_terms_and_gradients_are_those_of_the_definition(
    method: str, architecture: str, term: str, with_frontiers: bool
) -> None:
    """Rows of unlike lengths and numbers of thoughts: both terms and all gradients equal the slow way's."""
    model, plain = twins(architecture, TOKENIZER)
    model.config.thoughts["mixes_words"] = True
    rows = examples(with_frontiers, method, pad_thoughts=method != "soft_own_mixtures")
    assert (len({row.num_thoughts for row in rows}) > 1) == (method != "soft")
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    inputs = {name: value for name, value in batch.items() if name not in FOR_METHODS}
    terms = METHODS[method].losses(lambda **more: model.train()(**{**inputs, **more}), model, batch)
    assert [*terms] == ["cross_entropy", "mixture"]
    terms[term].backward()
    expected = definition(plain.train(), rows, thinks_itself=method == "soft_own_mixtures")[term]
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


def test_only_these_methods_mix_words_and_only_one_stops() -> None:
    """What a model keeps about it follows from the method; it stops at the token that stands behind its thoughts."""
    end, mark = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<|end-latent|>", "###"))
    settings = {name: Encoder(CurriculumConfig(name), TOKENIZER).settings for name in METHODS}
    assert [name for name, own in settings.items() if own.mixes_words] == [
        "soft",
        "soft_adaptive",
        "soft_own_mixtures",
    ]
    assert {name: own.stop_id for name, own in settings.items() if own.stop_id is not None} == {"soft_adaptive": end}
    unmarked = Encoder(CurriculumConfig("soft_adaptive", end_marker=False), TOKENIZER)
    assert unmarked.settings.stop_id == mark


def test_an_answer_mark_that_runs_into_the_answer_would_never_stop() -> None:
    """Without an end marker the mark's first token ends the thoughts; a tokenizer that does not write it is refused."""
    config = CurriculumConfig("soft_adaptive", max_stage=3, end_marker=False)
    pieces = tokenize(PROBLEMS[0], TOKENIZER)
    fused = replace(pieces, answer=pieces.answer[1:])
    with pytest.raises(DataError, match="cuts the answer mark '###' together with the answer"):
        Encoder(config, TOKENIZER)(fused, config.stages[0], Random(0))
    Encoder(replace(config, end_marker=True), TOKENIZER)(fused, config.stages[0], Random(0))


@pytest.mark.parametrize("name", MODELS)
def test_answers_stop_where_the_end_is_the_likeliest(name: str) -> None:
    """In a batch as alone: thoughts up to the first behind which the model would end them, and what follows so many."""
    model, bare = make_thinker(name), make_model(name, attn_implementation="eager")
    model.config.thoughts["mixes_words"] = True
    let_a_word_stop(model, bare, 4)
    settings, banned = ThoughtSettings(**model.config.thoughts), [*model.generation_config.suppress_tokens]
    questions = [problem.question for problem in QUESTIONS[:8]]
    said = [words_behind_thoughts(bare, question, 4, settings) for question in questions]
    needed = [[*row[:3], settings.stop_id].index(settings.stop_id) + 1 for row in said]
    together = answer(model, QUESTION_TOKENIZER, questions, 4, 5)
    assert [given.num_thoughts for given in together] == needed
    for question, kept, given in zip(questions, needed, together, strict=True):
        prompt = encode_question(question, kept, settings, QUESTION_TOKENIZER)
        end = QUESTION_TOKENIZER.eos_token_id
        written = reference.greedy(bare, prompt, WORDS_LATENT_ID, end, banned, 5, mixes_words=True)
        assert given.output == QUESTION_TOKENIZER.decode(written, skip_special_tokens=True).strip()
    budget = answer(model, QUESTION_TOKENIZER, questions, 2, 5)
    assert [given.num_thoughts for given in budget] == [min(kept, 2) for kept in needed]


def test_the_models_stop_after_different_numbers_of_thoughts() -> None:
    """The test above sees early and late stops, not one number alone."""
    found = set()
    for name in MODELS:
        model = make_thinker(name)
        model.config.thoughts["mixes_words"] = True
        let_a_word_stop(model, make_model(name, attn_implementation="eager"), 4)
        questions = [problem.question for problem in QUESTIONS[:8]]
        found |= {given.num_thoughts for given in answer(model, QUESTION_TOKENIZER, questions, 4, 1)}
    assert len(found) >= 3


def test_a_run_goes_on_with_its_own_mixtures(tmp_path: Path) -> None:
    """A phase on the right mixtures, then the model's own, with both terms; the result mixes words."""
    phases = [Phase("right", {"final": 1.0}, method="soft")]
    curriculum = {"method": "soft_own_mixtures", "max_stage": 2, "epochs_per_stage": 1, "phases": phases}
    run = train(tiny_config(curriculum=curriculum, init=NO_DROPOUT_INIT), tmp_path)
    log = [entry for entry in run.read_log() if "loss" in entry]
    assert {entry["stage"] for entry in log if entry.get("loss_mixture")} == {"right", "final"}
    model, _ = load(run.path)
    assert thought_settings(model).mixes_words
