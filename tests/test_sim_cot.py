"""Tests of `sim_cot`, its kinds and `codi_sim_cot`: term and gradients against the definition, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Any

import pytest
import reference
import torch
from every_model import make_tokenizer
from runs_support import twins
from tiny_models import tiny_model
from torch.nn.functional import cross_entropy

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import tokenize
from cocot.data.examples import Encoder
from cocot.data.thought_targets import FOR_METHODS
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import ModelError
from cocot.methods import METHODS, CurriculumConfig, Phase
from cocot.methods.sim_cot import DECODER
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.method_modules import NAME, add_modules, projection_of
from cocot.tasks.problem import Problem

TASK = tasks.get("prosqa")
PROBLEMS = TASK.generate(6, seed=3, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=2)
ABOUT_ONE_GRAPH = TASK.generate(6, seed=4, mode="balanced", rendering="symbolic", layers=3, width=2, questions=3)
TOKENIZER = build_tokenizer([*PROBLEMS, *ABOUT_ONE_GRAPH])
SEED = 4  # draws rows with no, one and two thoughts
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")
CURRICULUM = CurriculumConfig(
    "sim_cot",
    max_stage=2,
    phases=[Phase("mixed", {"stage_0": 1.0, "stage_1": 1.0, "stage_2": 1.0, "final": 1.0})],
)


def examples(config: CurriculumConfig = CURRICULUM, problems: Sequence[Problem] = PROBLEMS, seed: int = 0) -> list[Any]:
    """Problems at all stages of a mixture."""
    encoder, stage = Encoder(config, TOKENIZER), config.stage_of(config.phases[0])
    return [encoder(tokenize(each, TOKENIZER), stage, Random(seed + number)) for number, each in enumerate(problems)]


def definition(model: Any, rows: list[Any], thoughts_per_step: int) -> torch.Tensor:
    """The term, step by step: each is written behind its thoughts, which are what the positions before them said."""
    losses, num_tokens = [], 0
    for row in rows:
        embedded = reference.embeddings(model, row.input_ids, LATENT_ID, project=projection_of(model))
        thoughts = [embedded[place] for place, token in enumerate(row.input_ids) if token == LATENT_ID]
        for number, step in enumerate(row.removed):
            if not step:
                continue
            own = thoughts[number * thoughts_per_step : (number + 1) * thoughts_per_step]
            words = model.get_input_embeddings()(torch.tensor(step))
            read = torch.stack([*own, *words])[None]
            copy = getattr(getattr(model, NAME, None), DECODER, None)
            if copy is None:
                logits = model(inputs_embeds=read, use_cache=False).logits[0]
            else:
                logits = model.lm_head(copy(inputs_embeds=read, use_cache=False).last_hidden_state)[0]
            losses.append(cross_entropy(logits[len(own) - 1 : -1], torch.tensor(step), reduction="sum"))
            num_tokens += len(step)
    return torch.stack(losses).sum() / num_tokens


def models_of(architecture: str, method: str) -> tuple[Any, Any]:
    """One that thinks and its bare twin, both with the method's modules; a decoder of its own has other weights."""
    model, plain = twins(architecture, TOKENIZER)
    add_modules(model, METHODS[method])
    if hasattr(model, NAME):
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.method_modules.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        plain.add_module(NAME, deepcopy(model.method_modules))
    return model, plain


