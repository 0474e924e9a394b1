"""What each thought says in words: the model reads it alone, without its question, and writes.

    cocot.read_thoughts(model, tokenizer, questions)     # for each question, a text for each thought

`sim_cot` and `codi_sim_cot` train a model to write, from the thoughts of a step, that step and the end of the text. Any
other model was never shown a thought alone: what it writes then says little.
Read next: `methods/sim_cot.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.data.encoding import decode
from cocot.errors import ConfigError
from cocot.modeling.decoding import decoding, greedy
from cocot.modeling.generation import ThoughtRecorder, answer
from cocot.tasks.problem import check_whole

_MOST = 1_000_000


def read_thoughts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    num_thoughts: int | None = None,
    thoughts_per_step: int = 1,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> list[list[str]]:
    """Let a model write what it reads in its own thoughts, greedily, each step's thoughts alone.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        questions: Any number of questions.
        num_thoughts: Thoughts a question; None for as many as the model was trained with.
        thoughts_per_step: How many thoughts are read together, as in training (`curriculum.thoughts_per_step`).
        max_new_tokens: Longest text, in tokens.
        batch_size: Questions a batch.

    Returns:
        For each question the texts, as many as it has thoughts, divided by `thoughts_per_step`.

    Raises:
        ConfigError: the thoughts cannot be divided so, or a number is no whole number, too small or too large.
        DataError: as `answer`.
        ModelError: as `answer`.
    """
    for name, value in {"thoughts_per_step": thoughts_per_step, "max_new_tokens": max_new_tokens}.items():
        check_whole(name, value, 1, _MOST)
    recorder = ThoughtRecorder(len(questions))
    answer(model, tokenizer, questions, num_thoughts, 1, batch_size, thought_hook=recorder)
    _, count, width = recorder.thoughts.shape
    if count % thoughts_per_step:
        raise ConfigError(f"{count} thoughts cannot be read {thoughts_per_step} at a time; give a divisor of {count}.")
    each = count // thoughts_per_step
    found: list[list[str]] = []
    for thoughts in torch.split(recorder.thoughts, batch_size):
        alone = thoughts.reshape(len(thoughts) * each, thoughts_per_step, width)
        texts = _written(model, tokenizer, alone, max_new_tokens) if each else []
        found += [texts[start * each : (start + 1) * each] for start in range(len(thoughts))]
    return found


def _written(model: Any, tokenizer: PreTrainedTokenizerBase, thoughts: torch.Tensor, most: int) -> list[str]:
    """What the model writes behind thoughts, (texts, thoughts a step, width)."""
    inputs = thoughts.to(model.device, model.dtype)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=model.device)
    config = greedy(tokenizer, most)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), decoding(model, config):
        written = model.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=config)
    model.train(was_training)
    return [decode(ids, tokenizer) for ids in written.tolist()]
