"""How the passes of one training step share work, so that a thought costs little more than the reading of the weights.

A step with n thoughts runs the decoder n + 1 times over one growing sequence. Done plainly, every pass copies all keys
and values, keeps its copy for the backward pass, and writes gradients as large as every weight and as the keys and
values of the first pass. Here these exist once, and such gradients are summed in one product at the end
(`deferred_gradients.py`). With gradient checkpointing, passes over many columns keep the input of every layer only.

In: a model, and the mask of a step. Out: the cache, the masks and the contexts in which `recurrence.think` runs.
The numbers are those of the plain way but for the order of sums; inference does not need any of this.
Read next: `modeling/recurrence.py`, `modeling/deferred_gradients.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from cocot.errors import ModelError
from cocot.modeling.deferred_gradients import DeferredMatrix, DeferredWeights, in_autocast_dtype
from cocot.modeling.recurrence import decoder_of
from cocot.modeling.shared_reading import SharedReading, by_question, interleaved, positions_in

MODEL_TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Whose attention is known to be `softmax(q k) v` and nothing else."""

KeysValues = tuple[Tensor, Tensor]
"""Of one layer and pass, each (batch, heads, columns, width)."""

_ATTENTION = "cocot"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def can_share(model: Any) -> bool:
    """Whether `TrainingPasses` gives this model's numbers; otherwise its passes run the plain way."""
    config = decoder_of(model).config
    return config.model_type in MODEL_TYPES and config._attn_implementation in ("sdpa", "eager")


def enable_checkpointing(model: Any) -> None:
    """Keep only the input of every layer for the backward pass, and compute the rest again: less memory, more time.

    Raises:
        ModelError: the model's passes do not share work.
    """
    if not can_share(model):
        raise ModelError(
            f"gradient checkpointing with thoughts works for {', '.join(MODEL_TYPES)} with sdpa or eager attention, "
            f"not for {model.config.model_type} with {model.config._attn_implementation}; "
            "set train.gradient_checkpointing false and lower train.device_batch_size instead."
        )
    if hasattr(model, "activation_checkpointing_enable"):  # the other name is deprecated where this one exists
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


