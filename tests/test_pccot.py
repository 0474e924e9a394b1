"""Tests of thoughts that are refined together: equal to the definition, with none pause tokens, with all Coconut's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import reference
import torch
from conftest import LATENT_ID, MODELS, PROBLEMS, TOKENIZER, make_model, make_thinker
from test_recurrence import ALIGNMENTS, LAYOUTS, TOLERANCE, cocot_results, make_rows, pad, truth, worst

from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.methods import METHODS, CurriculumConfig
from cocot.modeling.generation import ThoughtRecorder, answer
from cocot.modeling.shared_passes import enable_checkpointing


def refining(name: str, iterations: int | None, **settings: Any) -> Any:
    """A thinker whose thoughts are refined so often."""
    model = make_thinker(name, **settings)
    model.config.thoughts["iterations"] = iterations
    return model


@cache
def refined(name: str, layouts: str, iterations: int) -> Any:
    """What the oracle says."""
    bare = make_model(name, attn_implementation="eager")
    return reference.batch_results(bare, make_rows(layouts), LATENT_ID, iterations=iterations)


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_definition(name: str, attention: str, layouts: str) -> None:
    """Loss, logits and every gradient after two iterations, for any rows and any padding."""
    model = refining(name, 2, attn_implementation=attention)
    for align in ALIGNMENTS:
        value, where = worst(cocot_results(model, pad(make_rows(layouts), align)), refined(name, layouts, 2))
        assert value < TOLERANCE, f"{where} is off by {value:.1e}, {align}"


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3_text"])
def test_any_number_of_iterations(name: str, iterations: int) -> None:
    """With none, one, several; one iteration more or less would be noticed."""
    results = cocot_results(refining(name, iterations), pad(make_rows("ragged"), "end_aligned"))
    assert worst(results, refined(name, "ragged", iterations))[0] < TOLERANCE
    assert worst(results, refined(name, "ragged", iterations + 1))[0] > 100 * TOLERANCE


@pytest.mark.parametrize("layouts", [layouts for layouts in LAYOUTS if layouts != "no_thoughts"])
@pytest.mark.parametrize("name", MODELS)
def test_as_many_iterations_as_thoughts_are_coconut(name: str, layouts: str) -> None:
    """The recurrence's loss, logits and gradients."""
    rows = make_rows(layouts)
    most = max(ids.count(LATENT_ID) for ids, _ in rows)
    model = refining(name, most)
    assert worst(cocot_results(model, pad(rows, "end_aligned")), truth(name, layouts))[0] < TOLERANCE
    if layouts == "ragged":
        model = refining(name, most - 1)
        assert worst(cocot_results(model, pad(rows, "end_aligned")), truth(name, layouts))[0] > 100 * TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_no_iterations_are_pause_tokens(name: str) -> None:
    """The placeholder is a token like any other: the bare model's loss and gradients."""
    batch = pad(make_rows("ragged"), "end_aligned")
    bare = make_model(name).train()
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    loss = bare(**batch, position_ids=positions).loss
    loss.backward()
    model = refining(name, 0).train()
    own = model(**batch).loss
    own.backward()
    torch.testing.assert_close(own, loss, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(bare)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_oracle(name: str) -> None:
    """A batch of questions, from the cache; the hook sees every thought as it is fed back at last."""
    model = refining(name, 2)
    settings = ThoughtSettings(**model.config.thoughts)
    questions = [problem.question for problem in PROBLEMS[:4]]
    recorder = ThoughtRecorder(len(questions))
    answers = answer(model, TOKENIZER, questions, 3, 5, thought_hook=recorder)
    bare = make_model(name, attn_implementation="eager")
    banned = [*model.generation_config.suppress_tokens]
    for row, (question, given) in enumerate(zip(questions, answers, strict=True)):
        prompt = encode_question(question, 3, settings, TOKENIZER)
        written = reference.greedy(bare, prompt, LATENT_ID, TOKENIZER.eos_token_id, banned, 5, iterations=2)
        assert given.output == TOKENIZER.decode(written, skip_special_tokens=True).strip()
        with torch.no_grad():
            fed = reference.embeddings(bare, prompt, LATENT_ID, iterations=2)
        places = [place for place, token in enumerate(prompt) if token == LATENT_ID]
        torch.testing.assert_close(recorder.thoughts[row], fed[places], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    """What is computed again is what was computed first."""
    model = refining(name, 2)
    enable_checkpointing(model)
    results = cocot_results(model, pad(make_rows("ragged"), "end_aligned"))
    assert worst(results, refined(name, "ragged", 2))[0] < TOLERANCE


def test_the_method_says_how_often() -> None:
    """As many iterations as the recipe has, which the model keeps; the loss is that of codi without a projection."""
    config = CurriculumConfig("pccot", pccot_iterations=5)
    assert METHODS["pccot"].iterations(config) == 5
    assert all(method.iterations(config) is None for name, method in METHODS.items() if name != "pccot")
    assert METHODS["pccot"].terms == METHODS["codi"].terms
