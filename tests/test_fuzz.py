"""Promises about any input at all: a reader, a grader, the collator and the encoder take it, or say what is wrong.

Whatever is not a `CocotError` is a bug of ours. Here are a few hundred inputs; `make fuzz` tries 25,000 others
of each kind.
"""

from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import TOKENIZER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocot import tasks
from cocot.data.collator import collate
from cocot.data.encoding import tokenize
from cocot.data.examples import IGNORED, Encoder, Example
from cocot.errors import CocotError
from cocot.interpret.path_categories import CATEGORIES, categorise
from cocot.methods import METHODS, CurriculumConfig
from cocot.methods.tokens import SPECIAL_TOKENS
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.graphs import depths, heights, leads_to
from cocot.tasks.problem import Problem

COUNT = int(os.environ.get("COCOT_FUZZ", "200"))
fuzz = settings(
    max_examples=COUNT,
    deadline=None,
    database=None,
    derandomize="COCOT_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NAMES = ["question", "steps", "answer", "graph", "symbols", "edges", "root", "target", "distractor", "idx_to_symbol"]
NAMES += ["neg_target", "test_example", "query", "chain_of_thought"]
GRAPH = {"symbols": ["a", "b", "c"], "edges": [[0, 1], [1, 2]], "root": 0, "target": 2, "distractor": 1}
WHOLE = [
    {"question": "a?", "steps": ["a b ;", "b c ;"], "answer": "c", "graph": GRAPH},
    {"question": "1 + 1?", "answer": "so <<1+1=2>> 2 #### 2"},
    {"example1": {"test_example": {"question": "q", "query": "x", "chain_of_thought": ["a", "b"], "answer": "True"}}},
]
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([-1, 0, 1, 2, 3]))
pieces = ["a", "b", "c", "a b ;", "x #### 1,000", "#########", "||", "<<1=1>>"]
texts = st.one_of(st.text(max_size=30), st.sampled_from(pieces))
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)),
    max_leaves=12,
)


@st.composite
def nearly_whole(draw: Any) -> Any:
    """A good item with some of its parts replaced by anything."""
    item = json.loads(json.dumps(draw(st.sampled_from(WHOLE))))
    for _ in range(draw(st.integers(0, 2))):
        part = item
        while isinstance(part, dict | list) and part:
            key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
            if draw(st.booleans()) or not isinstance(part[key], dict | list) or not part[key]:
                part[key] = draw(values)
                break
            part = part[key]
    return item


@st.composite
def contents(draw: Any) -> bytes:
    """Files: of nearly good items in every form, cut off or overwritten somewhere; or any bytes."""
    items = draw(st.lists(st.one_of(nearly_whole(), values), max_size=3))
    lines = [json.dumps(item) for item in items]
    form = draw(st.sampled_from(["lines", "list", "icot", "bytes", "deep", "digits"]))
    text = {
        "lines": "\n".join(lines),
        "list": f"[{','.join(lines)}]",
        "icot": "\n".join(draw(st.lists(st.sampled_from(["q||<<1+1=2>> #### 2", "q|| #### ", "||####", "q"])))),
        "bytes": "",
        "digits": '{"question": ' + "1" * 5000 + "}",
        "deep": "[" * draw(st.sampled_from([10, 100_000])),
    }[form]
    raw = bytearray(text.encode() if form != "bytes" else draw(st.binary(max_size=60)))
    if raw and draw(st.booleans()):
        place = draw(st.integers(0, len(raw) - 1))
        raw = raw[:place] if draw(st.booleans()) else raw[:place] + draw(st.binary(max_size=4)) + raw[place + 1 :]
    return bytes(raw)


def use(problem: Problem) -> None:
    """What the rest of cocot does with a problem that a reader let through."""
    for name in ("prosqa", "prontoqa", "gsm8k"):
        task = tasks.get(name)
        assert isinstance(task.is_correct(problem, problem.answer), bool)
        with suppress(CocotError):
            task.statistics([problem])
    if problem.graph is not None:
        with suppress(CocotError):
            assert len(depths(problem.graph)) == len(problem.graph.symbols) == len(leads_to(problem.graph, 0))
            assert len(heights(problem.graph, max)) == len(problem.graph.symbols)
            assert categorise(problem, " ".join(problem.steps), 1, False) in CATEGORIES


