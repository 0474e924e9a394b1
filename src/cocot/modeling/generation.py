"""Batched, cached answers with any number of thoughts, all through the model's own `generate`.

In: a model that thinks, its tokenizer, questions. Out: one `Answer` a question, in order.

    answers = cocot.answer(model, tokenizer, ["Is Tom a lempus or scrompus?"], num_thoughts=6)

Read next: `evaluation/evaluate.py` (answers -> accuracy).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from cocot.data.encoding import answer_in, answer_mark, decode, encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import DataError, ModelError
from cocot.methods.tokens import LATENT
from cocot.modeling.decoding import as_folder_says, decoding, greedy, warn_of_folder
from cocot.modeling.early_stop import decides, num_needed
from cocot.modeling.latent_model import context_length
from cocot.modeling.recurrence import ThoughtHook
from cocot.modeling.thought_settings import thought_settings
from cocot.tasks.problem import check_whole

MOST_NEW_TOKENS = 256
"""Where nothing says how long an answer may be."""
_MOST = 1_000_000

HookFactory = Callable[[Sequence[int], int, Tensor], Tensor]
"""What becomes of the thoughts of some questions: their indices, which thought it is, from 1, and what it is,
(questions, 1, width); returns what is fed back in its place, of the same shape."""

OnTokens = Callable[[Sequence[int], list[int]], Sequence[bool]]
"""What is told of every token: the rows of the batch that are written together, and the next token of each; returns
which of them are at their end. Behind its end a row gets padding."""


class ThoughtRecorder:
    """An `HookFactory` that changes nothing and keeps every thought.

    Attributes:
        num_questions: Questions that will be asked.
    """

    def __init__(self, num_questions: int) -> None:
        self.num_questions = num_questions
        self._kept: dict[int, Tensor] = {}  # by number, each (questions, width)

    def __call__(self, rows: Sequence[int], number: int, thought: Tensor) -> Tensor:
        """Keep a thought of the questions `rows`."""
        values = thought[:, 0].float().cpu()
        self._kept.setdefault(number, values.new_empty(self.num_questions, values.shape[1]))[list(rows)] = values
        return thought

    @property
    def thoughts(self) -> Tensor:
        """All thoughts, (questions, thoughts, width), float32; with no thoughts, the width is 0."""
        if not self._kept:
            return torch.empty(self.num_questions, 0, 0)
        return torch.stack([self._kept[number] for number in sorted(self._kept)], dim=1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one question.

    Attributes:
        text: The answer: what follows the first answer mark, or everything if there is none.
        output: Everything that was written after the thoughts, reasoning included.
        num_tokens: Tokens generated, counted as the paper does: thoughts included, then every token written up to and
            with end of text.
        num_thoughts: Thoughts (or pauses) among them.
        is_complete: Whether the model ended the text itself, before `max_new_tokens`.
        seconds: Wall-clock time of the question's batch, divided by the batch's size.
    """

    text: str
    output: str
    num_tokens: int
    num_thoughts: int
    is_complete: bool
    seconds: float


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    num_thoughts: int | None = None,
    max_new_tokens: int | None = 64,
    batch_size: int = 32,
    *,
    streamer: BaseStreamer | None = None,
    on_batch: Callable[[int], Any] | None = None,
    thought_hook: HookFactory | None = None,
    use_generation_config: bool = False,
    most_new_tokens: int = MOST_NEW_TOKENS,
) -> list[Answer]:
    """Answer questions, greedily, in batches of questions of similar length.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        questions: Any number of questions.
        num_thoughts: Thoughts before the text, or the most of them where the model decides itself; None for as many as
            the model was trained with.
        max_new_tokens: Longest text after the thoughts, in tokens; None for what the context has room for, at most
            `most_new_tokens`.
        batch_size: Questions a batch.
        streamer: Receives the tokens as they are written; for a single question.
        on_batch: Called after every batch with the number of questions it answered.
        thought_hook: What becomes of a thought before it is fed back; see `HookFactory`.
        use_generation_config: Whether to decode as the model's `generation_config.json` says: its penalties, samples,
            beams. Otherwise nothing of it acts, and what it would have changed is named in a warning, once.
        most_new_tokens: Bound of the longest text where `max_new_tokens` is None.

    Returns:
        One answer a question, in the order of `questions`.

    Raises:
        DataError: a question does not fit into the model's context, or holds words the model does not know.
        ModelError: the model was not given thoughts, or was not trained to think and `num_thoughts` is None.
        ConfigError: `num_thoughts`, `max_new_tokens` or `batch_size` is no whole number, too small or too large; or
            `generation_config.json` asks for what does not go with thoughts.
    """
    settings = thought_settings(model)
    count = _num_thoughts(settings, num_thoughts)
    check_whole("batch_size", batch_size, 1, _MOST)
    if max_new_tokens is not None:
        check_whole("max_new_tokens", max_new_tokens, 1, _MOST)
    prompts = [encode_question(text, count, settings, tokenizer) for text in questions]
    room = _room(prompts, max_new_tokens, model, most_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    mark = answer_mark(tokenizer)
    if use_generation_config:
        config = as_folder_says(model, tokenizer, room)
    else:
        config = greedy(tokenizer, room)
        warn_of_folder(model, tokenizer)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        began = time.perf_counter()
        hook = partial(_of_batch, thought_hook, batch) if thought_hook else None
        written = write(model, tokenizer, [prompts[index] for index in batch], config, streamer=streamer, hook=hook)
        seconds = (time.perf_counter() - began) / len(batch)
        for index, (kept, ids) in zip(batch, written, strict=True):
            answers[index] = _read(ids, kept, seconds, mark, tokenizer)
        if on_batch is not None:
            on_batch(len(batch))
    return [answers[index] for index in range(len(prompts))]


def _of_batch(hook: HookFactory, batch: Sequence[int], rows: Sequence[int], number: int, thought: Tensor) -> Tensor:
    return hook([batch[row] for row in rows], number, thought)


def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    *,
    streamer: BaseStreamer | None = None,
    hook: HookFactory | None = None,
    on_tokens: OnTokens | None = None,
) -> list[tuple[int, list[int]]]:
    """What follows each prompt of one batch; prompts may differ in their numbers of thoughts.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        prompts: Token ids, with the placeholder wherever a thought is, or may be where the model decides itself.
        config: What decodes; see `decoding.py`.
        streamer: Receives the tokens as they are written; for a single prompt.
        hook: What becomes of a thought before it is fed back.
        on_tokens: Is told every token as it is written, and may end an answer.

    Returns:
        For each prompt how many thoughts it took, and the token ids behind it, padding behind the end of the text.
    """
    settings, written = thought_settings(model), {}
    filler_id: Any = tokenizer.convert_tokens_to_ids(settings.filler or LATENT)
    for kept, rows in _by_thoughts(model, prompts, settings.latent_id, config, hook).items():
        edit = partial(hook, rows) if hook else None
        watch = _Watch(partial(on_tokens, rows)) if on_tokens else None
        shortened = [_with_thoughts(prompts[row], kept, settings) for row in rows]
        tokens = _generate(model, tokenizer, shortened, config, streamer, edit, watch)
        for row, shorter, ids in zip(rows, shortened, tokens, strict=True):
            written[row] = shorter.count(filler_id), ids
    return [written[row] for row in range(len(prompts))]


