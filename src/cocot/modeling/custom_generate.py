"""`generate` of an exported model: the thoughts of a prompt first, then Hugging Face's own `generate` from their cache.

`cocot export` copies this file and those that it imports, as they are, into the folder's `custom_generate/`, where
`from_pretrained(FOLDER, trust_remote_code=True)` finds them. Only PyTorch, transformers and safetensors are
needed there.

In: what `generate` takes; `<|latent|>` in `input_ids` marks a thought. Out: what `generate` returns.
Read next: `serving/export.py`, which writes the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.utils.hub import cached_file

from .own_head import logits_of
from .recurrence import CACHE, ThoughtHook, decoder_of, latent_columns, takes_positions, think
from .thought_inputs import Change, thought_inputs

MODULES_FILE = "method_modules.safetensors"
"""In the folder of a model whose thoughts are projected (`methods/codi.py`) or end by themselves (`adaptive.py`)."""

_REFUSED = (
    "cache",
    "past_key_values",
    "inputs_embeds",
    "assistant_model",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "prefill_chunk_size",
    "use_mtp",
)


@torch.no_grad()
def generate(inputs: Tensor | None = None, generation_config: Any = None, *args: Any, model: Any, **kwargs: Any) -> Any:
    """Hugging Face's `generate`, with a thought wherever the prompt holds the placeholder.

    Args:
        inputs: Token ids of the prompts, (batch, columns), padded on the left; also as `input_ids`.
        generation_config: As in Hugging Face.
        *args: As in Hugging Face.
        model: The model; `from_pretrained` gives it.
        **kwargs: As in Hugging Face. `attention_mask`: 0 at padding, (batch, columns).

    Returns:
        What the model's own `generate` returns: prompts with placeholders, then what was written.

    Raises:
        ValueError: a thought has no token before it, padding is not marked or on the right, or an argument does not go
            with thoughts.
    """
    original = type(model).generate
    input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
    if input_ids is None:
        return original(model, None, generation_config, *args, **kwargs)
    is_latent = input_ids == model.config.thoughts["latent_id"]
    if not bool(is_latent.any()):
        return original(model, input_ids, generation_config, *args, **kwargs)
    given = vars(generation_config) if generation_config else {}
    setting = partial(_setting, (kwargs, given, vars(model.generation_config)))
    if refused := [name for name in _REFUSED if setting(name) is not None]:
        raise ValueError(f"generation with thoughts does not go with {', '.join(refused)}; leave it out.")
    mask = _mask(input_ids, kwargs.pop("attention_mask", None), model)
    if bool((mask[:, -1] == 0).any()):
        raise ValueError("a prompt ends in padding; pad on the left: tokenizer.padding_side = 'left'.")
    is_first = is_latent & (mask.cumsum(dim=1) == 1)
    if bool((is_first | is_latent & (mask == 0)).any()):
        raise ValueError("a thought is the hidden state of the token before it; put one before the first <|latent|>.")
    if model.config.thoughts.get("stop_id") is not None or _modules(model, "stop"):
        input_ids, mask = _stopped(model, input_ids, mask)
        is_latent = input_ids == model.config.thoughts["latent_id"]
    embeddings, hidden, cache = _thoughts(model, input_ids, mask, is_latent)
    # The last column is left to the original, which wants one to begin with; it may be a thought itself.
    if bool(is_latent[:, -1].any()):
        last = torch.where(is_latent[:, -1:, None], _last_thought(model, input_ids, mask, hidden), embeddings[:, -1:])
        embeddings = torch.cat([embeddings[:, :-1], last], dim=1)
    # The original repeats its inputs for beams and samples, but not a cache.
    cache.batch_repeat_interleave(max(setting("num_beams") or 1, setting("num_return_sequences") or 1))
    kwargs |= {"attention_mask": mask, CACHE: cache, "inputs_embeds": embeddings, "use_cache": True}
    return original(model, input_ids, generation_config, *args, **kwargs)


def _thoughts(
    model: Any, input_ids: Tensor, mask: Tensor, is_latent: Tensor, hook: ThoughtHook | None = None
) -> tuple[Tensor, Tensor, DynamicCache]:
    """Embeddings of the prompts; hidden states and cache of all columns but the last, thoughts included."""
    embeddings = model.get_input_embeddings()(input_ids)
    cache, decoder = DynamicCache(config=model.config), decoder_of(model)
    settings = model.config.thoughts
    hidden = think(
        decoder,
        embeddings[:, :-1],
        is_latent[:, :-1],
        cache=cache,
        columns=latent_columns(is_latent[:, :-1]),
        attention_mask=mask[:, :-1],
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, :-1] if takes_positions(decoder) else None,
        thought_hook=_change(model, hook),
        iterations=settings.get("iterations"),
        recomputes=settings.get("recomputes", False),
    ).last_hidden_state
    return embeddings, hidden, cache


def _last_thought(model: Any, input_ids: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
    """The thought in the last column, (batch, 1, width), from the hidden states of the columns before it."""
    if model.config.thoughts.get("iterations") is None:
        change = _change(model)
        return hidden[:, -1:] if change is None else change(0, hidden[:, -1:])
    # Refined, it is the state of an iteration and not of the last pass: with one column more it is fed back, and seen.
    fed: list[Tensor] = []

    def keep(number: int, thought: Tensor) -> Tensor:
        fed.append(thought)
        return thought

    longer = torch.cat([input_ids, input_ids[:, :1]], dim=1)
    is_latent = longer == model.config.thoughts["latent_id"]
    _thoughts(model, longer, torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), is_latent, keep)
    embeddings: Tensor = model.get_input_embeddings()(input_ids[:, -1:])
    return fed[-1] if fed else embeddings  # no iterations: the placeholder itself


def _change(model: Any, hook: ThoughtHook | None = None) -> ThoughtHook | None:
    """What becomes of a hidden state before it is fed back."""
    mixes_words = model.config.thoughts.get("mixes_words", False)
    return thought_inputs(model, type(model).forward, _projection(model), mixes_words, hook)


def _stopped(model: Any, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts without the thoughts behind the one at which the model decides to stop, and their mask."""
    latent_id, pad_id = model.config.thoughts["latent_id"], model.generation_config.pad_token_id
    rows = []
    for row, kept in zip(input_ids, mask, strict=True):  # each alone: rows may have different numbers of thoughts
        ids = row[kept.bool()]
        is_surplus = (ids == latent_id) & ((ids == latent_id).cumsum(0) > _stops(model, ids).index(True) + 1)
        rows.append(ids[~is_surplus])
    width = input_ids.shape[1]  # as before: callers cut the prompt off by its length
    ids = torch.stack([functional.pad(row, (width - len(row), 0), value=pad_id or 0) for row in rows])
    mask = torch.stack([functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    return ids, mask


def _stops(model: Any, ids: Tensor) -> list[bool]:
    """Whether the model stops after each thought of a prompt, (columns,); behind them True once more."""
    fed: list[Tensor] = []

    def keep(number: int, thought: Tensor) -> Tensor:
        fed.append(thought)
        return thought

    # One column more, so that a thought at the end of the prompt is read, too.
    longer = torch.cat([ids, ids[:1]])[None]
    is_thought = longer == model.config.thoughts["latent_id"]
    _, hidden, _ = _thoughts(model, longer, torch.ones_like(longer), is_thought, keep)
    if not fed:
        return [True]
    stop_id = model.config.thoughts.get("stop_id")
    if stop_id is None:
        stops = functional.linear(torch.cat(fed, dim=1)[0], *_modules(model, "stop")).argmax(dim=-1) == 1
    else:
        behind = hidden[is_thought[:, :-1]][None]
        stops = logits_of(model, type(model).forward, behind)[0].argmax(dim=-1) == stop_id
    return [*stops.tolist(), True]


def _modules(model: Any, part: str) -> list[Tensor]:
    """The weights of a part of the method's modules, in order of their names; empty where the folder has none."""
    if not model.config.thoughts.get("modules_of"):
        return []
    if not hasattr(model, "_method_modules"):
        model._method_modules = load_file(str(cached_file(model.name_or_path, MODULES_FILE)))
    names = [name for name in model._method_modules if name.startswith(f"method_modules.{part}.")]
    names.sort(key=lambda name: (name.rsplit(".", 1)[0], name.endswith("bias")))  # as `linear` takes them
    return [model._method_modules[name].to(model.device, model.dtype) for name in names]


def _projection(model: Any) -> Change | None:
    """What a thought goes through before it is fed back, if the folder has that."""
    parts = _modules(model, "projection")
    if not parts:
        return None

    def project(thought: Tensor) -> Tensor:
        inner = functional.gelu(functional.linear(thought, *parts[:2]))
        outer = functional.linear(inner, *parts[2:4])
        return functional.layer_norm(outer, outer.shape[-1:], parts[4], parts[5])

    return project


def _mask(input_ids: Tensor, mask: Tensor | None, model: Any) -> Tensor:
    """The mask, or ones where nothing can be padding."""
    if mask is not None:
        return mask
    pad_id = model.generation_config.pad_token_id
    if len(input_ids) > 1 and pad_id is not None and bool((input_ids[:, 0] == pad_id).any()):
        raise ValueError("these prompts are padded; pass the attention_mask that the tokenizer returned with them.")
    return torch.ones_like(input_ids)


def _setting(places: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A setting of the generation, from the first place that has it."""
    return next((place[name] for place in places if place.get(name) is not None), None)
