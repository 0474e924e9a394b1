"""Models and texts to measure with: GPT-2's shape and a small one, texts as long as ProsQA's and GSM8k's.

Tokens are drawn at random: speed does not depend on what they say. Dropout is off, so that the ways of training that
are compared compute the same loss.

In: names of a shape and of a data set. Out: a bare model, its twin that thinks, batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.examples import IGNORED, Example
from cocot.data.sampler import EpochSampler
from cocot.data.word_tokenizer import build_tokenizer
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.thought_settings import set_thought_settings, thought_settings

SHAPES: dict[str, dict[str, Any]] = {
    "124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "small": {"n_layer": 4, "n_embd": 256, "n_head": 4},
}
TEXTS = {"prosqa": 6, "gsm8k": 3}  # and the last stage of their curriculum
THOUGHTS = 6  # of that stage: one a step, two a step
NO_DROPOUT: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
NUM_PROBLEMS = 17_886  # of ProsQA's training set

VOCABULARY = 50_260  # GPT-2's and the three special tokens
_LATENT_ID = VOCABULARY - 1
_CONTEXT = 4_224


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one problem at one stage: question with markers, thoughts, text that is learned."""

    question: int
    thoughts: int
    text: int


def lengths(text: str, count: int, stage: int | None = None) -> list[Lengths]:
    """How long `count` problems are in GPT-2 tokens, at a stage (by default the last but for the removal of all text).

    ProsQA: the words of generated problems, two tokens a word, and 9.5 tokens a step, as in the real file. GSM8k: drawn
    like the real set, with a log-normal question of mean 56 that grows with the number of steps, and 8.6 tokens a step.
    """
    stage = TEXTS[text] if stage is None else stage
    thoughts = stage * THOUGHTS // TEXTS[text]
    if text == "prosqa":
        return [
            Lengths(2 * words + 3, thoughts, round(9.5 * max(0, steps - stage)) + 9) for words, steps in _prosqa(count)
        ]
    draw = Random(0)
    steps = draw.choices(range(1, 9), weights=(404, 2175, 2137, 1424, 785, 287, 123, 40), k=count)
    questions = [math.exp(draw.gauss(3.78 + 0.06 * number, 0.35)) for number in steps]
    texts = [sum(max(4, draw.gauss(8.6, 2)) for _ in range(stage, number)) for number in steps]
    return [
        Lengths(round(question) + 3, thoughts, round(text) + 5) for question, text in zip(questions, texts, strict=True)
    ]


@cache
def _prosqa(count: int) -> list[tuple[int, int]]:
    """Words of the question and number of steps of generated problems."""
    problems = tasks.get("prosqa").generate(count, seed=0, mode="released")
    return [(len(item.question.split()), len(item.steps)) for item in problems]


def models(shape: dict[str, Any], device: torch.device) -> tuple[Any, Any]:
    """A bare Hugging Face model of a shape and its twin that thinks, of the same weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": _CONTEXT}
    bare: Any = GPT2LMHeadModel(GPT2Config(**shape, **settings, **NO_DROPOUT))
    thinking: Any = give_thoughts(copy.deepcopy(bare), build_tokenizer([]))
    set_thought_settings(thinking, replace(thought_settings(thinking), latent_id=_LATENT_ID))
    return bare.to(device).train(), thinking.to(device).train()


def examples(rows: list[Lengths], thoughts_id: int = _LATENT_ID) -> list[Example]:
    """Random problems of given lengths; `thoughts_id` stands where the thoughts are."""
    draw = Random(0)
    made = []
    for row in rows:
        words = [draw.randrange(_LATENT_ID - 2) for _ in range(row.question + row.text)]
        question, text = words[: row.question], words[row.question :]
        start = [*question[:-1], *[thoughts_id] * row.thoughts, question[-1]]
        made.append(Example([*start, *text], [*[IGNORED] * len(start), *text], len(start), row.thoughts))
    return made


class _Epoch:
    """Just enough of a `StageData` for its sampler."""

    epoch = 0

    def __init__(self, rows: list[Lengths]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        rows = (self._rows[index] for index in indices)
        return [(row.question + row.thoughts, row.text) for row in rows]


def epoch(text: str, batch_size: int, stage: int | None = None, by_length: bool = True) -> list[list[Lengths]]:
    """The batches of an epoch, as training draws them."""
    rows = lengths(text, NUM_PROBLEMS, stage)
    stand_in: Any = _Epoch(rows)
    order = list(EpochSampler(stand_in, "bench", batch_size, by_length))
    return [[rows[index] for index in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]


def padding(batches: list[list[Lengths]]) -> float:
    """Padded tokens of all batches over real tokens."""
    real = sum(row.question + row.thoughts + row.text for batch in batches for row in batch)
    return sum(_padded(batch) for batch in batches) / real


def _padded(batch: list[Lengths]) -> int:
    return len(batch) * (max(row.question + row.thoughts for row in batch) + max(row.text for row in batch))


def typical(batches: list[list[Lengths]]) -> list[Lengths]:
    """The batch of median size."""
    middle = median(map(_padded, batches))
    return min(batches, key=lambda batch: abs(_padded(batch) - middle))


def tensors(rows: list[Lengths], device: torch.device, thoughts_id: int = _LATENT_ID) -> dict[str, Any]:
    """A batch as training gives it to the model; words in the place of thoughts with another `thoughts_id`."""
    batch = collate(examples(rows, thoughts_id), pad_id=0, latent_id=_LATENT_ID)
    return {name: item.to(device) if isinstance(item, torch.Tensor) else item for name, item in batch.items()}
