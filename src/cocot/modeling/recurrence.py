"""The only recurrence of the project: run a decoder over a sequence that holds thoughts.

A *continuous thought* is the last hidden state (after the decoder's final norm) at one position, used as the input
embedding of the next position (arXiv 2412.06769, section 3). Training, generation and probing all call `think`.

In: input embeddings, a mask of the latent positions, masks and positions as the decoder takes them.
Out: what the decoder returns, with the last hidden state of every position.

    output = think(decoder_of(model), embeddings, is_latent, attention_mask=mask, position_ids=positions,
                   cache=DynamicCache(config=model.config))
    hidden = output.last_hidden_state

Read next: `modeling/latent_model.py`, which puts `think` behind a Hugging Face model's own `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cache as cached
from inspect import signature
from itertools import count, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls a cache, as an argument and in what a model returns: 5.24 renamed it."""

Mask = Tensor | Mapping[str, Tensor | None] | None
ThoughtHook = Callable[[int, Tensor], Tensor]
"""What becomes of thought `number`, from 1, before it is fed back: (batch, 1, width) -> (batch, 1, width).

Of interleaved sequences it gets one thought of each, (batch, sequences, width)."""


def think(
    decoder: nn.Module,
    inputs_embeds: Tensor,
    is_latent: Tensor,
    *,
    cache: Cache | None,
    columns: Sequence[int] | None = None,
    num_interleaved: int = 1,
    iterations: int | None = None,
    attention_mask: Mask = None,
    position_ids: Tensor | None = None,
    thought_hook: ThoughtHook | None = None,
    pass_context: Callable[[int, int], AbstractContextManager[None]] = lambda number, num_columns: nullcontext(),
    recomputes: bool = False,
    use_cache: bool = True,
    **kwargs: Any,
) -> Any:
    """Run `decoder` with every latent position fed by the hidden state of the position before it.

    The columns that are latent in any row split the sequence into segments. The decoder reads segment after segment
    with one growing cache, so a row's numbers do not depend on where the splits of its batch mates are. Decoders whose
    cache cannot be continued, or not be differentiated, read all columns so far again for every segment (`recomputes`).

    Args:
        decoder: Decoder without its language-modelling head.
        inputs_embeds: Token embeddings, (batch, columns, width). Those at latent positions are not read.
        is_latent: True where a thought is the input, (batch, columns), bool. Column 0 must be False.
        cache: Keys and values of the columns before these (may be empty); grows by `columns`. With `recomputes` it
            must be empty, or None.
        columns: `latent_columns(is_latent)`, if known: else a device is waited for. With `num_interleaved` the first
            column of every group that holds a thought; then they must be given.
        num_interleaved: Sequences that lie in a row column by column: the first column of each, the second of each,
            and so on. A position's hidden state feeds that of its own sequence, so many columns further; the mask must
            keep the sequences apart.
        iterations: None for thoughts one after the other; or all of them at once, refined so often.
        attention_mask: None, (batch, past + columns), (batch, heads, columns, past + columns), or one such 4-D mask
            a layer type. It covers past and current columns.
        position_ids: (batch, columns); covers the current columns only.
        thought_hook: What becomes of the thoughts of a pass before they are fed back; for experiments. With
            `iterations` it is called for every thought at every iteration.
        pass_context: What a pass runs in, given its number and how many columns it reads.
        recomputes: Whether every pass reads all columns from the first, and only the last one fills the cache.
        use_cache: Without it nothing is cached; that takes `recomputes`.
        **kwargs: Passed to every call of the decoder.

    Returns:
        What the decoder returned for the last segment, with the hidden states after the final norm at every position
        as `last_hidden_state`, (batch, columns, width).
    """
    splits = latent_columns(is_latent) if columns is None else columns
    assert 0 not in splits, "column 0 has no hidden state before it"
    num_columns = inputs_embeds.shape[1]
    refines = iterations is not None and len(splits) > 0
    recomputes = recomputes or (refines and not _can_branch(cache))
    numbers = count()

    def read(parts: Sequence[Tensor], start: int, end: int, is_last: bool, filled: Cache | None = cache) -> Any:
        """One pass, over columns `start` to `end`, the last of `parts`, or over all of them."""
        begin = 0 if recomputes else start
        fills_cache = use_cache and (not recomputes or is_last)
        with pass_context(next(numbers), end - begin):
            return decoder(
                inputs_embeds=torch.cat([*parts], dim=1) if recomputes else parts[-1],
                attention_mask=_columns(attention_mask, begin, end, num_columns, None if recomputes else filled),
                use_cache=fills_cache,
                return_dict=True,
                **({} if position_ids is None else {"position_ids": position_ids[:, begin:end]}),
                **({CACHE: filled} if fills_cache and filled is not None else {}),
                **kwargs,
            )

    def fed_back(number: int, thought: Tensor) -> Tensor:
        return thought if thought_hook is None else thought_hook(number, thought)

    if refines:
        assert num_interleaved == 1, "thoughts are refined together in rows of one sequence"
        return _refine(inputs_embeds, is_latent, splits, cast(int, iterations), cache, recomputes, read, fed_back)
    edges = list(pairwise([0, *splits, num_columns]))
    # One split, for backward joins its parts once; every slice would write a gradient of all columns.
    segments = list(torch.split(inputs_embeds, [end - start for start, end in edges], dim=1))
    hidden: list[Tensor] = []
    for number, (start, end) in enumerate(edges):
        if hidden:
            segment = segments[number]
            thought = fed_back(number, hidden[-1][:, -num_interleaved:].to(segment))
            is_thought = is_latent[:, start : start + num_interleaved, None]
            first = torch.where(is_thought, thought, segment[:, :num_interleaved])
            segments[number] = torch.cat([first, segment[:, num_interleaved:]], dim=1)
        output = read(segments[: number + 1], start, end, is_last=number == len(edges) - 1)
        hidden.append(output.last_hidden_state)
    output.last_hidden_state = hidden[-1] if recomputes else torch.cat(hidden, dim=1)
    return output


