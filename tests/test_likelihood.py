"""Tests of `probing`: log-probabilities as by definition, from a question that is read once."""

import pytest
import reference
import torch
from conftest import LATENT_ID, MODELS, make_model, make_thinker
from every_model import make_tokenizer
from tiny_models import tiny_model

from cocot.errors import DataError
from cocot.interpret.likelihood import continuation_log_probs
from cocot.modeling.latent_model import give_thoughts

# Largest difference allowed to a log-probability. Measured, worst of this file: 9.5e-7.
TOLERANCE = 1e-5
PROMPTS = [[12, 13, LATENT_ID, LATENT_ID, 14], [15, LATENT_ID, 16], [17] * 9 + [LATENT_ID] * 3 + [12], [13, 14]]
CONTINUATIONS = [[[12], [13, 14, 15]], [[14, 15], [16], [17, 12, 13, 14]], [[15, 16]], []]


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_the_definition(name):
    """Ragged prompts with and without thoughts, texts of several lengths, prompts without texts: as the slow oracle."""
    got = continuation_log_probs(make_thinker(name), PROMPTS, CONTINUATIONS)
    bare = make_model(name)
    assert [len(values) for values in got] == [2, 3, 1, 0]
    for prompt, texts, values in zip(PROMPTS, CONTINUATIONS, got, strict=True):
        for text, value in zip(texts, values.tolist(), strict=True):
            assert value == pytest.approx(reference.log_probability(bare, prompt, text, LATENT_ID), abs=TOLERANCE)
            changed = [*prompt[:-1], 18]  # negative control: another prompt, another number
            assert abs(value - reference.log_probability(bare, changed, text, LATENT_ID)) > 100 * TOLERANCE


def test_a_cache_that_cannot_be_continued_is_not():
    """A state-space model, whose cache takes one token at a time, has the oracle's numbers, too."""
    model = give_thoughts(tiny_model("mamba"), make_tokenizer())
    assert model.thought_passes.inference == "recomputed"
    prompts = [[60 if token == LATENT_ID else token for token in prompt] for prompt in PROMPTS]
    got = continuation_log_probs(model, prompts, CONTINUATIONS)
    assert [len(values) for values in got] == [2, 3, 1, 0]
    for prompt, texts, values in zip(prompts, CONTINUATIONS, got, strict=True):
        for text, value in zip(texts, values.tolist(), strict=True):
            assert value == pytest.approx(reference.log_probability(model, prompt, text, 60), abs=TOLERANCE)


def test_the_question_is_read_once():
    """Sixteen texts after one prompt: the decoder sees the prompt's columns in one row, and the texts' in sixteen."""
    model = make_thinker("llama")
    read = []

    def note(module, args, kwargs):
        given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        read.append(tuple(given.shape[:2]))

    model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    continuation_log_probs(model, [PROMPTS[1] + [12] * 20], [[[12, 13, 14]] * 16])
    assert sum(rows * columns for rows, columns in read[:-1]) == 23
    assert read[-1] == (16, 2)


def test_the_model_is_left_as_it_was():
    """No gradient, and the next answer is the same."""
    model = make_thinker("gpt2")
    first = continuation_log_probs(model, PROMPTS[:1], CONTINUATIONS[:1])[0]
    assert not first.requires_grad
    assert torch.equal(first, continuation_log_probs(model, PROMPTS[:1], CONTINUATIONS[:1])[0])


@pytest.mark.parametrize(("prompts", "texts"), [([[]], [[[12]]]), ([[12]], [[[]]]), ([[12]], [[]]), ([], [])])
def test_nothing_to_read_is_an_error(prompts, texts):
    """An empty prompt or text, or none at all, is refused."""
    with pytest.raises(DataError, match="no tokens"):
        continuation_log_probs(make_thinker("gpt2"), prompts, texts)
