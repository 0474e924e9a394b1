"""Tests of text and token ids: what is written in data is text, for every kind of tokenizer, and comes back."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    decoders,
    models,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cocot import tasks
from cocot.data.encoding import (
    answer_in,
    answer_mark,
    as_written,
    decode,
    encode_question,
    encode_texts,
    num_written,
    tokenize,
)
from cocot.data.examples import Encoder
from cocot.data.layout import ThoughtSettings
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError, ModelError
from cocot.methods import METHODS, CurriculumConfig
from cocot.methods.tokens import ANSWER_MARK, LATENT, PAUSE, SPECIAL_TOKENS
from cocot.modeling.special_tokens import add_missing
from cocot.tasks.problem import Problem

PROBLEM = Problem("is tom a lempus or yumpus ?", ("every lempus is a yumpus", "<<12*3.5=42>>"), "yumpus 42")
OWN = [PROBLEM, Problem("is tom # ###", ("every ### is",), "sea ### 42")]
CORPUS = [
    PROBLEM.question,
    *PROBLEM.steps,
    PROBLEM.answer,
    ANSWER_MARK,
    "1 , 2 . 3 = 4 + 5 - 6 * 7 / 8 ( 9 ) 0 #",
    "sea",
] * 4


def finished(trained: Any, template: str, marks: dict[str, str]) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer that puts its special tokens around a text as `template` says, given cocot's own."""
    backend: Tokenizer = getattr(trained, "_tokenizer", trained)
    inside = [(mark, backend.token_to_id(mark)) for mark in {*template.split()} - {"$A"}]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=inside)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **marks)
    add_missing(made, (*SPECIAL_TOKENS, PAUSE))
    return made


