"""The tokens that thoughts need, in a tokenizer and in a model's embeddings.

In: a model, its tokenizer, names of tokens. Out: both know them, and the model never writes them as words.
Read next: `modeling/latent_model.py`, which gives thoughts.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from cocot.errors import ModelError
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> None:
    """Add the `tokens` that `tokenizer` or `model` lacks; each starts as a copy of the token of `<<`, head included.

    A copy of a known token keeps the first losses small; the released Coconut code does the same.

    Raises:
        ModelError: the tokenizer has tokens that are not the model's, or nothing for `<<`.
    """
    missing = add_missing(tokenizer, tokens)
    num_rows = cast(Any, model).get_input_embeddings().num_embeddings
    _check_rows(tokenizer, num_rows)
    if len(tokenizer) > num_rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # A tokenizer that served another model may know a token that this model has no row for yet.
    new_ids = [token_id(tokenizer, token) for token in tokens if token in missing]
    new_ids += [token_id(tokenizer, token) for token in tokens if token_id(tokenizer, token) >= num_rows]
    like = tokenizer.encode("<<", add_special_tokens=False)
    if new_ids and not like:
        raise ModelError(
            "new tokens start as copies of the token of `<<`, and the tokenizer has none; take another one."
        )
    tables: tuple[Any, ...] = (model.get_input_embeddings(), cast(Any, model).get_output_embeddings())
    with torch.no_grad():
        for new_id in new_ids:
            for table in tables:
                table.weight[new_id] = table.weight[like[0]]


def add_missing(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> list[str]:
    """Add the `tokens` that `tokenizer` lacks, as special tokens; returns those."""
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True
        )
    return missing


def _check_rows(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> None:
    """Refuse a tokenizer with tokens, besides cocot's own, that the model would read as random embeddings."""
    known = (*SPECIAL_TOKENS, PAUSE)
    foreign = [token for token, index in tokenizer.get_vocab().items() if index >= num_rows and token not in known]
    if foreign:
        raise ModelError(
            f"the tokenizer has {len(foreign)} tokens without an embedding in the model, {min(foreign)!r} among them; "
            "take the model's own. If you added them yourself, call model.resize_token_embeddings(len(tokenizer))."
        )


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token."""
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def suppress(model: PreTrainedModel, token_ids: list[int]) -> None:
    """Never let the model write a thought as a word: its placeholder would have no hidden state to read."""
    generation = model.generation_config
    if generation is not None:
        generation.suppress_tokens = sorted({*(generation.suppress_tokens or []), *token_ids})