class _Watch(StoppingCriteria):
    """Hugging Face asks it after every token which answers are at their end."""

    def __init__(self, on_tokens: Callable[[list[int]], Sequence[bool]]) -> None:
        self._on_tokens = on_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(list(self._on_tokens(input_ids[:, -1].tolist())), device=input_ids.device)


def _by_thoughts(
    model: Any, prompts: Sequence[list[int]], latent_id: int, config: GenerationConfig, hook: HookFactory | None
) -> dict[int, list[int]]:
    """The prompts by the most thoughts that they keep: all of theirs, or fewer where the model decides so itself."""
    counts = [prompt.count(latent_id) for prompt in prompts]
    if not decides(model):
        return {max(counts): [*range(len(prompts))]}
    found: dict[int, list[int]] = {}
    for count in sorted({*counts}):
        rows = [row for row, own in enumerate(counts) if own == count]
        needed = _needed(model, [prompts[row] for row in rows], rows, config, hook) if count else [0] * len(rows)
        for row, own in zip(rows, needed, strict=True):
            found.setdefault(own, []).append(row)
    return found


def _needed(
    model: Any, prompts: Sequence[list[int]], rows: list[int], config: GenerationConfig, hook: HookFactory | None
) -> list[int]:
    """How many thoughts each prompt takes, of those that it has room for; as many for each."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        padded = _padded(prompts, config, model.device)
        needed = num_needed(model, padded, partial(hook, rows) if hook else None)
    model.train(was_training)
    return needed


def _with_thoughts(prompt: list[int], count: int, settings: ThoughtSettings) -> list[int]:
    """A prompt with its first `count` thoughts alone."""
    places = [place for place, token in enumerate(prompt) if token == settings.latent_id]
    surplus = {*places[count:]}
    return [token for place, token in enumerate(prompt) if place not in surplus]


def _padded(prompts: Sequence[list[int]], config: GenerationConfig, device: torch.device) -> dict[str, Tensor]:
    """Prompts in one batch, padded on the left, so that all end in one column."""
    width = max(map(len, prompts))
    ids = [[config.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: GenerationConfig,
    streamer: BaseStreamer | None,
    edit: ThoughtHook | None,
    watch: _Watch | None,
) -> list[list[int]]:
    """The token ids that follow each prompt."""
    padded = _padded(prompts, config, model.device)
    was_training = model.training
    model.eval()
    is_shared = isinstance(model, FSDPModule)
    # what is gathered in inference mode could not be trained afterwards
    with torch.inference_mode(not is_shared), decoding(model, config):
        output = model.generate(
            **padded,
            generation_config=config,
            tokenizer=tokenizer,  # for a folder's stop strings
            streamer=streamer,
            thought_hook=edit,
            stopping_criteria=None if watch is None else StoppingCriteriaList([watch]),
            synced_gpus=is_shared,
        )
    model.train(was_training)
    written: list[list[int]] = output[:, padded["input_ids"].shape[1] :].tolist()
    return written


def _read(
    tokens: list[int], num_thoughts: int, seconds: float, mark: str, tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """Cut at end of text; what `generate` writes behind it is padding for rows that are done."""
    is_complete = tokenizer.eos_token_id in tokens
    if is_complete:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
    output = decode(tokens, tokenizer)
    return Answer(answer_in(output, mark), output, num_thoughts + len(tokens), num_thoughts, is_complete, seconds)


def _num_thoughts(settings: ThoughtSettings, asked: int | None) -> int:
    count = settings.num_thoughts if asked is None else asked
    if count is None:
        raise ModelError(
            "this model was not trained to think, so its number of thoughts is unknown; "
            "say how many (num_thoughts=k, --thoughts k), 0 for words alone."
        )
    check_whole("the number of thoughts", count, 0, _MOST)
    return count


def _room(prompts: list[list[int]], asked: int | None, model: Any, most: int = MOST_NEW_TOKENS) -> int:
    """How many tokens an answer may take: as many as asked for, by default what the context has room for."""
    limit = context_length(model)
    longest = max(map(len, prompts), default=0)
    room = most if limit is None else min(most, limit - longest)
    wanted = max(1, room) if asked is None else asked
    if limit is not None and longest + wanted > limit:
        too_long = sum(len(ids) + wanted > limit for ids in prompts)
        raise DataError(
            f"{too_long} of {len(prompts)} questions do not fit: the longest has {longest} tokens, thoughts included, "
            f"and may be answered in {wanted}, but the model reads {limit}. "
            "Shorten them, lower max_new_tokens, or take a model with a longer context."
        )
    return wanted
