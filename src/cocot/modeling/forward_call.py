"""One call of a thinking model's `forward`: what is refused, how its passes run, and its loss.

In: the arguments of `forward`. Out: what the class's own `forward` returns.
Read next: `modeling/recurrence.py`, `modeling/shared_passes.py`, `modeling/own_head.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from cocot.data.collator import label_positions
from cocot.errors import ModelError
from cocot.modeling.own_head import run_head
from cocot.modeling.recurrence import CACHE, ThoughtHook, decoder_of, latent_columns, takes_positions, think
from cocot.modeling.shared_passes import MODEL_TYPES, TrainingPasses, can_share
from cocot.modeling.shared_reading import SharedReading, positions_in
from cocot.modeling.thought_settings import iterations, latent_id


@dataclass
class ForwardCall:
    """One call of `forward`: what it was given, and the two ways to answer it.

    Attributes:
        model: The model.
        bare: The `forward` of its own class.
        more: Arguments that `forward` does not name; the decoder takes them.
        reading: How rows hold several questions about one text; None for one question a row.
    """

    model: Any
    bare: Callable[..., Any]
    input_ids: Tensor | None
    attention_mask: Any
    cache: Any
    inputs_embeds: Tensor | None
    labels: Tensor | None
    use_cache: bool
    more: dict[str, Any]
    reading: SharedReading | None = None

    def __post_init__(self) -> None:
        self.is_latent = None if self.input_ids is None else self.input_ids == latent_id(self.model)
        self.gathers = self.model.training and self.labels is not None and self.input_ids is not None
        self.positions: dict[str, Any] = {}
        if self.reading is not None and self.attention_mask is None and self.input_ids is not None:
            self.attention_mask = torch.ones_like(self.input_ids)

    def find_columns(self) -> list[int]:
        """The columns that hold a thought in any row; a device is waited for."""
        return [] if self.is_latent is None else latent_columns(self.is_latent)

    def set_positions(self, position_ids: Tensor | None, is_planned: bool) -> None:
        """Let the rows of a padded batch count their own tokens, where the decoder takes positions at all."""
        if position_ids is None and self.input_ids is not None and _may_have_padding(self.attention_mask, is_planned):
            position_ids = _positions(self.attention_mask, self.input_ids.shape[1])
            if self.reading is not None:
                position_ids = positions_in(self.attention_mask, self.reading)
        if takes_positions(decoder_of(self.model)):
            self.positions = {"position_ids": position_ids}

    def run_bare(self, use_cache: bool | None, logits_to_keep: int | Tensor) -> Any:
        """The class's own `forward`: there are no thoughts, and no loss of training."""
        kept = logits_to_keep if _is_given(logits_to_keep) else None
        asked = {**self.positions, CACHE: self.cache, "use_cache": use_cache, "logits_to_keep": kept}
        asked |= {"inputs_embeds": self.inputs_embeds, "labels": self.labels}
        asked = {name: value for name, value in asked.items() if value is not None}
        call = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **asked, **self.more}
        return self.bare(self.model, **call)

    def check(self, columns: Sequence[int], is_planned: bool) -> None:
        """Refuse what would give wrong numbers, or none, in silence."""
        if self.inputs_embeds is not None:
            raise ModelError("the model got input_ids and inputs_embeds, and reads one of them; leave one out.")
        _check_outputs(self.model.config, self.more)
        self._check_reading(is_planned)
        if columns and not is_planned:
            _check_orphans(cast(Tensor, self.is_latent), self.attention_mask)

    def _check_reading(self, is_planned: bool) -> None:
        if self.reading is None:
            return
        is_2d = isinstance(self.attention_mask, Tensor) and self.attention_mask.dim() == 2
        if not (is_2d and is_planned):
            raise ModelError(
                f"shared_reading {tuple(self.reading)} needs an attention_mask of two dimensions and latent_columns; "
                "pass on the whole batch, as collate gives it."
            )

    def run(
        self,
        columns: Sequence[int],
        thought_hook: ThoughtHook | None,
        loss_positions: Tensor | None,
        logits_to_keep: int | Tensor,
    ) -> Any:
        """The recurrence, then the class's own head."""
        asked_dict = self.more.pop("return_dict", None)
        as_tuple = not (self.model.config.return_dict if asked_dict is None else asked_dict)
        num_items = {name: self.more.pop(name) for name in ("num_items_in_batch",) if name in self.more}
        output = self._think(columns, thought_hook)
        if not self.use_cache and self.cache is None:
            setattr(output, CACHE, None)
        if self.gathers:
            kept = {CACHE: getattr(output, CACHE)}
            start, distance = (0, 1) if self.reading is None else self.reading
            labels = cast(Tensor, self.labels)[:, start:]
            loss = _gathered_loss(self.model, self.bare, output, labels, loss_positions, distance, num_items)
            result = CausalLMOutputWithPast(loss=loss, **kept)
        else:
            output.last_hidden_state = output.last_hidden_state[:, _kept(logits_to_keep)]
            asked = {} if self.labels is None else {"labels": self.labels, **num_items}
            result = run_head(self.model, self.bare, output, **asked)
        return result.to_tuple() if as_tuple else result

    def _think(self, columns: Sequence[int], thought_hook: ThoughtHook | None) -> Any:
        """What the passes return: hidden states of all columns, or of those behind a shared text."""
        passes = _Passes(self.model, self.cache, self.use_cache, self.gathers, bool(columns), self.reading)
        masks = passes.masks(self.attention_mask, cast(Tensor, self.input_ids))
        embeddings, is_latent = self.model.get_input_embeddings()(self.input_ids), cast(Tensor, self.is_latent)

        def run(begin: int, end: int | None, **more: Any) -> Any:
            more |= {name: value if value is None else value[:, begin:end] for name, value in self.positions.items()}
            more |= {**passes.settings, "iterations": iterations(self.model), **self.more}
            return think(decoder_of(self.model), embeddings[:, begin:end], is_latent[:, begin:end], **more)

        if self.reading is None:
            return run(0, None, columns=columns, attention_mask=masks, thought_hook=thought_hook)
        start, distance = self.reading
        run(0, start, columns=[], attention_mask=_part(masks, slice(0, start), slice(0, start)))
        return run(
            start,
            None,
            columns=[column - start for column in columns],
            num_interleaved=distance,
            attention_mask=_part(masks, slice(start, None), slice(None)),
            thought_hook=thought_hook,
        )


