"""What decodes an answer: cocot's own greedy decoding, or a folder's `generation_config.json` where that is asked for.

In: a model, its tokenizer, the longest answer. Out: the `GenerationConfig` that acts, and nothing beside it.

    with decoding(model, greedy(tokenizer, 64)) as config:
        model.generate(input_ids, generation_config=config)

Read next: `modeling/generation.py`, which answers with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from cocot.errors import ConfigError
from cocot.methods.tokens import SPECIAL_TOKENS

_LEAVE_ANSWERS = {"max_length", "max_new_tokens", "bos_token_id", "pad_token_id", "use_cache", "num_return_sequences"}
_LEAVE_ANSWERS |= {"transformers_version", "_from_model_config", "return_dict_in_generate", "disable_compile"}
_LEAVE_ANSWERS |= {"output_attentions", "output_hidden_states", "output_scores", "output_logits"}
"""Fields that change no token, or whose place an argument of `answer` takes."""
_OF_SAMPLES = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
_WITHOUT_THOUGHTS = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def greedy(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """The likeliest token at every place, up to end of text; never a placeholder, which would have no thought."""
    make: Any = GenerationConfig  # its constructor has no annotations
    config: GenerationConfig = make(do_sample=False, num_beams=1, use_cache=True, **_frame(tokenizer, max_new_tokens))
    config.suppress_tokens = _placeholders(tokenizer)
    return config


def sampled(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    """Tokens drawn from the model's distribution at a temperature, of the likeliest that have `top_p` of it."""
    config = greedy(tokenizer, max_new_tokens)
    config.do_sample, config.temperature, config.top_p, config.top_k = True, temperature, top_p, 0
    return config


def as_folder_says(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """The decoding of the model's own `generation_config.json`; its length and its end of text are still ours.

    Raises:
        ConfigError: it asks for a way of decoding in which thoughts would be wrong.
    """
    config: GenerationConfig = deepcopy(model.generation_config)
    if refused := [name for name in _WITHOUT_THOUGHTS if getattr(config, name, None) is not None]:
        raise ConfigError(f"generation_config.json sets {', '.join(refused)}, which does not go with thoughts.")
    update: Any = config.update  # has no annotations
    update(**_frame(tokenizer, max_new_tokens), max_length=None, num_return_sequences=1, return_dict_in_generate=False)
    config.suppress_tokens = sorted({*(config.suppress_tokens or []), *_placeholders(tokenizer)})
    return config


def _frame(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> dict[str, Any]:
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"max_new_tokens": max_new_tokens, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad_id}


def _placeholders(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: Any = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    return sorted(ids)


@contextmanager
def decoding(model: Any, config: GenerationConfig) -> Iterator[GenerationConfig]:
    """Let `config` decode, and it alone: Hugging Face fills what it leaves open from the model's own."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    before = owner.generation_config
    owner.generation_config = config
    try:
        yield config
    finally:
        owner.generation_config = before


def added_by_folder(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the model's `generation_config.json` would change about greedy answers: values by field."""
    if model.generation_config is None:
        return {}
    ours = {**GenerationConfig._get_default_generation_params(), **_given(greedy(tokenizer, 1))}
    theirs = {name: value for name, value in _given(model.generation_config).items() if name not in _LEAVE_ANSWERS}
    if not theirs.get("do_sample"):
        theirs = {name: value for name, value in theirs.items() if name not in _OF_SAMPLES}
    suppressed = set(theirs.pop("suppress_tokens", [])) - {*_placeholders(tokenizer)}
    ends = theirs.pop("eos_token_id", tokenizer.eos_token_id)
    found = {name: value for name, value in theirs.items() if value != ours.get(name)}
    if suppressed:
        found["suppress_tokens"] = sorted(suppressed)
    if {*(ends if isinstance(ends, list) else [ends])} != {tokenizer.eos_token_id}:
        found["eos_token_id"] = ends
    return found


def _given(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


def warn_of_folder(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name, once, what the model's `generation_config.json` adds and greedy decoding leaves out."""
    if found := added_by_folder(model, tokenizer):
        _warn(", ".join(f"{name}={value!r}" for name, value in found.items()))


@cache
def _warn(found: str) -> None:
    logging.getLogger("cocot").warning(
        "the model's generation_config.json sets %s; answers are greedy, and this is left out. "
        "To decode as it says: --use-generation-config, in Python use_generation_config=True.",
        found,
    )
