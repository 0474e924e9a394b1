"""A model and a tokenizer from nothing: any Hugging Face architecture, a vocabulary of the task's own words.

In: an `InitConfig` and problems. Out: a randomly initialised causal language model and a word-level tokenizer, both
ordinary Hugging Face objects that save and load like any other.

    tokenizer = build_tokenizer(problems)
    model = build_model(InitConfig(architecture="llama", layers=2, width=128, heads=2), tokenizer)

Read next: `modeling/latent_model.py` (thoughts for that model).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cocot.errors import ConfigError
from cocot.modeling.config import InitConfig
from cocot.settings.typed import nearest

_COMMON = ("gpt2", "llama", "qwen3", "mistral")


def build_model(init: InitConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A randomly initialised causal language model of the vocabulary of `tokenizer`; seed torch before.

    Raises:
        ConfigError: Hugging Face has no such architecture, or it has no such setting or shape.
    """
    try:
        config = _config(init, tokenizer)
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
        _try_out(model)
    except ConfigError:
        raise
    except Exception as error:  # of many kinds: every architecture checks its own settings, or fails over them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"cannot build model.init {init}: {reason[:400]}") from error
    if init.embedding_std is not None:
        nn.init.normal_(cast(Any, model.get_input_embeddings()).weight, std=init.embedding_std)
    return model


def _config(init: InitConfig, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The architecture's configuration, once its name and the names of its settings are known to be right."""
    if init.architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = get_close_matches(init.architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"try {', '.join(_COMMON)}"
        raise ConfigError(
            f"model.init.architecture is {init.architecture!r}, no causal language model of Hugging Face; {hint}."
        )
    if init.width % init.heads and "head_dim" not in init.settings:
        raise ConfigError(
            f"model.init.width is {init.width}, which {init.heads} heads cannot share; choose a multiple of "
            "model.init.heads."
        )
    kind: Any = CONFIG_MAPPING[init.architecture]
    shape = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": init.layers,
        "hidden_size": init.width,
        "num_attention_heads": init.heads,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    _check_settings(init, kind, shape)
    return kind(**shape, **init.settings)


def _check_settings(init: InitConfig, kind: Any, shape: Mapping[str, Any]) -> None:
    """Hugging Face takes any name of a setting, and leaves those that it does not know unused."""
    follow = {*shape, *(kind.attribute_map.get(name) for name in shape)}
    names = {name for name in (*vars(kind()), *kind.attribute_map) if not name.startswith("_")}
    for name in init.settings:
        if name in follow:
            raise ConfigError(f"model.init.settings sets {name}, which follows from model.init and the problems.")
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near!r}?" if near else "its Hugging Face configuration names those that it has."
            raise ConfigError(f"model.init.settings sets {name!r}, which {init.architecture} does not have; {hint}")


@torch.no_grad()
def _try_out(model: PreTrainedModel) -> None:
    """Run three tokens: some shapes are found impossible only then."""
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    model(input_ids=torch.zeros(1, min(3, _context(model)), dtype=torch.long, device=model.device))
    model.train(was_training)


def _context(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", None) or 3