class _Passes:
    """How the passes of one call run: which of the ways that the self-test found, with which cache.

    Attributes:
        settings: For `think`.
    """

    def __init__(
        self,
        model: Any,
        given: Any,
        use_cache: bool,
        gathers: bool,
        has_thoughts: bool,
        reading: SharedReading | None,
    ) -> None:
        runs_backward = model.training and torch.is_grad_enabled()
        way = model.thought_passes.training if runs_backward else model.thought_passes.inference
        may_share = gathers and not use_cache and given is None and can_share(model)  # attention may be another since
        self._shared = TrainingPasses(model, reading) if way == "shared" and may_share else None
        if reading is not None and self._shared is None:
            raise ModelError(
                f"shared_reading {tuple(reading)} works while training with labels and gradients, without a cache or "
                f"use_cache, for {', '.join(MODEL_TYPES)} with sdpa or eager attention; give every question its row."
            )
        recomputes = way == "recomputed"
        if has_thoughts:
            _check_cache(model, given, self._shared is not None, recomputes)
        if self._shared:
            self.settings: dict[str, Any] = {"cache": self._shared.cache, "pass_context": self._shared.pass_context}
        else:
            # A decoder that reads everything again makes the cache that it needs by itself.
            cache = DynamicCache(config=model.config) if given is None and not recomputes else given
            keeps_cache = use_cache or cache is not None
            self.settings = {"cache": cache, "recomputes": recomputes, "use_cache": keeps_cache}

    def masks(self, attention_mask: Any, input_ids: Tensor) -> Any:
        """The masks as these passes take them."""
        if self._shared is None:
            return attention_mask
        return self._shared.masks(attention_mask, input_ids.shape[1], input_ids.device)


