"""Tests of tokenizers and models from nothing: one token a word, or a digit; text comes back as it was."""

import re

import pytest

from cocot import tasks
from cocot.data.word_tokenizer import build_tokenizer
from cocot.methods.tokens import ANSWER_MARK, PAUSE, SPECIAL_TOKENS
from cocot.modeling.loading import load_tokenizer

STORIES = tasks.get("gsm8k").generate(500, seed=0)
SEARCHES = tasks.get("prosqa").generate(20, seed=0, mode="balanced", rendering="symbolic", layers=2, width=2)


def written(problem):
    """A problem as training writes it."""
    return "\n".join([problem.question, *problem.steps, f"{ANSWER_MARK} {problem.answer}"])


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_numbers_are_digits_and_text_comes_back():
    """As `digits` every digit is a token, an unknown word none, and decoding gives the very text."""
    tokenizer = build_tokenizer(STORIES, "digits")
    for problem in STORIES:
        ids = encode(tokenizer, written(problem))
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == written(problem)
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert "".join(re.findall("[0-9]", written(problem))) == "".join(t for t in tokens if t.isdigit())
        assert max(len(token) for token in tokens if any(c.isdigit() for c in token)) == 1


def test_numbers_can_be_tokens():
    """As `numbers` each number below 1,000 is one token, the same in stories and equations, seen before or not."""
    tokenizer = build_tokenizer(STORIES[:20], "numbers")
    text = "<<998-7=991>>\n### 991"
    tokens = tokenizer.convert_ids_to_tokens(encode(tokenizer, "998 <<7=991>>"))
    assert tokens == ["998", " ", "<<", "7", "=", "991", ">>"]
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_without_them_a_number_is_a_word():
    """`12` is one token, and blanks are none: the symbols of a search."""
    tokenizer = build_tokenizer(SEARCHES)
    ids = encode(tokenizer, SEARCHES[0].question)
    assert tokenizer.convert_ids_to_tokens(ids) == SEARCHES[0].question.split()


@pytest.mark.parametrize("tokens", ["words", "digits", "numbers"])
def test_a_saved_tokenizer_is_the_same(tmp_path, tokens):
    """Ids and decoded text do not change by saving and loading."""
    problems = SEARCHES if tokens == "words" else STORIES
    tokenizer = build_tokenizer(problems, tokens)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for problem in problems[:20]:
        ids = encode(tokenizer, written(problem))
        assert encode(loaded, written(problem)) == ids
        assert loaded.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("tokens", ["words", "digits", "numbers"])
def test_marks_are_single_tokens(tokens):
    """The special tokens and the answer mark are one token each, wherever they stand."""
    tokenizer = build_tokenizer(STORIES, tokens)
    for mark in (*SPECIAL_TOKENS, PAUSE, ANSWER_MARK):
        assert len(encode(tokenizer, mark)) == 1
        assert encode(tokenizer, f"How {mark}")[-1:] == encode(tokenizer, mark)
