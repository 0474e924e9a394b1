"""Tests of decoding: what decodes is what cocot says; what a folder adds is named, and acts only where asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import PROBLEMS, TOKENIZER, make_model, make_thinker
from transformers import GenerationConfig

from cocot import tasks
from cocot.errors import ConfigError
from cocot.evaluation.evaluate import evaluate
from cocot.methods.tokens import SPECIAL_TOKENS
from cocot.modeling import decoding
from cocot.modeling.decoding import added_by_folder
from cocot.modeling.generation import answer

QUESTIONS = [problem.question for problem in PROBLEMS[:4]]
WORD = TOKENIZER.convert_tokens_to_ids("1")
VALUES: dict[str, Any] = {
    "max_length": 5,
    "max_new_tokens": 2,
    "min_length": 100,
    "min_new_tokens": 100,
    "early_stopping": True,
    "max_time": 1e-9,
    "stop_strings": ["1", "2", "0", ";"],
    "do_sample": True,
    "num_beams": 4,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"max_cache_len": 3},
    "max_cache_len": 3,
    "temperature": 9.0,
    "top_k": 3,
    "top_p": 0.3,
    "min_p": 0.9,
    "top_h": 0.2,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "length_penalty": -9.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[index] for index in range(9, 14)],
    "renormalize_logits": True,
    "forced_bos_token_id": WORD,
    "forced_eos_token_id": TOKENIZER.eos_token_id,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 9.0),
    "suppress_tokens": list(range(9, 14)),
    "begin_suppress_tokens": list(range(7, 14)),
    "sequence_bias": [[[WORD], 99.0]],
    "token_healing": True,
    "guidance_scale": 4.0,
    "watermarking_config": {"bias": 9.0},
    "num_return_sequences": 3,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "pad_token_id": WORD,
    "bos_token_id": WORD,
    "eos_token_id": [TOKENIZER.eos_token_id, *range(9, 14)],
    "decoder_start_token_id": WORD,
    "is_assistant": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2,
    "assistant_early_exit": 1,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "mtp",
    "use_mtp": True,
    "compile_config": None,
    "disable_compile": True,
    "low_memory": True,
    "penalty_alpha": 0.9,
    "dola_layers": "high",
    "diversity_penalty": 1.0,
    "num_beam_groups": 2,
    "constraints": None,
    "force_words_ids": [[WORD]],
    "prefill_chunk_size": 2,
    "continuous_batching_config": None,
}
"""A value for every field of a GenerationConfig, one that would change an answer if the field acted."""
ACTING = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "do_sample",
)
ACTING += ("exponential_decay_length_penalty", "num_beams", "forced_eos_token_id")


def thinker(**settings: Any) -> Any:
    """A model whose folder's `generation_config.json` has these settings."""
    model = make_thinker("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[TOKENIZER.eos_token_id] *= 2  # some texts end
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def tokens_of(model: Any, **settings: Any) -> list[tuple[str, int]]:
    """What the model answers."""
    return [(given.output, given.num_tokens) for given in answer(model, TOKENIZER, QUESTIONS, 2, 12, **settings)]


def test_the_sweep_below_sees_every_field() -> None:
    """A field that Hugging Face adds must get a value here."""
    assert {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"} <= set(
        VALUES
    )


@pytest.mark.parametrize("field", VALUES)
def test_nothing_of_a_folder_changes_an_answer(field: str) -> None:
    """Whatever `generation_config.json` sets: the same tokens, and the model's settings are as they were before."""
    model = thinker(**{field: VALUES[field]})
    before = model.generation_config
    assert tokens_of(model) == tokens_of(thinker())
    assert model.generation_config is before
    assert getattr(before, field) == VALUES[field]


@pytest.mark.parametrize("field", ACTING)
def test_a_folder_acts_where_it_is_asked_for(field: str) -> None:
    """With `use_generation_config` the same setting changes the answers; that shows that the sweep can fail."""
    torch.manual_seed(0)
    changed = tokens_of(thinker(**{field: VALUES[field]}), use_generation_config=True)
    assert changed != tokens_of(thinker(), use_generation_config=True)
    assert tokens_of(thinker(), use_generation_config=True) == tokens_of(thinker())


def test_what_a_folder_adds_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line with field and value; nothing where the folder adds nothing, or samples that greedy has no use for."""
    decoding._warn.cache_clear()
    for settings in ({}, {"temperature": 0.7, "top_p": 0.9}, {"max_length": 99, "bos_token_id": 1}):
        tokens_of(thinker(**settings))
    assert caplog.messages == []
    for _ in range(2):
        tokens_of(thinker(repetition_penalty=1.3, eos_token_id=[TOKENIZER.eos_token_id, 9]))
    (err,) = caplog.messages
    assert "repetition_penalty=1.3" in err
    assert f"eos_token_id=[{TOKENIZER.eos_token_id}, 9]" in err
    assert "--use-generation-config" in err


def test_a_models_own_placeholders_are_no_addition() -> None:
    """`give_thoughts` suppresses them in the model's settings, and so does greedy decoding."""
    model = thinker()
    assert model.generation_config.suppress_tokens == sorted(TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert added_by_folder(model, TOKENIZER) == {}
    model.generation_config.suppress_tokens = [*model.generation_config.suppress_tokens, 9]
    assert added_by_folder(model, TOKENIZER) == {"suppress_tokens": [9]}


@pytest.mark.parametrize("field", ["prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit"])
def test_what_does_not_go_with_thoughts_is_refused(field: str) -> None:
    """Where the folder's way of decoding is asked for and would be wrong in silence."""
    with pytest.raises(ConfigError, match=f"sets {field}, which does not go with thoughts"):
        tokens_of(thinker(**{field: VALUES[field]}), use_generation_config=True)


def test_a_bare_model_decodes_as_before() -> None:
    """After an answer the model's own `generate` follows its own settings again."""
    model = thinker(no_repeat_ngram_size=1, max_new_tokens=8)
    ids = torch.tensor([[9, 10, 11]])
    before = model.generate(ids)
    tokens_of(model)
    assert torch.equal(model.generate(ids), before)
    assert make_model("llama").generation_config is not None


def test_evaluation_decodes_so_too() -> None:
    """`evaluate` leaves the folder's settings out, and takes them where asked."""
    task = tasks.get("prosqa")
    biased = thinker(sequence_bias=[[[WORD], 99.0]])
    plain = evaluate(biased, TOKENIZER, task, PROBLEMS[:3], num_thoughts=1, max_new_tokens=6)
    asked = evaluate(
        biased, TOKENIZER, task, PROBLEMS[:3], num_thoughts=1, max_new_tokens=6, use_generation_config=True
    )
    assert {record.output for record in asked} == {"1 1 1 1 1 1"}
    assert {record.output for record in plain} != {"1 1 1 1 1 1"}