def _refine(
    inputs_embeds: Tensor,
    is_latent: Tensor,
    splits: Sequence[int],
    iterations: int,
    cache: Cache | None,
    recomputes: bool,
    read: Callable[..., Any],
    fed_back: ThoughtHook,
) -> Any:
    """All thoughts at once, from the placeholder's embedding on: an iteration feeds back what the one before it gave.

    After n iterations the first n thoughts are those of the recurrence (a Jacobi iteration of it, arXiv 2506.18582).
    """
    first, last, num_columns = splits[0], splits[-1], inputs_embeds.shape[1]
    # From the first thought to the last; what is no thought in there stays as it is.
    before, block, after = torch.split(inputs_embeds, [first, last + 1 - first, num_columns - last - 1], dim=1)
    is_thought = is_latent[:, first : last + 1, None]
    fed = block
    read_before = None if recomputes else read([before], 0, first, is_last=False).last_hidden_state
    for _ in range(iterations):
        if read_before is None:
            hidden = read([before, fed[:, :-1]], first, last, is_last=False).last_hidden_state[:, first - 1 :]
        elif last > first:
            more = read([fed[:, :-1]], first, last, is_last=False, filled=_branch(cache)).last_hidden_state
            hidden = torch.cat([read_before[:, -1:], more], dim=1)
        else:
            hidden = read_before[:, -1:]
        thoughts = [fed_back(number, thought) for number, thought in enumerate(hidden.to(block).split(1, dim=1), 1)]
        fed = torch.where(is_thought, torch.cat(thoughts, dim=1), block)
    output = read([before, torch.cat([fed, after], dim=1)], first, num_columns, is_last=True)
    if read_before is not None:
        output.last_hidden_state = torch.cat([read_before, output.last_hidden_state], dim=1)
    return output


def _can_branch(cache: Any) -> bool:
    """Whether what follows a cache can be read several times: its layers replace their tensors, and change none."""
    return hasattr(cache, "branch") or (
        isinstance(cache, DynamicCache) and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    )


def _branch(cache: Any) -> Any:
    """A cache that goes on from here by itself."""
    if hasattr(cache, "branch"):
        return cache.branch()
    branch = copy(cache)
    branch.layers = [copy(layer) for layer in cache.layers]
    return branch


def decoder_of(model: Any) -> Any:
    """The part of a causal language model that turns embeddings into hidden states; the model itself if it has none."""
    named = [model.get_decoder() if hasattr(model, "get_decoder") else None, model.base_model]
    parts = [part for part in (*named, *model.children()) if isinstance(part, PreTrainedModel) and part is not model]
    return parts[0] if parts else model


def takes_positions(decoder: nn.Module) -> bool:
    """Whether a decoder can be told the positions of its columns."""
    return _names_positions(type(decoder))  # type: ignore[arg-type]


@cached
def _names_positions(kind: Any) -> bool:
    return "position_ids" in signature(kind.forward).parameters


def latent_columns(is_latent: Tensor) -> list[int]:
    """The columns of (batch, columns) that are latent in any row, ascending: where a sequence is split."""
    columns: list[int] = is_latent.any(dim=0).nonzero().flatten().tolist()
    return columns


def _columns(
    mask: Mask, start: int, end: int, num_columns: int, cache: Cache | None, slides: bool | None = None
) -> Mask:
    """The part of `mask` that a decoder needs for columns `start` to `end` of `num_columns`.

    A mask of two dimensions covers the past, too. Of one of four dimensions a pass gets its own columns of queries and
    the columns of keys that the cache still holds: layers that slide drop old ones. Without a cache these are all.
    """
    if isinstance(mask, Mapping):
        return {
            kind: _columns(part, start, end, num_columns, cache, kind != "full_attention")  # type: ignore[misc]
            for kind, part in mask.items()
        }
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask[:, : mask.shape[1] - num_columns + end]
    if cache is None:
        return mask[:, :, start:end, :end]
    layer = cache.is_sliding.index(slides) if slides in cache.is_sliding else 0
    num_keys, first_key = cache.get_mask_sizes(end - start, layer)
    return mask[:, :, start:end, first_key : first_key + num_keys]