def _part(masks: Any, queries: slice, keys: slice) -> Any:
    """Some queries and keys of a 4-D mask, or of one mask a layer type."""
    if isinstance(masks, dict):
        return {kind: _part(mask, queries, keys) for kind, mask in masks.items()}
    return masks[:, :, queries, keys]


def _check_cache(model: Any, cache: Any, shares: bool, recomputes: bool) -> None:
    """Refuse a cache, or a missing one, that would give wrong numbers in silence."""
    is_dropped = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if model.training and is_dropped and not shares and not recomputes:
        raise ModelError(
            "Hugging Face's gradient checkpointing drops the cache that thoughts are read from, and cocot's own works "
            f"while training with labels, without a cache or use_cache, for {', '.join(MODEL_TYPES)} with sdpa "
            "or eager attention; call model.gradient_checkpointing_disable()."
        )
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ModelError(f"thoughts need a DynamicCache, not {type(cache).__name__}; leave cache_implementation unset.")
    if recomputes and cache is not None and any(map(_is_filled, cache.layers)):
        raise ModelError(
            f"the cache of {type(model).__name__} cannot be continued with thoughts; pass the whole prompt in one call."
        )


def _is_filled(layer: Any) -> bool:
    """Whether a layer of a cache holds keys, or states of a linear layer."""
    keys, states = getattr(layer, "keys", None), getattr(layer, "has_previous_state", {})
    return (keys is not None and keys.numel() > 0) or any(states.values() if isinstance(states, dict) else [states])


def _check_outputs(config: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what would come back from the last pass alone, or not at all."""
    for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
        asked = kwargs.pop(name, None)
        if asked if asked is not None else getattr(config, name, False):
            raise ModelError(f"{name} does not go with thoughts, nor with labels in training; leave it out.")


def _check_orphans(is_latent: Tensor, attention_mask: Any) -> None:
    """Refuse a thought without a hidden state before it."""
    orphans = is_latent[:, :1]
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        kept = attention_mask[:, -is_latent.shape[1] :].bool()
        orphans = torch.cat([orphans, is_latent[:, 1:] & kept[:, 1:] & ~kept[:, :-1]], dim=1)
    if bool(orphans.any()):
        raise ModelError(
            "a thought stands first in its row, or first in this call: it is the hidden state of the token before it. "
            "Put a token before the first <|latent|>; with a cache, pass thoughts and prompt in one call."
        )


def _may_have_padding(attention_mask: Any, is_checked: bool) -> bool:
    """Whether a 2-D mask hides anything: then Hugging Face's own positions would count the padding on the left.

    In a batch that came with its plan (`is_checked`) the device is not waited for.
    """
    is_2d = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
    return is_2d and (is_checked or not bool(attention_mask.all()))


def _positions(attention_mask: Tensor, num_columns: int) -> Tensor:
    """Positions that count each row's own tokens, (batch, columns): left padding must not shift them."""
    counted = attention_mask.long().cumsum(dim=1) - 1
    return counted.clamp(min=0)[:, -num_columns:]


def _is_given(logits_to_keep: int | Tensor) -> bool:
    return isinstance(logits_to_keep, Tensor) or logits_to_keep != 0


def _kept(logits_to_keep: int | Tensor) -> Any:
    """The columns of the hidden states that get logits."""
    is_count = isinstance(logits_to_keep, int)
    return slice(-logits_to_keep if logits_to_keep else None, None) if is_count else logits_to_keep


def _gathered_loss(
    model: Any,
    bare: Callable[..., Any],
    output: Any,
    labels: Tensor,
    loss_positions: Tensor | None,
    distance: int,
    num_items: dict[str, Any],
) -> Tensor:
    """Hugging Face's loss with the head run on labelled positions only: frees batch x columns x vocabulary logits."""
    positions = label_positions(labels, distance) if loss_positions is None else loss_positions
    positions = positions.to(output.last_hidden_state.device)
    targets = labels.to(positions.device).flatten()[positions + distance]
    output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[positions][None]
    logits = run_head(model, bare, output).logits[0]
    return cast(
        Tensor,
        model.loss_function(
            logits=logits,
            labels=None,
            shift_labels=targets.to(logits.device),
            vocab_size=logits.shape[-1],
            **num_items,
        ),
    )
