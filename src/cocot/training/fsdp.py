"""Models whose weights are shared out over processes (FSDP2 by accelerate): what is refused, and how they begin.

Where a docstring says that all must call, a process that does not makes the others wait for ever.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env  # type: ignore[import-untyped]
from torch import nn

from cocot.errors import ConfigError
from cocot.training.config import RunConfig
from cocot.training.schedule import plan


def uses_fsdp() -> bool:
    """Whether `accelerate launch` asks for FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_fsdp(plugin: Any, config: RunConfig) -> None:
    """Refuse what would be wrong, or lost, in silence: before any work.

    Args:
        plugin: Accelerate's `FullyShardedDataParallelPlugin`, as the launcher's environment makes it.
        config: The recipe.

    Raises:
        ConfigError: with what to ask for.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError("this FSDP is version 1; ask accelerate for the second: --fsdp_version 2.")
    if plugin.activation_checkpointing:
        raise ConfigError(
            "FSDP's own activation checkpointing reads the cache of thoughts twice; turn it off, and set "
            "train.gradient_checkpointing true instead."
        )
    if config.model.lora is not None and config.model.lora.quantize:
        raise ConfigError(
            "model.lora.quantize does not go with FSDP; leave it out, or leave --use_fsdp out and train under DDP."
        )
    methods = [planned.method for planned in plan(config)]
    if more := [method.name for method in methods if method.terms]:
        raise ConfigError(
            f"a loss beside the cross-entropy ({more[0]}) does not go with FSDP yet; leave --use_fsdp out for DDP."
        )


def shares_weights() -> bool:
    """Whether FSDP sends the weights of the first process to all others, as `accelerate launch` has it."""
    return uses_fsdp() and dist.is_initialized() and bool(parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"))


def sent_without_weights(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them, but elsewhere its parameters hold no values. All must call.

    Accelerate sends the values once the model is shared out. Until then a parameter elsewhere is memory that nobody has
    written to, which the operating system does not provide yet; accelerate tells parameters apart by their addresses.

    Args:
        make: Gives what can be pickled: a model with its tokenizer, say.
    """
    if dist.get_rank() == 0:
        made, sent = make(), BytesIO()
        _WithoutWeights(sent).dump(made)
        dist.broadcast_object_list([sent.getvalue()])
        return made
    received = [b""]
    dist.broadcast_object_list(received)
    return pickle.loads(received[0])


class _WithoutWeights(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A parameter as its shape, and everything else as it is."""
        if isinstance(value, nn.Parameter):
            return _empty, (tuple(value.shape), value.dtype, value.requires_grad)
        return NotImplemented


def _empty(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad)