@fuzz
@given(raw=contents(), is_packed=st.booleans())
def test_any_file_is_read_or_refused(tmp_path: Path, raw: bytes, is_packed: bool) -> None:
    """What is read can be graded, reported on, written and read again, and is then the same."""
    path = tmp_path / ("problems.jsonl.gz" if is_packed else "problems.jsonl")
    path.write_bytes(gzip.compress(raw, 1) if is_packed else raw)
    try:
        problems = read_problems(path)
    except CocotError:
        return
    for problem in problems:
        use(problem)
    write_problems(tmp_path / "again.jsonl", problems)
    assert read_problems(tmp_path / "again.jsonl") == problems


answers = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"[-\u2212$€£ ]{0,3}[0-9,.]{0,12}(e[0-9]{1,9})? ?(dollars|%|apples)?", fullmatch=True),
    st.sampled_from(["1" * 5000, "True", "NaN", "Infinity", "1e999999999", "٣", "²"]),
)


@fuzz
@given(expected=answers, said=answers)
def test_any_answer_is_graded(expected: str, said: str) -> None:
    """A grader says yes or no; an answer agrees with itself."""
    for name in ("prosqa", "prontoqa", "gsm8k"):
        problem = Problem("q", (), expected)
        assert isinstance(tasks.get(name).is_correct(problem, said), bool)
        if expected == expected.strip():
            assert tasks.get(name).is_correct(problem, expected)


@st.composite
def rows(draw: Any) -> Example:
    """An example of any lengths, thoughts anywhere but in front."""
    prompt = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    text = draw(st.lists(st.integers(0, 9), max_size=8))
    return Example([*prompt, *text], [*[IGNORED] * len(prompt), *text], len(prompt), prompt.count(7))


@fuzz
@given(examples=st.lists(rows(), min_size=1, max_size=5))
def test_any_batch_keeps_its_rows(examples: list[Example]) -> None:
    """Without its padding every row is what it was, and texts begin in one column."""
    batch = collate(examples, pad_id=-1, latent_id=7)
    column = max(example.prompt_length for example in examples)
    for index, example in enumerate(examples):
        seen = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][seen].tolist() == example.input_ids
        assert batch["labels"][index][seen].tolist() == example.labels
        assert int(seen[:column].sum()) == example.prompt_length
        assert bool((batch["labels"][index][~seen] == IGNORED).all())
    assert batch["latent_columns"] == (batch["input_ids"] == 7).any(0).nonzero().flatten().tolist()
    assert torch.equal(batch["loss_positions"], batch["loss_positions"].unique())


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: it can spell anything."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", *SPECIAL_TOKENS, "<|pause|>"]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS, "<|pause|>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", additional_special_tokens=special)


BYTES = bytes_tokenizer()
words = st.one_of(st.text(st.characters(), max_size=12), st.sampled_from(["<|latent|>", "### 1", "\n", "\ud800"]))


@fuzz
@given(
    question=words,
    steps=st.lists(words, max_size=4),
    answer=words,
    method=st.sampled_from(list(METHODS)),
    seed=st.integers(0, 99),
    knows_all=st.booleans(),
)
def test_any_problem_is_encoded_or_refused(
    question: str, steps: list[str], answer: str, method: str, seed: int, knows_all: bool
) -> None:
    """At every stage of every method: labels are the ids of the text behind the prompt, and only of it."""
    config = CurriculumConfig(method=method, max_stage=2, epochs_per_stage=1, final_epochs=1, stage_mix=0.5)
    tokenizer = BYTES if knows_all else TOKENIZER
    encoder = Encoder(config, tokenizer)
    with suppress(CocotError):
        tokenized = tokenize(Problem(question, tuple(steps), answer), tokenizer)
        for stage in config.stages:
            example = encoder(tokenized, stage, Random(seed))
            start = example.prompt_length
            assert example.labels == [*[IGNORED] * start, *example.input_ids[start:]]
            assert len(example.input_ids) <= encoder.longest(tokenized, stage)


def test_the_fuzz_above_sees_both_ends(tmp_path: Path) -> None:
    """Good items are read, and some inputs are refused: else the tests above would try nothing."""
    path = tmp_path / "x.jsonl"
    for item in WHOLE:
        path.write_text(json.dumps(item))
        assert len(read_problems(path)) == 1
    path.write_text("[" * 100_000)
    with pytest.raises(CocotError):
        read_problems(path)
