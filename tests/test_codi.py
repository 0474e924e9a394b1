"""Tests of the methods `codi` and `codi_without_projection`: terms and gradients against the definition, row by row."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import reference
import torch
from runs_support import twins
from torch.nn.functional import cross_entropy, smooth_l1_loss

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import tokenize
from cocot.data.examples import Encoder
from cocot.data.thought_targets import FOR_METHODS
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError
from cocot.methods import METHODS, CurriculumConfig
from cocot.modeling.method_modules import add_modules, projection_of
from cocot.modeling.shared_passes import enable_checkpointing

PROBLEMS = tasks.get("prosqa").generate(5, seed=3, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=2)
TOKENIZER = build_tokenizer(PROBLEMS)
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")
METHOD_NAMES = ("codi", "codi_without_projection")


def examples(method: str = "codi", num_thoughts: int = 3) -> list[Any]:
    """The problems as the method has them."""
    config = CurriculumConfig(method, max_stage=num_thoughts)
    encoder = Encoder(config, TOKENIZER)
    return [encoder(tokenize(each, TOKENIZER), config.stages[0], Random(0)) for each in PROBLEMS]


def models_of(architecture: str, method: str) -> tuple[Any, Any]:
    """One that thinks and its bare twin, both with the method's modules."""
    both = twins(architecture, TOKENIZER)
    for model in both:
        torch.manual_seed(0)
        add_modules(model, METHODS[method])
    return both


def terms_of(model: Any, method: str, rows: list[Any]) -> dict[str, torch.Tensor]:
    """The terms as the trainer asks for them."""
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    inputs = {name: value for name, value in batch.items() if name not in FOR_METHODS}
    return METHODS[method].losses(lambda **more: model.train()(**inputs, **more), model, batch)


def states_and_logits(model: Any, embedded: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each layer gives at each position of one row, and the logits, from the bare class."""
    decoder = model.get_decoder()
    found: list[torch.Tensor] = []
    layers = decoder.h if hasattr(decoder, "h") else decoder.layers
    keep = lambda module, inputs, output: found.append((output[0] if isinstance(output, tuple) else output)[0])  # noqa: E731
    handles = [layer.register_forward_hook(keep) for layer in layers]
    logits = model(inputs_embeds=embedded[None], use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return found, logits


def definition(model: Any, rows: list[Any], project: Any) -> dict[str, torch.Tensor]:
    """The three terms from the words of the paper: one row at a time, no padding, no cache."""
    losses: dict[str, list[torch.Tensor]] = {"cross_entropy": [], "teacher": [], "distillation": []}
    counts = {"cross_entropy": 0, "teacher": 0}
    mark = TOKENIZER.convert_tokens_to_ids("###")
    for row, problem in zip(rows, PROBLEMS, strict=True):
        pieces = tokenize(problem, TOKENIZER)
        words = [*pieces.question, *(token for step in pieces.steps[:-1] for token in step), *pieces.answer]
        before = []
        for name, ids, learned in (
            ("cross_entropy", row.input_ids, len(pieces.answer)),
            ("teacher", words, len(words) - len(pieces.question)),
        ):
            embedded = reference.embeddings(model, ids, LATENT_ID, project=project)
            states, logits = states_and_logits(model, embedded)
            targets = torch.tensor(ids[-learned:])
            losses[name].append(cross_entropy(logits[-learned - 1 : -1], targets, reduction="sum"))
            counts[name] += learned
            before.append([state[ids.index(mark)] for state in states])
        for ours, theirs in zip(*before, strict=True):
            losses["distillation"].append(smooth_l1_loss(ours, theirs.detach()) / theirs.detach().std())
    means = {name: torch.stack(losses[name]).sum() / counts[name] for name in counts}
    return {**means, "distillation": torch.stack(losses["distillation"]).mean()}


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("term", ["cross_entropy", "teacher", "distillation"])
def test_terms_and_gradients_are_those_of_the_definition(architecture: str, method: str, term: str) -> None:
    """Rows of unlike lengths in a batch: every term and all its gradients, the projection's too, are the slow way's."""
    model, plain = models_of(architecture, method)
    rows = examples(method)
    terms = terms_of(model, method, rows)
    assert [*terms] == ["cross_entropy", "teacher", "distillation"]
    terms[term].backward()
    project = projection_of(plain)
    expected = definition(plain.train(), rows, project)[term]
    expected.backward()
    torch.testing.assert_close(terms[term], expected, rtol=1e-5, atol=1e-6)
    ours, theirs = reference.gradients(model), reference.gradients(plain)
    assert any(bool(value.any()) for value in theirs.values())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_without_a_projection_the_student_is_coconut() -> None:
    """The recurrence is the same: one cross-entropy, the same gradients."""
    rows = examples("codi_without_projection")
    model, _ = models_of("llama", "codi_without_projection")
    terms_of(model, "codi_without_projection", rows)["cross_entropy"].backward()
    ours = reference.gradients(model)
    batch = collate(examples("coconut_no_curriculum"), pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    model.zero_grad()
    model(**batch).loss.backward()
    torch.testing.assert_close(ours, reference.gradients(model), rtol=0, atol=0)


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    """The distance of a batch is the mean of its rows' own."""
    model, _ = models_of("gpt2", "codi")
    rows = examples()
    together = terms_of(model, "codi", rows)["distillation"]
    alone = torch.stack([terms_of(model, "codi", [row])["distillation"] for row in rows]).mean()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_the_teacher_reads_what_the_paper_says() -> None:
    """Question, every step but the last, the answer; both predict the answer's first token from the answer mark."""
    rows = examples()
    batch = collate(rows, pad_id=TOKENIZER.pad_token_id, latent_id=LATENT_ID)
    mark = TOKENIZER.convert_tokens_to_ids("###")
    for part in (batch, batch["written"]):
        read = part["input_ids"][torch.arange(len(rows)), part["answer_prompts"]]
        assert read.tolist() == [mark] * len(rows)
    for row, problem in zip(rows, PROBLEMS, strict=True):
        pieces = tokenize(problem, TOKENIZER)
        text = TOKENIZER.decode(row.written.labels[len(pieces.question) :])
        assert text == TOKENIZER.decode([*(token for step in pieces.steps[:-1] for token in step), *pieces.answer])
    assert {len(tokenize(problem, TOKENIZER).steps) for problem in PROBLEMS} == {1, 2, 3}


def test_gradient_checkpointing_changes_nothing() -> None:
    """States that are kept for the distance are those of the first run of a layer, not of its second."""
    rows = examples()
    results = []
    for checkpoints in (False, True):
        model, _ = models_of("llama", "codi")
        if checkpoints:
            enable_checkpointing(model)
        terms = terms_of(model, "codi", rows)
        sum(terms.values()).backward()
        results.append(({name: term.detach() for name, term in terms.items()}, reference.gradients(model)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_an_answer_mark_that_runs_into_the_answer_is_refused() -> None:
    """Where no position predicts the answer alone there is nothing to compare."""
    config = CurriculumConfig("codi", max_stage=1)
    pieces = tokenize(PROBLEMS[0], TOKENIZER)
    fused = replace(pieces, answer=pieces.answer[1:])
    with pytest.raises(DataError, match="cuts the answer mark '###' together with the answer"):
        Encoder(config, TOKENIZER)(fused, config.stages[0], Random(0))
