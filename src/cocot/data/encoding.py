"""Text -> token ids and back: what a problem, a question and an answer are to a tokenizer.

In: texts, any Hugging Face tokenizer. Out: ids that stand for these texts and for nothing else, and the answer that an
output gives.

    pieces = tokenize(problem, tokenizer)
    prompt = encode_question("Is Tom a lempus?", 2, settings, tokenizer)
    text = answer_in(decode(ids, tokenizer), answer_mark(tokenizer))

Text is text: `<|latent|>` or an end-of-text token that somebody wrote into a question is spelled, not obeyed. Where a
vocabulary cannot spell it, or lacks a word, it is refused.
Read next: `data/examples.py` (how the pieces are put together).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cocot.data.layout import ThoughtSettings, Tokenizer, prompt
from cocot.errors import DataError, ModelError
from cocot.methods.tokens import ANSWER_MARK, PAUSE, SPECIAL_TOKENS
from cocot.tasks.problem import Problem

_RARE = "\N{EGYPTIAN HIEROGLYPH A001}"
"""A letter that only a tokenizer which can spell everything gives back."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A problem's pieces as token ids: cut once, put together again at every stage.

    Attributes:
        question: All that is put before the thoughts.
        steps: Each step.
        answer: The answer, with its mark and end of text.
        frontiers: For each step, the ids that are right after it (`encode_frontiers`); empty where they are not asked.
    """

    question: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    frontiers: tuple[tuple[int, ...], ...] = ()


def tokenize(problem: Problem, tokenizer: Tokenizer) -> Tokenized:
    """Cut a problem into token ids, piece by piece.

    Raises:
        DataError: a word is not in the tokenizer's vocabulary, a text holds what the tokenizer can only read as a
            special token, the answer has no text, or a step holds the answer mark.
        ModelError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-text token; set tokenizer.eos_token.")
    lines = [f"{problem.question}\n", *(f"{step}\n" for step in problem.steps), _answer_line(problem.answer)]
    question, *steps, answer = encode_texts(lines, tokenizer)
    _check_layout(problem, steps, answer, tokenizer)
    begin = _begin(lines[0], question, tokenizer)
    return Tokenized((*begin, *question), tuple(map(tuple, steps)), (*answer, tokenizer.eos_token_id))


def encode_frontiers(
    frontiers: Sequence[Sequence[Sequence[str]]], tokenizer: Tokenizer
) -> list[tuple[tuple[int, ...], ...]]:
    """The first token of every word that is right after a step, as it stands inside a sentence.

    Args:
        frontiers: For each problem, what is right after each step (`Task.frontiers`).
        tokenizer: The model's.

    Raises:
        DataError: the vocabulary lacks a word.
    """
    words = sorted({word for sets in frontiers for right in sets for word in right})
    rows = encode_texts([f" {word}" for word in words], tokenizer)
    first = {word: ids[0] for word, ids in zip(words, rows, strict=True)}
    return [tuple(tuple(sorted({first[word] for word in right})) for right in sets) for sets in frontiers]


def encode_question(text: str, num_thoughts: int, settings: ThoughtSettings, tokenizer: Tokenizer) -> list[int]:
    """The prompt for a question that has no written solution; raises as `tokenize`."""
    line = f"{text}\n"
    (ids,) = encode_texts([line], tokenizer)
    return prompt([*_begin(line, ids, tokenizer), *ids], num_thoughts, settings, tokenizer)


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each text, without begin and end of text; special tokens that somebody wrote are spelled.

    Raises:
        DataError: the vocabulary lacks a word, or can only read it as a special token.
    """
    rows = _rows(texts, tokenizer, adds_special_tokens=False)
    reserved = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, PAUSE])}
    loses = _loses_text(tokenizer)
    for text, ids in zip(texts, rows, strict=True):
        if not reserved.isdisjoint(ids) or (loses and _letters(_spelled(ids, tokenizer)) != _letters(text)):
            raise _refusal(text, reserved, tokenizer)
    return rows


def _rows(texts: Sequence[str], tokenizer: Tokenizer, *, adds_special_tokens: bool) -> list[list[int]]:
    if not texts:  # which a fast tokenizer does not take
        return []
    try:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=adds_special_tokens,
            split_special_tokens=True,
            return_attention_mask=False,  # making masks takes as long as cutting
            return_token_type_ids=False,
        )
    except TypeError as error:  # what a tokenizer makes of half of a character, a lone surrogate
        raise DataError(f"{[*texts]} is not text that a tokenizer can cut: {error}.") from error
    return [list(ids) for ids in encoded["input_ids"]]


def _begin(line: str, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text; what it puts behind one is none of a question's."""
    (whole,) = _rows([line], tokenizer, adds_special_tokens=True)
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start]
    raise ModelError(
        f"the tokenizer cuts {line!r} in another way once it adds its special tokens; give one that only adds them."
    )


