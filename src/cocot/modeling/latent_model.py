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
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cocot.data.layout import ThoughtSettings
from cocot.errors import ModelError
from cocot.methods.tokens import LATENT, SPECIAL_TOKENS
from cocot.modeling.forward_call import ForwardCall
from cocot.modeling.layer_states import LayerStates, keep_first_layers, layer_states
from cocot.modeling.method_modules import projection_of
from cocot.modeling.own_head import logits_of
from cocot.modeling.recurrence import ThoughtHook, decoder_of
from cocot.modeling.self_test import Passes, find_passes
from cocot.modeling.shared_reading import SharedReading
from cocot.modeling.special_tokens import add_tokens, suppress, token_id
from cocot.modeling.thought_inputs import thought_inputs
from cocot.modeling.thought_settings import (
    has_thought_settings,
    latent_id,
    mixes_words,
    set_thought_settings,
    thought_settings,
)

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
        shared_reading: Sequence[int] | None = None,
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
            shared_reading: As `collate` gives it: columns of a text that all questions of a row share, and questions a
                row, whose own tokens lie behind it, interleaved. In training, with labels, alone.
            thought_hook: What becomes of a thought before it is fed back; see `thinking.ThoughtHook`.
            cache: The same as `past_key_values`, as newer transformers call it.
            **kwargs: `num_items_in_batch` divides the summed loss; the rest goes to the decoder.

        Returns:
            What the class's own `forward` returns; while training with `labels`, a `CausalLMOutputWithPast`.

        Raises:
            ModelError: a thought has no position before it, the cache cannot be used, gradient checkpointing is on
                where `shared_passes.py` cannot do it, or hidden states, attentions or router logits are asked for.
        """
        call = ForwardCall(
            cast(Any, self),
            super(Thoughts, type(self)).forward,  # type: ignore[misc]
            input_ids,
            attention_mask,
            past_key_values if cache is None else cache,
            inputs_embeds,
            labels,
            bool(use_cache),
            kwargs,
            None if shared_reading is None else SharedReading(*shared_reading),
        )
        columns = call.find_columns() if latent_columns is None else latent_columns
        call.set_positions(position_ids, is_planned=latent_columns is not None)
        if not columns and not call.gathers and shared_reading is None:
            return call.run_bare(use_cache, logits_to_keep)
        call.check(columns, is_planned=latent_columns is not None)
        if columns:
            thought_hook = thought_inputs(self, call.bare, projection_of(self), mixes_words(self), thought_hook)
        return call.run(columns, thought_hook, loss_positions, logits_to_keep)

    def layer_states(self) -> AbstractContextManager[LayerStates]:
        """Keep the hidden states of every layer of the calls meanwhile; see `modeling/layer_states.py`."""
        return layer_states(self)

    def thought_logits(self, thoughts: Sequence[Tensor]) -> Tensor:
        """What thoughts say when they are read through the model's own head.

        Args:
            thoughts: As a `thought_hook` is given them, each (rows, examples of a row, width), all of one shape.

        Returns:
            (examples, thoughts, vocabulary).
        """
        return self.head_logits(torch.stack([thought.flatten(0, 1) for thought in thoughts], dim=1))

    def head_logits(self, hidden: Tensor) -> Tensor:
        """What the model's own head makes of hidden states behind the final norm, (batch, columns, width).

        Returns:
            (batch, columns, vocabulary).
        """
        forward = super(Thoughts, type(self)).forward  # type: ignore[misc]
        return logits_of(self, forward, hidden)

    def copy_decoder(self, num_layers: int | None = None) -> nn.Module:
        """A copy, with weights of its own, of what turns embeddings into hidden states.

        Args:
            num_layers: How many of its layers, from the first; None for all.

        Raises:
            ModelError: the class keeps no such part, or its layers cannot be taken apart.
        """
        decoder: Any = decoder_of(self)
        if decoder is self:
            raise ModelError(
                f"{type(self).__name__} has no decoder apart from its head, of which a copy could be made."
            )
        copied: nn.Module = deepcopy(decoder)
        if num_layers is not None:
            keep_first_layers(copied, num_layers)
        return copied


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
    saved = has_thought_settings(model)
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
        set_thought_settings(model, ThoughtSettings(token_id(tokenizer, LATENT)))
    elif thought_settings(model).latent_id != token_id(tokenizer, LATENT):
        raise ModelError(
            f"the model thinks at token {latent_id(model)}, but {LATENT} is token {token_id(tokenizer, LATENT)} of "
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