def terms_of(model: Any, method: str, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The terms as the trainer asks for them."""
    inputs = {name: value for name, value in batch.items() if name not in FOR_METHODS}
    return METHODS[method].losses(lambda **more: model.train()(**inputs, **more), model, batch)


@pytest.mark.parametrize("method", ["sim_cot", "sim_cot_copy", "sim_cot_small"])
@pytest.mark.parametrize("thoughts_per_step", [1, 2])
@pytest.mark.parametrize("problems", [PROBLEMS, ABOUT_ONE_GRAPH], ids=["rows", "shared readings"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_term_and_its_gradients_are_those_of_the_definition(
    architecture: str, problems: Sequence[Problem], thoughts_per_step: int, method: str
) -> None:
    """Different numbers of thoughts, in rows or shared readings: the term and every gradient equal the slow way's."""
    model, plain = models_of(architecture, method)
    rows = examples(replace(CURRICULUM, thoughts_per_step=thoughts_per_step), problems, SEED)
    assert {row.num_thoughts for row in rows} == {0, thoughts_per_step, 2 * thoughts_per_step}
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID, shares_reading=True)
    assert ("shared_reading" in batch) == (problems is ABOUT_ONE_GRAPH)
    terms = terms_of(model, method, batch)
    assert terms.keys() == {"cross_entropy", "steps"}
    terms["steps"].backward()
    expected = definition(plain.train(), rows, thoughts_per_step)
    expected.backward()
    torch.testing.assert_close(terms["steps"], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_codi_with_steps_is_codi_and_the_definition(architecture: str) -> None:
    """The three terms are those of `codi`, bit for bit; that of the steps is the slow way's, gradients included."""
    config = CurriculumConfig("codi_sim_cot", max_stage=2)
    rows = [Encoder(config, TOKENIZER)(tokenize(each, TOKENIZER), config.stages[0], Random(0)) for each in PROBLEMS]
    model, plain = models_of(architecture, "codi_sim_cot")
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    terms, others = terms_of(model, "codi_sim_cot", batch), terms_of(model, "codi", batch)
    torch.testing.assert_close({name: term for name, term in terms.items() if name != "steps"}, others, rtol=0, atol=0)
    terms["steps"].backward()
    expected = definition(plain.train(), rows, 1)
    expected.backward()
    torch.testing.assert_close(terms["steps"], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("architecture", "norm"), [("gpt2", "ln_f"), ("llama", "norm")])
def test_a_small_decoder_is_the_first_layer_and_the_norm(architecture: str, norm: str) -> None:
    """A copy cut down to one layer gives the model's own states behind its first layer; the model keeps its layers."""
    model, _ = twins(architecture, TOKENIZER)
    small = model.copy_decoder(num_layers=1)
    embedded = torch.randn(2, 5, model.config.hidden_size)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    decoder = model.base_model
    states = decoder(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) > 2
    ours = small(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours, getattr(decoder, norm)(states[1]), rtol=0, atol=0)


def test_a_class_that_cannot_run_with_one_layer_is_refused() -> None:
    """Jamba's first layer keeps no keys and values, which its cache counts on: refused in a line, before training."""
    model = tiny_model("jamba")
    give_thoughts(model, make_tokenizer())
    with pytest.raises(ModelError, match="JambaModel cannot be cut down to 1 of its layers: "):
        METHODS["sim_cot_small"].modules(model)
    assert METHODS["sim_cot_copy"].modules(model)


def test_every_removed_step_is_asked_of_its_own_thoughts() -> None:
    """Each thought stands for a step and an end; without text, the last for all that remain; beyond them for none."""
    for seed in range(8):
        for row, problem in zip(examples(seed=seed), PROBLEMS, strict=True):
            steps = tokenize(problem, TOKENIZER).steps
            assert len(row.removed) == row.num_thoughts
            left = [token for token in row.labels if token >= 0][: -len(tokenize(problem, TOKENIZER).answer)]
            assert all(step[-1] == TOKENIZER.eos_token_id for step in row.removed if step)
            removed = [step[:-1] for step in row.removed]
            whole = [*chain.from_iterable(removed), *left]
            assert row.num_thoughts == 0 or whole == [*chain.from_iterable(steps)]
            assert all(step in (*steps, ()) for step in removed[:-1])


def test_words_alone_train_as_coconut() -> None:
    """Where nothing is removed the cross-entropy is the only term, and no other method's examples ask for steps."""
    words = replace(CURRICULUM, phases=[Phase("words", {"stage_0": 1.0})])
    batch = collate(examples(words), pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    assert not set(FOR_METHODS) & set(batch)
    output = type("Output", (), {"loss": torch.tensor(1.0)})
    assert METHODS["sim_cot"].losses(lambda **more: output, None, batch) == {"cross_entropy": output.loss}
    assert all(row.removed == () for row in examples(replace(CURRICULUM, method="coconut")))
