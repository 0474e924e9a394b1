"""Give thoughts to a Hugging Face causal language model, in place.

In: a causal language model and its tokenizer. Out: the same object, of a subclass that overrides only `forward`:
parameters, keys, config, `generate`, `Trainer` and PEFT go on working.

    model = cocot.give_thoughts(AutoModelForCausalLM.from_pretrained("gpt2"), tokenizer)
    out = model(input_ids=ids, labels=labels)       # placeholders <|latent|> anywhere in ids

A saved model is a plain Hugging Face folder; the thought settings lie in its `config.json` under `thoughts`.
Read next: `modeling/recurrence.py` (what happens at a placeholder), `modeling/loading.py`, `modeling/generation.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from cocot.data.collator import label_positions
from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, ModelError
from cocot.methods.tokens import LATENT, SPECIAL_TOKENS
from cocot.modeling.own_head import run_head
from cocot.modeling.recurrence import CACHE, ThoughtHook, decoder_of, takes_positions, think
from cocot.modeling.recurrence import latent_columns as find_columns
from cocot.modeling.self_test import Passes, find_passes
from cocot.modeling.shared_passes import MODEL_TYPES, TrainingPasses, can_share
from cocot.modeling.special_tokens import add_tokens, suppress, token_id
from cocot.settings.typed import build

_HOOKED = "_old_forward"
"""Where accelerate's hook keeps the `forward` that it calls."""


class Thoughts:
    """Mixin over a Hugging Face causal language model: `forward` that understands placeholders.

    Without placeholders and without a training loss it *is* the original `forward`, bit for bit; only the default
    positions of padded batches are always those of the rows alone, which Hugging Face leaves to the caller.
    """

    config: Any
    thought_passes: Passes

    @classmethod
    def is_custom_code(cls) -> bool:
        """Hugging Face renames the weights of its own classes when it saves; ours hold the weights of such a class."""
        original: Any = cls.__mro__[2]
        return bool(original.is_custom_code())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        latent_columns: Sequence[int] | None = None,
        loss_positions: Tensor | None = None,
        thought_hook: ThoughtHook | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Hugging Face's `forward`, with a thought wherever `input_ids` holds the placeholder.

        While training with `labels`, the head runs on labelled positions only: `loss` equals Hugging Face's, and
        `logits` is None. In `eval()` mode logits come back as usual.

        Args:
            input_ids: Token ids, (batch, columns); `<|latent|>` marks a thought.
            attention_mask: 0 at padding, (batch, past + columns); also 4-D or one mask a layer type.
            position_ids: (batch, columns); by default each row counts its own tokens, padding left out.
            past_key_values: A `DynamicCache`, or None.
            inputs_embeds: Embeddings in place of `input_ids`; these cannot hold placeholders.
            labels: Token ids, -100 where there is no loss, (batch, columns); shifted inside.
            use_cache: Whether to return the cache.
            logits_to_keep: As in Hugging Face: how many last positions (0: all), or which, get logits.
            latent_columns: As `collate` gives it: the columns that hold a thought in any row. With it and
                `loss_positions`, nothing in a step waits for the device.
            loss_positions: As `collate` gives it: `label_positions(labels)`. (A second name with "label" in it would
                make a `Trainer` wait for it before it computes `eval_loss`.)
            thought_hook: What becomes of a thought before it is fed back; see `thinking.ThoughtHook`.
            cache: The same as `past_key_values`, as newer transformers call it.
            **kwargs: `num_items_in_batch` divides the summed loss; the rest goes to the decoder.

        Returns:
            What the class's own `forward` returns; while training with `labels`, a `CausalLMOutputWithPast`.

        Raises:
            ModelError: a thought has no position before it, the cache cannot be used, gradient checkpointing is on
                where `shared_passes.py` cannot do it, or hidden states, attentions or router logits are asked for.
        """
        model = cast(Any, self)
        bare: Callable[..., Any] = super(Thoughts, type(self)).forward  # type: ignore[misc]
        given = past_key_values if cache is None else cache
        is_latent = None if input_ids is None else input_ids == self.config.thoughts["latent_id"]
        is_checked = latent_columns is not None
        if latent_columns is None:
            latent_columns = [] if is_latent is None else find_columns(is_latent)
        gathers = model.training and labels is not None and input_ids is not None
        if position_ids is None and input_ids is not None and _may_have_padding(attention_mask, is_checked):
            position_ids = _positions(attention_mask, input_ids.shape[1])
        positions: dict[str, Any] = {"position_ids": position_ids} if takes_positions(decoder_of(model)) else {}
        if not latent_columns and not gathers:
            asked = {**positions, "inputs_embeds": inputs_embeds, "labels": labels, "use_cache": use_cache}
            asked |= {CACHE: given, "logits_to_keep": logits_to_keep if _is_given(logits_to_keep) else None}
            asked = {name: value for name, value in asked.items() if value is not None}
            return bare(self, input_ids=input_ids, attention_mask=attention_mask, **asked, **kwargs)
        if inputs_embeds is not None:
            raise ModelError("the model got input_ids and inputs_embeds, and reads one of them; leave one out.")
        assert input_ids is not None
        assert is_latent is not None
        _check_outputs(self.config, kwargs)
        if latent_columns and not is_checked:
            _check_orphans(is_latent, attention_mask)
        asked_dict = kwargs.pop("return_dict", None)
        as_tuple = not (self.config.return_dict if asked_dict is None else asked_dict)
        num_items = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        passes = _Passes(model, given, bool(use_cache), gathers, has_thoughts=bool(latent_columns))
        output = think(
            decoder_of(model),
            model.get_input_embeddings()(input_ids),
            is_latent,
            columns=latent_columns,
            attention_mask=passes.masks(attention_mask, input_ids),
            thought_hook=thought_hook,
            **positions,
            **passes.settings,
            **kwargs,
        )
        if not use_cache and given is None:
            setattr(output, CACHE, None)
        if gathers:
            kept = {CACHE: getattr(output, CACHE)}
            loss = _gathered_loss(model, bare, output, cast(Tensor, labels), loss_positions, num_items)
            result = CausalLMOutputWithPast(loss=loss, **kept)
        else:
            output.last_hidden_state = output.last_hidden_state[:, _kept(logits_to_keep)]
            result = run_head(model, bare, output, **({} if labels is None else {"labels": labels, **num_items}))
        return result.to_tuple() if as_tuple else result


class _Passes:
    """How the passes of one call run: which of the ways that the self-test found, with which cache.

    Attributes:
        settings: For `think`.
    """

    def __init__(self, model: Any, given: Any, use_cache: bool, gathers: bool, has_thoughts: bool) -> None:
        runs_backward = model.training and torch.is_grad_enabled()
        way = model.thought_passes.training if runs_backward else model.thought_passes.inference
        may_share = gathers and not use_cache and given is None and can_share(model)  # attention may be another since
        self._shared = TrainingPasses(model) if way == "shared" and may_share else None
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


def give_thoughts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Teach `model` to read thoughts, in place.

    Adds `<|start-latent|>`, `<|end-latent|>` and `<|latent|>` to `tokenizer` and to the embeddings where they are
    missing, and swaps the model's class for a subclass that overrides only `forward`.

    Args:
        model: A Hugging Face causal language model; `modeling/self_test.py` finds out whether its class can think.
        tokenizer: The model's tokenizer; changed when tokens are missing.

    Returns:
        The same model object.

    Raises:
        ModelError: the self-test found that the class computes something else than the definition, its `forward` was
            replaced on the object, its thought settings cannot be used, or the tokenizer is not its own.
    """
    saved = getattr(model.config, "thoughts", None)
    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    if saved and missing:
        raise ModelError(
            f"the model was trained to think, but its tokenizer lacks {', '.join(missing)}; "
            "take the tokenizer that was saved with it."
        )
    if not isinstance(model, Thoughts):
        _own_forward(model)
        cast(Any, model).thought_passes = find_passes(model)
    add_tokens(model, tokenizer, SPECIAL_TOKENS)
    if not saved:
        model.config.thoughts = ThoughtSettings(token_id(tokenizer, LATENT)).to_json()
    elif thought_settings(model).latent_id != token_id(tokenizer, LATENT):
        raise ModelError(
            f"the model thinks at token {saved['latent_id']}, but {LATENT} is token {token_id(tokenizer, LATENT)} of "
            "its tokenizer; take the tokenizer that was saved with it."
        )
    suppress(model, [token_id(tokenizer, token) for token in SPECIAL_TOKENS])
    if not isinstance(model, Thoughts):
        model.__class__ = _thinking_class(type(model))
        if _HOOKED in vars(model):
            vars(model)[_HOOKED] = MethodType(type(model).forward, model)
    return model