class TrainingPasses:
    """The contexts of the passes of one training step.

    Attributes:
        cache: Keys and values, as the decoder takes them.
    """

    def __init__(self, model: Any, reading: SharedReading | None = None) -> None:
        """Prepare one step.

        Args:
            model: The model, which `can_share`.
            reading: How rows hold several questions about one text, which is then the first pass; None for one a row.
        """
        self._reading = reading
        self._num_interleaved = 1 if reading is None else reading.num_questions
        self._numbers = count()
        self.cache = PassCache(self._num_interleaved)
        self._config = decoder_of(model).config
        self._weights = DeferredWeights()
        self._checkpointed = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]

    def masks(self, attention_mask: Any, num_columns: int, device: torch.device) -> Any:
        """The step's 4-D masks, built once for all passes from a mask of two dimensions; others as they are.

        Args:
            attention_mask: 0 at padding, (batch, columns); None where there is none; or 4-D masks.
            num_columns: Columns of the whole step.
            device: Where the step runs.

        Returns:
            (batch, 1, columns, columns), True where a key is seen, as the model's attention takes it; one for each kind
            of layer where the model has several.
        """
        if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
            return attention_mask
        window = getattr(self._config, "sliding_window", None)
        kinds = getattr(self._config, "layer_types", None)
        column = torch.arange(num_columns, device=device)
        # Among the questions of a row, too: a query multiplies none but its own question's keys.
        seen = (column[:, None] >= column)[None]
        padding = True if attention_mask is None else attention_mask.bool()[:, None, None, :]
        position = column[None]
        if self._reading is not None:
            assert attention_mask is not None, "a shared text takes a mask"
            position = positions_in(attention_mask, self._reading)

        def mask_of(kind: str) -> Tensor:
            near = (position[:, :, None] - position[:, None] < window) if kind == _SLIDING and window else True
            mask = (seen & near)[:, None] & padding
            if self._config._attn_implementation == "sdpa":
                return mask
            return torch.zeros(mask.shape, device=device).masked_fill(~mask, torch.finfo(torch.float32).min)

        return {kind: mask_of(kind) for kind in set(kinds)} if kinds else mask_of(_SLIDING)

    @contextmanager
    def pass_context(self, number: int, num_columns: int) -> Iterator[None]:
        """What the next pass, over `num_columns` columns, runs in; its number in a call of `think` is not needed."""
        self.cache.number = number = next(self._numbers)
        is_thought = num_columns <= self._num_interleaved and not (self._reading and number == 0)
        with ExitStack() as stack:
            stack.enter_context(_reading(self._config, number))
            if is_thought:
                stack.enter_context(self._weights)
            for part in self._checkpointed:
                stack.enter_context(_set_to(part, "gradient_checkpointing", False))  # Hugging Face's drops the cache
                if not is_thought and isinstance(part, GradientCheckpointingLayer):
                    stack.enter_context(_set_to(part, "forward", self._recomputed(part, number)))
            yield

    def _recomputed(self, layer: nn.Module, number: int) -> Callable[..., Any]:
        """A layer's `forward` that keeps its input only, and runs again, as in this pass, when gradients are needed."""
        config, forward = self._config, layer.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            with _reading(config, number), _set_to(layer, "gradient_checkpointing", False):
                return forward(*args, **kwargs)

        def run_twice(*args: Any, **kwargs: Any) -> Any:
            # What the second run needs waits in the graph. With this layer's own keys in it, it would wait for itself.
            cache = next(value for value in (*args, *kwargs.values()) if isinstance(value, PassCache))
            earlier = cache.before()
            args = tuple(earlier if value is cache else value for value in args)
            kwargs = {name: earlier if value is cache else value for name, value in kwargs.items()}
            output = checkpoint(run, *args, use_reentrant=False, **kwargs)
            cache.take(earlier)
            return output

        return run_twice


class Pieces(NamedTuple):
    """The keys, or the values, that a pass sees: those of the first pass, and all behind them."""

    first: DeferredMatrix
    later: Tensor  # (batch, heads, n, width)
    num_interleaved: int = 1  # sequences that `later`, and the queries, hold column by column