def byte_level(template: str, **marks: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained here."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, 300, special_tokens=sorted({*marks.values()}), show_progress=False)
    return finished(trained, template, marks)


def llama() -> PreTrainedTokenizerFast:
    """Like Llama 2's: pieces of SentencePiece, bytes for what is in none, begin of text before each text."""
    trained = SentencePieceBPETokenizer()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(CORPUS, 420, special_tokens=special[:3], initial_alphabet=[], show_progress=False)
    words = trained.get_vocab()
    for byte in special[3:]:
        words.setdefault(byte, len(words))
    backend = Tokenizer(models.BPE(words, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = trained._tokenizer.normalizer
    backend.pre_tokenizer = trained._tokenizer.pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(backend, "<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def bert() -> PreTrainedTokenizerFast:
    """Like BERT's: small letters, pieces of words, a mark before and behind each text."""
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, 200, min_frequency=1, show_progress=False)
    marks = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    return finished(trained, "[CLS] $A [SEP]", marks)


def t5() -> PreTrainedTokenizerFast:
    """Like T5's: a unigram model, end of text behind each text, nothing before it."""
    trained = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(CORPUS, 120, special_tokens=special, unk_token="<unk>", show_progress=False)
    return finished(trained, "$A </s>", {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})


def letters() -> PreTrainedTokenizerFast:
    """A BPE of letters without an unknown token: what is in none of its pieces, it leaves out without a sign."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator([f"{line}\n" for line in CORPUS], trainer)
    backend.decoder = decoders.Fuse()
    return finished(backend, "$A", {"eos_token": "</s>"})


MAKERS = {
    "gpt2": lambda: byte_level("$A", bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>"),
    "gpt2 with begin of text": lambda: byte_level(
        "<|end|> $A", bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>"
    ),
    "gpt2 with both": lambda: byte_level("<|end|> $A <|end|>", bos_token="<|end|>", eos_token="<|end|>"),
    "opt": lambda: byte_level("</s> $A", bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"),
    "llama": llama,
    "bert": bert,
    "t5": t5,
    "letters": letters,
    "words": lambda: build_tokenizer(OWN),
    "digits": lambda: build_tokenizer(OWN, "digits"),
    "numbers": lambda: build_tokenizer(OWN, "numbers"),
}
BEGINS = {"gpt2 with begin of text": ["<|end|>"], "gpt2 with both": ["<|end|>"], "opt": ["</s>"], "llama": ["<s>"]}
BEGINS |= {"bert": ["[CLS]"]}
SPELL_ALL = ("gpt2", "gpt2 with begin of text", "gpt2 with both", "opt", "llama")


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Read it, do not change it."""
    return MAKERS[name]()


@pytest.mark.parametrize("name", MAKERS)
def test_before_a_question_stands_what_the_tokenizer_puts_before_a_text(name: str) -> None:
    """Its own begin, once, and nothing of its end; steps and answer get neither; the prompt is that of training."""
    tokenizer = tokenizer_of(name)
    pieces = tokenize(PROBLEM, tokenizer)
    begin = tokenizer.convert_tokens_to_ids(BEGINS.get(name, []))
    special = set(tokenizer.all_special_ids)
    assert list(pieces.question[: len(begin)]) == begin
    assert not special & {*pieces.question[len(begin) :], *pieces.answer[:-1], *sum(pieces.steps, ())}
    assert pieces.answer[-1] == tokenizer.eos_token_id
    for method in METHODS:
        config = CurriculumConfig(method, max_stage=1, epochs_per_stage=1, final_epochs=1)
        encoder = Encoder(config, tokenizer)
        made = encoder(pieces, config.stages[-1], Random(0))
        asked = encode_question(PROBLEM.question, config.num_thoughts, encoder.settings, tokenizer)
        assert asked == made.input_ids[: made.prompt_length]


@pytest.mark.parametrize("name", MAKERS)
def test_text_comes_back(name: str) -> None:
    """Question, steps and answer are read off their ids, but for the white space that the tokenizer itself drops."""
    tokenizer = tokenizer_of(name)
    for text in (PROBLEM.question, *PROBLEM.steps, f"{ANSWER_MARK} {PROBLEM.answer}"):
        (ids,) = encode_texts([text], tokenizer)
        assert decode(ids, tokenizer).replace(" ", "") == text.replace(" ", "")


def test_the_ids_of_ordinary_text_are_the_tokenizers_own() -> None:
    """Taking special tokens for text changes no token of a text that holds none."""
    for name in MAKERS:
        tokenizer = tokenizer_of(name)
        for text in CORPUS[:3]:
            assert encode_texts([text], tokenizer) == [tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize("name", MAKERS)
def test_a_special_token_in_a_text_is_text_or_refused(name: str) -> None:
    """Nothing that somebody writes becomes a thought, a marker or an end: it is spelled, or named in the refusal."""
    tokenizer = tokenizer_of(name)
    settings_of = ThoughtSettings(tokenizer.convert_tokens_to_ids(LATENT))
    reserved = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, PAUSE])}
    messages = []
    for token in sorted({*tokenizer.all_special_tokens, *SPECIAL_TOKENS, PAUSE}):
        text = f"tom {token} is"
        if name in SPELL_ALL:
            (ids,) = encode_texts([text], tokenizer)
            assert not reserved & {*ids}
            assert decode(ids, tokenizer) == text
            asked = encode_question(text, 0, settings_of, tokenizer)
            assert settings_of.latent_id not in asked
            continue
        for problem in (Problem("is tom", (text,), "sea"), Problem(text, (), "sea")):
            try:
                pieces = tokenize(problem, tokenizer)
            except DataError as error:
                messages.append((token, str(error)))
                continue
            text_ids = pieces.question[len(BEGINS.get(name, [])) :] + sum(pieces.steps, ())
            assert not reserved & {*text_ids}
    assert all(token in message for token, message in messages)


UNKNOWN = ("words", "digits", "numbers", "bert", "t5", "letters")


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_word_that_cannot_be_given_back_is_named(name: str) -> None:
    """Unknown is what does not come back: by an unknown token, or, worse, by nothing at all."""
    with pytest.raises(DataError, match=r"the model's vocabulary lacks \['жук'\]"):
        tokenize(Problem("is tom a жук", (), "sea"), tokenizer_of(name))


@pytest.mark.parametrize("name", SPELL_ALL)
def test_a_tokenizer_of_bytes_knows_every_word(name: str) -> None:
    """Although its unknown token may be its begin and its end of text, too."""
    problem = Problem("is Zoë a жук 🐞 ?", ("она",), "да")
    tokenizer = tokenizer_of(name)
    pieces = tokenize(problem, tokenizer)
    assert problem.question in tokenizer.decode(pieces.question)
    assert as_written(problem.answer, tokenizer) == "да"


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_that_holds_the_answer_mark_is_refused(name: str) -> None:
    """What follows the first mark is the answer, so a step with one would hide it; in an answer a mark is text."""
    tokenizer = tokenizer_of(name)
    with pytest.raises(DataError, match=r"a step of 'is tom'\.\.\. holds the answer mark '###'"):
        tokenize(Problem("is tom", (f"every {ANSWER_MARK} is",), "sea"), tokenizer)
    answer = f"sea {ANSWER_MARK} 42"
    assert answer_in(read(answer, tokenizer), answer_mark(tokenizer)) == as_written(answer, tokenizer) != ""


def read(answer: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """What is read from a model that writes the steps and the answer exactly as it was taught."""
    pieces = tokenize(Problem("is tom", PROBLEM.steps, answer), tokenizer)
    return decode([*sum(pieces.steps, ()), *pieces.answer], tokenizer)


TEXTS = [
    "3.5",
    "1,234",
    "-2.0",
    "£4.56",
    "it 's 5 .",
    "can n't",
    "a ### b",
    "# 5",
    "##",
    "</s>",
    "<|end|>",
    "a\nb",
    "?.,.",
]
ANY_TEXT = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"[-£$ ]{0,2}[0-9]{1,4}([.,][0-9]{1,3}){0,2}[ .?,%]{0,3}", fullmatch=True),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3).map(" ".join),
)