def _own_forward(model: Any) -> None:
    """Refuse a model whose `forward` is not its class's: swapping the class would not reach it, in silence.

    The hook of accelerate (`device_map`) is known; it calls the forward that it replaced by the name `_old_forward`.
    """
    if "forward" in vars(model) and _HOOKED not in vars(model):
        raise ModelError(
            f"the forward of this {type(model).__name__} was replaced on the object, so thoughts would be read as "
            "words; give it thoughts before anything wraps its forward."
        )


def thought_settings(model: PreTrainedModel) -> ThoughtSettings:
    """The thought settings that a model carries in its config.

    Raises:
        ModelError: the model has none, since `give_thoughts` was never called on it, or they cannot be used.
    """
    saved = getattr(model.config, "thoughts", None)
    if not saved:
        raise ModelError("this model has no thought settings; call cocot.give_thoughts(model, tokenizer) first.")
    try:
        return build(ThoughtSettings, saved, "thoughts")
    except ConfigError as error:
        raise ModelError(f"the model's config.json is corrupted, or of a newer version of cocot: {error}") from error


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read, by whichever name its config has for it; None for no limit."""
    config: Any = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if limit is not None), None)


def _thinking_class(original: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of `original` that thinks; made once and registered in this module, so that it pickles.

    It keeps the original's `__name__`, because Hugging Face writes that into `architectures` of a saved config.
    """
    qualified = f"Thinking{original.__name__}"
    module = sys.modules[__name__]
    known = vars(module).get(qualified)
    if known is None or known.__mro__[2] is not original:
        body = {"__module__": __name__, "__qualname__": qualified, "__doc__": original.__doc__}
        known = type(original.__name__, (Thoughts, original), body)
        setattr(module, qualified, known)
    return cast(type[PreTrainedModel], known)


def __getattr__(name: str) -> Any:
    """Find a thinking class by name in a fresh process that unpickles one."""
    if name.startswith("Thinking"):
        import transformers

        original = getattr(transformers, name.removeprefix("Thinking"), None)
        if original is not None:
            return _thinking_class(original)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    num_items: dict[str, Any],
) -> Tensor:
    """Hugging Face's loss with the head run on labelled positions only: frees batch x columns x vocabulary logits."""
    positions = label_positions(labels) if loss_positions is None else loss_positions
    positions = positions.to(output.last_hidden_state.device)
    targets = labels.to(positions.device).flatten()[positions + 1]
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
