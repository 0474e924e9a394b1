"""The model with which a stage begins: made, loaded, or the result of the stage before; and its tokenizer.

In: a `RunConfig`, the run's folder if there is one. Out: a model that was given thoughts, with its tokenizer.
Read next: `modeling/loading.py`, `modeling/from_scratch.py`, `modeling/lora.py`; `training/run.py`, which trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import ConfigError
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS
from cocot.modeling.from_scratch import build_model
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.loading import load, load_together, load_tokenizer
from cocot.modeling.lora import has_tied_head, in_four_bits, merged, with_adapter
from cocot.modeling.method_modules import NAME, add_modules
from cocot.modeling.special_tokens import add_missing, add_tokens
from cocot.system.manifest import check
from cocot.system.processes import check_together
from cocot.tasks.problem import Problem
from cocot.training.config import RunConfig
from cocot.training.fsdp import sent_without_weights, shares_weights, uses_fsdp
from cocot.training.run_folder import RunFolder
from cocot.training.trainer import uses_bf16


def prepare_tokenizer(config: RunConfig, problems: Iterable[Problem]) -> PreTrainedTokenizerBase:
    """The run's tokenizer without its model: for a look at what will be trained on."""
    if config.model.init is not None:
        return build_tokenizer(problems, config.model.init.tokens)
    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path)
    add_missing(tokenizer, (*SPECIAL_TOKENS, PAUSE))
    return tokenizer


def prepare_model(
    config: RunConfig, problems: Iterable[Problem], run: RunFolder | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at the start of the first stage that is not done yet; `problems` make a vocabulary from scratch.

    All processes of a launch must call. Where FSDP shares weights out, the first one alone reads any.

    Raises:
        ConfigError: the method trains modules of its own, which FSDP cannot.
    """
    set_seed(config.seed)
    if shares_weights():
        model, tokenizer = sent_without_weights(lambda: _begin(config, problems, run, load, check))
    else:
        model, tokenizer = _begin(config, problems, run, load_together, check_together)
    if config.model.lora is None:  # an adapter has them from the beginning, and saves them itself
        add_modules(model, config.curriculum.chosen, _last_checkpoint(run))
    if hasattr(model, NAME) and uses_fsdp():
        raise ConfigError(
            f"the method {config.curriculum.method} trains modules of its own, which does not go with FSDP yet; train "
            "in one process or under DDP."
        )
    return model, tokenizer


def _last_checkpoint(run: RunFolder | None) -> Path | None:
    """What the newest finished stage ended with."""
    finished = run.finished_stages() if run else []
    return run.path / finished[-1]["checkpoint"] if run and finished else None


def _begin(
    config: RunConfig,
    problems: Iterable[Problem],
    run: RunFolder | None,
    load: Callable[..., Any],
    check: Callable[[Path], None],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    checkpoint = _last_checkpoint(run)
    if config.model.lora is not None:
        if checkpoint:
            check(checkpoint)
        return _adapted(config, checkpoint, load)
    if checkpoint:
        model, tokenizer = load(checkpoint)
        return model, tokenizer
    if config.model.init is not None:
        scratch = build_tokenizer(problems, config.model.init.tokens)
        return give_thoughts(build_model(config.model.init, scratch), scratch), scratch
    return _pretrained(config, load)


def _pretrained(config: RunConfig, load: Callable[..., Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert config.model.path is not None
    lora = config.model.lora
    dtype = torch.bfloat16 if uses_bf16(config.train) else torch.float32
    model, tokenizer = load(config.model.path, **(in_four_bits(dtype) if lora and lora.quantize else {}))
    add_tokens(model, tokenizer, (PAUSE,))  # whatever the method: runs that share stages have one vocabulary
    return model, tokenizer


def _adapted(
    config: RunConfig, saved: Path | None, load: Callable[..., Any], merges: bool = False
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model with an adapter, a new one or one of the run's own; `merges` if it is to become a plain model."""
    assert config.model.lora is not None
    model, tokenizer = _pretrained(config, load)
    if uses_fsdp() and has_tied_head(model):
        raise ConfigError(
            f"model.lora does not go with FSDP for {type(model).__name__} with tied embeddings; leave --use_fsdp out "
            "and train under DDP."
        )
    if merges and config.model.lora.quantize:
        model = cast(Any, model).dequantize()
    add_modules(model, config.curriculum.chosen)
    return with_adapter(model, tokenizer, config.model.lora, config.seed, saved), tokenizer


def merged_model(config: RunConfig, saved: Path) -> PreTrainedModel:
    """The plain model that a run with an adapter ends with.

    Args:
        config: The recipe, with `model.lora`.
        saved: The checkpoint that holds the adapter; its files were checked.
    """
    return merged(_adapted(config, saved, load, merges=True)[0])