@pytest.mark.parametrize("name", MAKERS)
def test_exactly_the_right_answer_is_right(name: str) -> None:
    """For any answer that is not refused, a model that writes it as taught, steps before it, is graded correct."""
    graded = 0

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(answer=ANY_TEXT)
    @example(answer="3.5")
    def check(answer: str) -> None:
        nonlocal graded
        own = name in ("words", "digits", "numbers")
        problem = Problem("is tom", PROBLEM.steps, answer)
        try:
            tokenizer = build_tokenizer([problem], name) if own else tokenizer_of(name)
            text = answer_in(read(answer, tokenizer), answer_mark(tokenizer))
        except DataError:
            return
        graded += 1
        expected = Problem("is tom", PROBLEM.steps, as_written(answer, tokenizer))
        for task in ("prosqa", "prontoqa", "gsm8k"):
            assert tasks.get(task).is_correct(expected, text)

    check()
    assert graded > 8


@pytest.mark.parametrize("text", ["3.5", "1,234", "-2.0", "£4.56", "a.b", "e.g., this"])
def test_words_keep_their_inner_signs(text: str) -> None:
    """A point or a comma inside a word is part of it: the answer comes back to the letter."""
    tokenizer = build_tokenizer([Problem("q", (), text)])
    assert as_written(text, tokenizer) == text


def test_signs_at_the_end_of_a_word_are_words() -> None:
    """As before: sentences of ProsQA and ProntoQA cut at every `.`, `?` and `,`."""
    for name in ("prosqa", "prontoqa"):
        problems = tasks.get(name).generate(50, seed=0, mode="released")
        tokenizer = build_tokenizer(problems)
        for problem in problems:
            for text in (problem.question, *problem.steps, problem.answer):
                spaced = "".join(f" {sign} " if sign in ".?," else sign for sign in text)
                assert tokenizer.convert_ids_to_tokens(encode_texts([text], tokenizer)[0]) == spaced.split()


def test_an_answer_of_which_nothing_is_left_is_refused() -> None:
    """Nobody could give it."""
    with pytest.raises(DataError, match="nothing is left of the answer"):
        tokenize(Problem("is tom", (), "\N{ZERO WIDTH SPACE}\t"), tokenizer_of("bert"))


def test_a_tokenizer_that_cuts_otherwise_with_its_special_tokens_is_refused() -> None:
    """What stands before the question could only be guessed."""

    class Odd(PreTrainedTokenizerFast):
        def __call__(self, text: Any, add_special_tokens: bool = True, **kwargs: Any) -> Any:
            made = super().__call__(text, add_special_tokens=add_special_tokens, **kwargs)
            return {"input_ids": [ids[::-1] if add_special_tokens else ids for ids in made["input_ids"]]}

    odd = Odd(tokenizer_object=tokenizer_of("gpt2").backend_tokenizer, eos_token="<|end|>")
    with pytest.raises(ModelError, match="once it adds its special tokens"):
        encode_question("is tom", 0, ThoughtSettings(1, filler=None), odd)


def test_the_written_solution_is_counted() -> None:
    """Steps, answer and end of text, as training puts them."""
    pieces = tokenize(PROBLEM, tokenizer_of("llama"))
    count = sum(map(len, pieces.steps)) + len(pieces.answer)
    assert num_written(PROBLEM, tokenizer_of("llama")) == count