@lru_cache(maxsize=4)
def _loses_text(tokenizer: Any) -> bool:
    """Whether the tokenizer leaves out, without a sign, what it cannot spell."""
    (ids,) = _rows([_RARE], tokenizer, adds_special_tokens=False)
    return tokenizer.unk_token_id not in ids and _RARE not in _spelled(ids, tokenizer)


def _spelled(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode(list(ids)))


def _letters(text: str) -> str:
    """A text without what tokenizers may change about it: white space, case, accents, forms of a letter."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if not sign.isspace() and unicodedata.category(sign)[0] not in "MC")


def _refusal(text: str, reserved: set[int], tokenizer: Tokenizer) -> DataError:
    """Why a text cannot be encoded: it holds a special token by name, or words that the vocabulary lacks."""
    tokens = {_spelled([token], tokenizer) for token in reserved}
    bad = [word for word in text.split() if all(_is_lost(form, reserved, tokenizer) for form in (word, f" {word}"))]
    if named := [word for word in bad if word in tokens]:
        return DataError(
            f"{text!r} holds {named}, which the model's vocabulary can only read as special tokens; "
            "take them out, or take a tokenizer that can spell them."
        )
    return DataError(f"the model's vocabulary lacks {bad or text!r}; use the words it was trained on.")


def _is_lost(word: str, reserved: set[int], tokenizer: Tokenizer) -> bool:
    (ids,) = _rows([word], tokenizer, adds_special_tokens=False)
    return not reserved.isdisjoint(ids) or _letters(_spelled(ids, tokenizer)) != _letters(word)


def _answer_line(answer: str) -> str:
    return f"{ANSWER_MARK} {answer}"


def _check_layout(problem: Problem, steps: list[list[int]], answer: list[int], tokenizer: Tokenizer) -> None:
    """Refuse what a model could write to the letter and would still not be read back as this answer."""
    mark = answer_mark(tokenizer)
    expected = answer_in(decode(answer, tokenizer), mark)
    if not expected:
        raise DataError(f"nothing is left of the answer {problem.answer!r} in the tokenizer's spelling; give it text.")
    if not any("#" in unicodedata.normalize("NFKC", step) for step in problem.steps):
        return
    written = decode([token for piece in (*steps, answer) for token in piece], tokenizer)
    if answer_in(written, mark) != expected:
        raise DataError(
            f"a step of {problem.question[:40]!r}... holds the answer mark {ANSWER_MARK!r}, and what follows the first "
            "mark counts as the answer; write the step without it."
        )


def decode(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text that a model wrote, without special tokens and without white space around it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


@lru_cache(maxsize=4)
def answer_mark(tokenizer: Any) -> str:
    """The answer mark as the tokenizer spells it: some put blanks between its signs."""
    (ids,) = _rows([ANSWER_MARK], tokenizer, adds_special_tokens=False)
    return decode(ids, tokenizer) or ANSWER_MARK


def answer_in(output: str, mark: str) -> str:
    """What follows the first answer mark of an output, or all of it where there is none."""
    before, found, after = output.partition(mark)
    return (after if found else before).strip()


def as_written(answer: str, tokenizer: Tokenizer) -> str:
    """An answer as it is read from a model that writes exactly what training shows it.

    Raises:
        DataError: the vocabulary cannot spell it.
    """
    (ids,) = encode_texts([_answer_line(answer)], tokenizer)
    return answer_in(decode(ids, tokenizer), answer_mark(tokenizer))


def num_written(problem: Problem, tokenizer: Tokenizer) -> int:
    """Tokens of the whole written solution: every step, the answer, end of text."""
    lines = [*(f"{step}\n" for step in problem.steps), _answer_line(problem.answer)]
    return sum(map(len, _rows(lines, tokenizer, adds_special_tokens=False))) + 1


def with_head_room(num_tokens: int) -> int:
    """The longest answer to wait for, where right ones take up to `num_tokens`: a wrong one may be longer."""
    return num_tokens + max(8, num_tokens // 4)
