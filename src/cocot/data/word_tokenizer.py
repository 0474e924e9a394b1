"""A tokenizer from nothing: a vocabulary of the task's own words.

In: problems. Out: a word-level tokenizer, an ordinary Hugging Face object that saves and loads like any other.

    tokenizer = build_tokenizer(problems)

Read next: `modeling/from_scratch.py` (a model of that vocabulary).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocot.methods.tokens import ANSWER_MARK, PAUSE, SPECIAL_TOKENS
from cocot.tasks.problem import Problem

_PAD, _UNKNOWN, _END_OF_TEXT = "<|pad|>", "<|unknown|>", "<|endoftext|>"


_PUNCTUATION = r"[.?,](?=[.?,]*$)"


_SIGNS = rf" ?\p{{L}}+|{ANSWER_MARK}|<<|>>|[^\p{{L}}]"


_MARKUP = (_PAD, _UNKNOWN, _END_OF_TEXT, *SPECIAL_TOKENS, PAUSE)


def build_tokenizer(problems: Iterable[Problem], tokens: str = "words") -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word: every word of `problems`, sorted, behind the special tokens.

    Words are what white space parts; `.`, `?` and `,` at the end of one are words of their own, those inside, as in
    `3.5`, are not. As `digits`, every sign that is no letter is a word, blanks too: the digits of one number must be
    told from those of two. As `numbers`, digits stay together, and every number below 1,000 is known, seen or not.
    """
    parts: dict[str, list[Any]] = {
        "words": [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PUNCTUATION), behavior="isolated")],
        "digits": [pre_tokenizers.Split(Regex(_SIGNS), behavior="isolated")],
        "numbers": [pre_tokenizers.Split(Regex(rf"\d+|{_SIGNS}"), behavior="isolated")],
    }
    splitter = pre_tokenizers.Sequence(parts[tokens])
    words = {ANSWER_MARK}
    if tokens == "numbers":
        words.update(map(str, range(1000)))
    lines: Iterable[str] = chain.from_iterable(map(_lines, problems))
    if tokens == "words":  # millions of lines are made of few words
        lines = set(chain.from_iterable(line.split(" ") for line in lines))
    words.update(word for line in lines for word, _ in splitter.pre_tokenize_str(line))
    vocabulary = {word: index for index, word in enumerate([*_MARKUP, *sorted(words.difference(_MARKUP))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.pre_tokenizer = splitter
    if tokens != "words":
        backend.decoder = decoders.Fuse()  # blanks are tokens
    made: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    tokenizer: PreTrainedTokenizerFast = made(
        tokenizer_object=backend,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        eos_token=_END_OF_TEXT,
        additional_special_tokens=[*SPECIAL_TOKENS, PAUSE],
        clean_up_tokenization_spaces=tokens == "words",
    )
    return tokenizer


def _lines(problem: Problem) -> Iterator[str]:
    """The texts of a problem, as they are cut into tokens."""
    return (f"{text}\n" for text in (problem.question, *problem.steps, f"{ANSWER_MARK} {problem.answer}"))
