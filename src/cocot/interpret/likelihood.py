"""How likely given texts are after a question and its thoughts, with the question computed once for all of them.

In: a model, prompts (question and thoughts, as ids), texts that could follow each. Out: their log-probabilities.

    prompts = [encode_question(question, 2, settings, tokenizer)]
    continuation_log_probs(model, prompts, [[tokenizer.encode(name) for name in names]])

Read next: `modeling/recurrence.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from cocot.errors import DataError


@torch.inference_mode()
def continuation_log_probs(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[Tensor]:
    """Log-probability of each continuation, given its prompt.

    The prompts are read once, as one batch; their keys and values are then expanded to the continuations.

    Args:
        model: A model that was given thoughts, in `eval()` mode.
        prompts: Token ids of each prompt, placeholders included; at least one token each.
        continuations: For each prompt, token ids of the texts that could follow; at least one token each.

    Returns:
        For each prompt, the log-probabilities of its continuations, (continuations,), float32: sums over their tokens.

    Raises:
        DataError: a prompt or a continuation has no tokens, or there is none at all.
    """
    if not any(continuations) or not all(prompts) or not all(text for texts in continuations for text in texts):
        raise DataError("a prompt or a continuation has no tokens, or there are none; give each at least one token.")
    device = model.device
    if model.thought_passes.inference == "recomputed":
        return _in_one_pass(model, prompts, continuations)
    prompt_ids, prompt_mask = padded(prompts, "left", device)
    cache = DynamicCache(config=model.config)
    first = model(prompt_ids, attention_mask=prompt_mask, cache=cache, logits_to_keep=1).logits
    counts = [len(texts) for texts in continuations]
    row = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(device)
    ids, mask = padded([text for texts in continuations for text in texts], "right", device)
    logits = first[row]
    if ids.shape[1] > 1:
        cache.batch_select_indices(row)
        seen = torch.cat([prompt_mask[row], mask[:, :-1]], dim=1)
        later = model(ids[:, :-1], attention_mask=seen, cache=cache).logits
        logits = torch.cat([logits, later], dim=1)
    token_log_probs = logits.float().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    return list((token_log_probs * mask).sum(dim=1).split(counts))


def _in_one_pass(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[Tensor]:
    """The same for a model whose cache cannot be continued by several tokens: every text with its prompt again."""
    texts = [text for own in continuations for text in own]
    rows = [[*prompt, *text] for prompt, own in zip(prompts, continuations, strict=True) for text in own]
    ids, mask = padded(rows, "left", model.device)
    log_probs = model(ids, attention_mask=mask).logits.float().log_softmax(-1)
    told = log_probs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    sums = torch.stack([row[-len(text) :].sum() for row, text in zip(told, texts, strict=True)])
    return list(torch.split(sums, [len(own) for own in continuations]))


def padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids in one tensor, and a mask that is 0 at the padding; both (rows, longest), int64."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)
