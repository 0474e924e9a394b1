"""LoRA by peft: a large model learns to think through small matrices, and only the new tokens' embeddings move.

In: a model that was given thoughts. Out: peft's model around it, which trains; or, merged, a plain model again.

    model = with_adapter(model, tokenizer, LoraSettings(rank=8), seed=0)
    model = merged(model)

Checkpoints of such a run hold the adapter alone; the run's `model/` is merged, a plain Hugging Face folder. With QLoRA
the model's own matrices are held in 4 bits by bitsandbytes; the result is what was trained, taken out of its 4 bits.
Read next: `training/run.py`.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.pytorch_utils import Conv1D

from cocot.errors import ConfigError, ModelError
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS
from cocot.modeling.config import LoraSettings
from cocot.modeling.method_modules import NAME as MODULES


def with_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: LoraSettings,
    seed: int,
    saved: Path | None = None,
) -> Any:
    """Put an adapter around a model, a new one or one that was saved.

    Args:
        model: A model that was given thoughts, every token that training uses, and the method's modules.
        tokenizer: Its tokenizer.
        settings: The adapter's shape.
        seed: Seeds a new adapter.
        saved: A checkpoint with an adapter, whose files were checked; None for a new one.

    Returns:
        A `PeftModel`. What trains in it: the adapter's matrices, and the rows of the thought and pause tokens in the
        embeddings and the head, and the method's own modules.

    Raises:
        ConfigError: peft is not installed, cannot put an adapter on the modules that are named, or changes what the
            model computes before anything is trained.
        ModelError: the saved adapter is of another shape.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"model.lora takes the package peft: pip install 'cocot[lora]' ({error}).") from error
    if any(getattr(part, "source_cls", None) is Conv1D for part in model.modules()):
        raise ConfigError("model.lora.quantize does not go with GPT-2's transposed layers; leave it out.")
    with warnings.catch_warnings():  # peft still uses names that transformers will drop; nobody here can help it
        warnings.simplefilter("ignore", FutureWarning)
        if saved is not None:
            try:
                return _bare(peft.PeftModel.from_pretrained(model, str(saved), is_trainable=True))
            except (RuntimeError, ValueError) as error:
                raise ModelError(f"cannot read the adapter in {saved}: {str(error).splitlines()[0]}") from error
        set_seed(seed)
        before = _sample_logits(model)
        try:
            adapted = _bare(peft.get_peft_model(model, peft.LoraConfig(**_lora(model, tokenizer, settings))))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.lora does not fit this model: {str(error).splitlines()[0]}") from error
        if not torch.allclose(_sample_logits(adapted), before, rtol=1e-3, atol=1e-3):
            raise ConfigError(
                f"model.lora does not fit this model: a new adapter already changes what {type(model).__name__} "
                "computes (peft leaves out the bias of the head); train all weights, without model.lora."
            )
        return adapted


def in_four_bits(compute_dtype: torch.dtype) -> dict[str, Any]:
    """What `load` takes to hold a model's matrices in 4 bits (NF4).

    Args:
        compute_dtype: Of the products with them.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError("model.lora.quantize takes the package bitsandbytes: pip install 'cocot[qlora]'.")
    config: Any = BitsAndBytesConfig  # has no annotations
    quantization = config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    return {"quantization_config": quantization}


def _sample_logits(model: Any) -> torch.Tensor:
    """What the model computes for its first tokens: a new adapter must not change it."""
    ids = torch.arange(3, device=model.device)[None]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits.float()
    model.train(was_training)
    return logits


def _bare(model: Any) -> Any:
    """Save the adapter alone: peft would add whole embeddings, since their size is not that of the base on the disk."""
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _lora(model: Any, tokenizer: PreTrainedTokenizerBase, settings: LoraSettings) -> dict[str, Any]:
    """The settings as peft names them."""
    new_ids = [tokenizer.convert_tokens_to_ids(token) for token in (*SPECIAL_TOKENS, PAUSE)]
    return {
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": settings.modules,
        **_whole_modules(model),
        "fan_in_fan_out": any(isinstance(part, Conv1D) for part in model.modules()),  # GPT-2's are transposed
        "trainable_token_indices": {_name(model, table): new_ids for table in _tables(model)},
    }


def _whole_modules(model: Any) -> dict[str, Any]:
    """A method's own modules train whole, beside the matrices of the adapter, and are saved with it."""
    return {"modules_to_save": [MODULES], "exclude_modules": rf"{MODULES}\..*"} if hasattr(model, MODULES) else {}


def is_adapted(model: Any) -> bool:
    """Whether there is an adapter around a model."""
    return hasattr(model, "peft_config")


def adapter_weights(model: Any, saved: Path) -> dict[str, torch.Tensor]:
    """The weights of a saved adapter, by their names in the model; they need not be whole there.

    Args:
        model: A `PeftModel` of the adapter's shape.
        saved: A checkpoint with an adapter, whose files were checked.
    """
    import peft

    by_name = {name: name for name in model.state_dict()}
    names: Any = peft.get_peft_model_state_dict(model, by_name, save_embedding_layers=False)
    return {names[name]: weight for name, weight in load_file(saved / peft.utils.SAFETENSORS_WEIGHTS_NAME).items()}


def merged(model: Any) -> PreTrainedModel:
    """The model with its adapter added to its weights: as it was before `with_adapter`, of the same class."""
    plain: PreTrainedModel = model.merge_and_unload()
    return plain


def has_tied_head(model: Any) -> bool:
    """Whether the head is the embeddings' weights."""
    return len(_tables(model)) == 1


def _tables(model: Any) -> list[Any]:
    """The embeddings, and the head where it is not the same weights."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embeddings] if head.weight is embeddings.weight else [embeddings, head]


def _name(model: Any, module: Any) -> str:
    return next(str(name) for name, part in model.named_modules() if part is module)