class PassCache(Cache):
    """The keys and values of one training step, pass by pass.

    Attributes:
        number: The pass that reads.
    """

    def __init__(self, num_interleaved: int = 1) -> None:
        super().__init__(layers=[])
        self.number = 0
        self._num_interleaved = num_interleaved  # of all passes but the first
        self._passes: defaultdict[int, dict[int, KeysValues]] = defaultdict(dict)
        self._anchored: dict[int, tuple[DeferredMatrix, DeferredMatrix]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Add a layer's keys and values of the current pass; returns all that the pass sees."""
        made = (key_states, value_states) if self.number > 0 else (key_states.contiguous(), value_states.contiguous())
        self._passes[self.number][layer_idx] = made
        if self.number == 0:
            return made
        if layer_idx not in self._anchored:
            self._anchored[layer_idx] = _anchored(*self._passes[0][layer_idx])
        later = (self._passes[number].get(layer_idx) for number in range(1, self.number))
        keys, values = zip(*(part for part in later if part is not None), made, strict=True)
        first_keys, first_values = self._anchored[layer_idx]
        return tuple(
            Pieces(first, torch.cat(parts, dim=-2), self._num_interleaved)
            for first, parts in ((first_keys, keys), (first_values, values))
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the passes before the current one."""
        parts = [self._passes[number].get(layer_idx) for number in range(self.number)]
        return sum(part[0].shape[-2] for part in parts if part is not None)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that the current pass sees, and the first of them: nothing is dropped, layers that slide have masks."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def before(self) -> PassCache:
        """The passes before the current one, which is still to come in what is returned."""
        earlier = PassCache(self._num_interleaved)
        earlier.number = self.number
        earlier._passes.update({number: self._passes[number] for number in range(self.number)})
        earlier._anchored.update(self._anchored)
        return earlier

    def branch(self) -> PassCache:
        """The first pass, behind which another one is to come that only what is returned keeps."""
        branch = PassCache(self._num_interleaved)
        branch.number = 1
        branch._passes[0] = self._passes[0]
        branch._anchored = self._anchored
        return branch

    def take(self, earlier: PassCache) -> None:
        """Move here what the current pass has added to what `before` returned."""
        self._passes[self.number].update(earlier._passes.pop(self.number))
        self._anchored.update(earlier._anchored)


def _anchored(keys: Tensor, values: Tensor) -> tuple[DeferredMatrix, DeferredMatrix]:
    """The first pass's keys (transposed) and values."""
    return DeferredMatrix(in_autocast_dtype(keys).transpose(-1, -2)), DeferredMatrix(in_autocast_dtype(values))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of queries, (batch, heads, n, width), over keys and values; the interface is Hugging Face's.

    The first pass's is Hugging Face's as well. Over `Pieces`, query heads that share keys are further rows of one
    product: nothing is repeated.
    """
    if isinstance(key, Tensor):
        # Laid out again, queries let go of the tensor that they, keys and values are parts of.
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
        settings = {"scaling": scaling, "dropout": dropout, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    batch, width = query.shape[0], query.shape[-1]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch, key.later.shape[1], -1, width)
    num_interleaved = key.num_interleaved
    to_later = _own_product(rows, key.later, num_interleaved, is_transposed=True)
    scores = torch.cat([key.first.times(rows), to_later], dim=-1).view(*query.shape[:3], -1)
    scores = _masked(scores, _own_mask(attention_mask, key.later.shape[-2], num_interleaved))
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    weights = functional.dropout(weights, dropout, training=module.training).view(*rows.shape[:3], -1)
    num_later = value.later.shape[-2] // num_interleaved
    # One split, for backward joins its parts once; a slice would write a gradient of all weights.
    to_first, to_later = weights.split_with_sizes([weights.shape[-1] - num_later, num_later], dim=-1)
    seen = value.first.times(to_first) + _own_product(to_later, value.later, num_interleaved)
    return seen.view(query.shape).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, attend)


def _own_product(rows: Tensor, later: Tensor, num_interleaved: int, is_transposed: bool = False) -> Tensor:
    """`rows @ later`, for every sequence of a row its own: (..., columns x sequences, k) -> the same columns."""
    if num_interleaved == 1:
        return rows @ (later.transpose(-1, -2) if is_transposed else later)
    own = by_question(later, num_interleaved)
    return interleaved(by_question(rows, num_interleaved) @ (own.transpose(-1, -2) if is_transposed else own))


def _own_mask(mask: Tensor | None, num_later: int, num_interleaved: int) -> Tensor | None:
    """Of a mask, the first pass's keys and of the `num_later` behind them each query's own sequence's."""
    if mask is None or num_interleaved == 1:
        return mask
    first, later = mask.split_with_sizes([mask.shape[-1] - num_later, num_later], dim=-1)
    later = torch.unflatten(torch.unflatten(later, -1, (-1, num_interleaved)), 2, (-1, num_interleaved))
    own = later.diagonal(dim1=3, dim2=5).transpose(-1, -2).flatten(2, 3)
    return torch.cat([first, own], dim=-1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores, (batch, heads, queries, keys), that a query may not see set to the least number there is."""
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        mask = mask.tril(scores.shape[-1] - scores.shape[-2])
    if mask.dtype == torch.bool:  # added, not filled in: backward has nothing to do for it
        mask = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(scores.dtype).min
        )
    return scores + mask


def _reading(config: Any, number: int) -> AbstractContextManager[None]:
    """Attention of pass `number`: all but the first see `Pieces`, for which a model's eager attention has no place."""
    own = config._attn_implementation
    return _set_to(config, "_attn_implementation", own if number == 0 and own == "eager" else _ATTENTION)


@contextmanager
def _set_to(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a while; one that only the class had is the class's again afterwards."""
    is_own = name in vars(owner) or not isinstance(owner, nn.Module)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
