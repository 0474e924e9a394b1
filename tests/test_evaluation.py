"""Tests of evaluation: honest intervals, one record a problem in the order of the problems, means that add up."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import pytest
import torch
from runs_support import TINY_INIT
from scipy.stats import t as student

from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import DataError, RunError
from cocot.evaluation.evaluate import (
    Prediction,
    by_steps,
    compute_metrics,
    evaluate,
    longest_answer,
    read_predictions,
    write_predictions,
)
from cocot.evaluation.statistics import mcnemar, seeds_interval, welch, wilson_interval
from cocot.modeling.from_scratch import build_model
from cocot.modeling.latent_model import give_thoughts
from cocot.tasks.problem import Problem
from cocot.tasks.prosqa import ProsQA

EXACT = 1e-12  # float64 noise: 1.5e-14 was the most, over all counts of up to 200 problems
RECORD = Prediction("q", "a", "a", "### a", True, 5, 2, True, 0.5)


@pytest.mark.parametrize(
    ("num_correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(num_correct: int, count: int, low: float, high: float) -> None:
    """The score intervals of Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson_interval(num_correct, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("num_correct", "count"), [(0, 1), (1, 1), (1, 10), (9, 10), (970, 1000), (1000, 1000)])
def test_wilson_interval_solves_its_equation(num_correct: int, count: int) -> None:
    """Its ends are the shares p from which the seen share lies 1.96 of p's own standard errors away."""
    for end in wilson_interval(num_correct, count):
        distance = abs(num_correct / count - end)
        assert distance == pytest.approx(1.959964 * sqrt(end * (1 - end) / count), rel=1e-5)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (9, 1, 0.021484375), (10, 2, 0.03857421875)],
)
def test_mcnemar_is_the_sign_test(only_first: int, only_second: int, p: float) -> None:
    """Worked by hand: 2 (1 + 10) / 1024 for 9 against 1; problems that both solve, or neither, do not count."""
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert mcnemar(first, second) == pytest.approx(p, rel=EXACT)
    assert mcnemar(second, first) == pytest.approx(p, rel=EXACT)


def test_mcnemar_of_many_problems() -> None:
    """Thousands of problems neither overflow nor round to nothing."""
    assert 0 < mcnemar([True] * 600 + [False] * 400, [False] * 600 + [True] * 400) < 1e-9
    assert mcnemar([True] * 2500 + [False] * 2500, [False] * 2500 + [True] * 2500) == 1
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


def test_the_interval_of_seeds_is_students() -> None:
    """Worked by hand: 4.3027 is Student's 97.5 % quantile of 2 degrees of freedom, 12.706 of 1; cut off at 0 and 1."""
    assert seeds_interval([0.5, 0.6, 0.7]) == pytest.approx(
        (0.6 - 4.302653 * 0.1 / sqrt(3), 0.6 + 4.302653 * 0.1 / sqrt(3))
    )
    assert seeds_interval([0.49, 0.51]) == pytest.approx((0.5 - 12.7062 * 0.01, 0.5 + 12.7062 * 0.01), rel=1e-5)
    assert seeds_interval([1.0, 1.0, 0.491]) == pytest.approx((0.1003, 1.0), abs=5e-4)
    assert seeds_interval([0.75, 0.75]) == (0.75, 0.75)


def test_a_difference_that_seeds_make_is_none_of_methods() -> None:
    """Welch's test against his formulas; one failed seed in three makes a lead of two points none at all."""
    first, second = [0.997, 0.999, 0.996], [0.822, 0.842, 0.766]
    variances = [stdev(sample) ** 2 / 3 for sample in (first, second)]
    statistic = (fmean(first) - fmean(second)) / sqrt(sum(variances))
    freedom = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    assert welch(first, second) == pytest.approx(2 * student.sf(statistic, freedom), rel=1e-9)
    assert welch(second, first) == welch(first, second) < 0.05
    assert welch([1.0, 1.0, 0.491], second) > 0.9
    assert (welch([1.0, 1.0], [1.0, 1.0]), welch([1.0, 1.0], [0.5, 0.5])) == (1.0, 0.0)
    assert 0 < welch([1.0, 1.0, 1.0], second) < 0.05


def test_a_summary_counts_and_averages() -> None:
    """Accuracy, means of tokens and seconds, the count; an incomplete answer counts by what it says."""
    records = [RECORD, replace(RECORD, is_correct=False, num_tokens=8, seconds=1.5), RECORD, RECORD]
    summary = compute_metrics(records)
    assert (summary.accuracy, summary.tokens, summary.seconds_per_question, summary.problems) == (0.75, 5.75, 0.75, 4)
    assert (summary.low, summary.high) == wilson_interval(3, 4)
    assert summary.cut == 0
    assert compute_metrics([RECORD, replace(RECORD, is_complete=False)]).cut == 1


def test_records_are_sorted_by_the_steps_of_their_solutions() -> None:
    """The fewest first, in the order of the records; nothing to sort where all take as many, or in older records."""
    two, first, second = (
        replace(RECORD, num_steps=steps, question=name) for steps, name in ((5, "x"), (3, "y"), (3, "z"))
    )
    assert by_steps([two, first, second]) == {3: [first, second], 5: [two]}
    assert by_steps([first, second]) == by_steps([RECORD]) == {}


def test_records_are_lines_that_read_back(tmp_path: Path) -> None:
    """One JSON object a line, letters as they are; a second call replaces the file."""
    path = tmp_path / "new" / "eval.jsonl"
    strange = replace(RECORD, question="Zoë\nor not?")
    write_predictions(path, [RECORD])
    write_predictions(path, [strange, RECORD])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert read_predictions(path) == [strange, RECORD]
    assert "Zoë" in lines[0]
    for damage in (lines[0].replace("num_tokens", "tokens"), lines[0][:-20]):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(RunError, match=r"does not hold records as this version writes them .* remove it"):
            read_predictions(path)


class Exact:
    """A task that wants the answer letter by letter."""

    name = "exact"

    def generate(self, count: int, *, seed: int) -> list[Problem]:
        return []

    def is_correct(self, problem: Problem, text: str) -> bool:
        return text == problem.answer

    def statistics(self, problems: list[Problem]) -> dict[str, float]:
        return {}


def test_every_problem_gets_its_own_record_in_its_place() -> None:
    """Records stand in the problems' order, whatever the batches; what the model says is graded by the task."""
    problems = ProsQA().generate(5, seed=0, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=1)
    tokenizer = build_tokenizer(problems)
    torch.manual_seed(0)
    model = give_thoughts(build_model(replace(TINY_INIT, settings={"initializer_range": 0.5}), tokenizer), tokenizer)
    alone = [evaluate(model, tokenizer, Exact(), [item], num_thoughts=2, max_new_tokens=4)[0] for item in problems]
    said = [record.answer for record in alone]
    assert len(set(said)) > 1, "the model says the same to every question: the test proves nothing"
    right = [replace(item, answer=text) for item, text in zip(problems, said, strict=True)]
    right[2] = problems[2]
    records = evaluate(model, tokenizer, Exact(), right, num_thoughts=2, max_new_tokens=4, batch_size=2)
    assert [record.question for record in records] == [item.question for item in problems]
    assert [record.answer for record in records] == said
    assert [record.is_correct for record in records] == [True, True, False, True, True]
    for record in records:
        assert record.num_thoughts == 2
        assert 2 < record.num_tokens <= 6
        assert record.seconds > 0
    model.train()
    assert [record.answer for record in evaluate(model, tokenizer, Exact(), right, num_thoughts=2, max_new_tokens=4)]
    assert model.training


def test_no_problems_are_refused() -> None:
    """An accuracy of nothing is an error, not a division by zero."""
    with pytest.raises(DataError, match="no problems to evaluate on"):
        evaluate(None, None, Exact(), [])  # type: ignore[arg-type]


def speaking(texts: list[str], problems: list[Problem], n_positions: int = 64) -> tuple[Any, Any]:
    """A model that writes one of `texts` a row, whatever it is asked, and its tokenizer of the problems' words."""
    tokenizer = build_tokenizer(problems)
    shape = replace(TINY_INIT, settings={"n_positions": n_positions})
    model = give_thoughts(build_model(shape, tokenizer), tokenizer)
    rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    written = [0]

    def override(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        for row, tokens in enumerate(rows):
            logits[row, -1, tokens[min(written[0], len(tokens) - 1)]] += 1e4
        written[0] += 1
        return logits

    cast(Any, model.get_output_embeddings()).register_forward_hook(override)
    return model, tokenizer


@pytest.mark.parametrize("answer", ["3 .5", "3. 5", "it 's 5 .", "can n't", "1 , 2", "a  b"])
def test_an_answer_is_compared_as_the_tokenizer_spells_it(answer: str) -> None:
    """The words of the expected answer are the right answer, however decoding sets the white space between them."""
    problem = Problem("q", (), answer)
    model, tokenizer = speaking([f"### {answer}"], [problem])
    (record,) = evaluate(model, tokenizer, Exact(), [problem], num_thoughts=0)
    assert record.is_correct
    assert (record.expected, record.is_complete) == (answer, True)


def test_an_answer_that_the_vocabulary_lacks_is_wrong_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """The model cannot give it: one line says how many, and no question is lost."""
    known, lacking = Problem("q", (), "3"), Problem("q", (), "zebra")
    model, tokenizer = speaking(["### 3", "### 3"], [known])
    records = evaluate(model, tokenizer, Exact(), [known, lacking], num_thoughts=0)
    assert [record.is_correct for record in records] == [True, False]
    assert "1 of 2 expected answers, such as 'zebra', hold what the model's vocabulary lacks" in caplog.text


def test_nothing_is_cut_that_is_as_long_as_its_written_solution() -> None:
    """Without a limit, an answer has room for the longest chain of the problems, be it longer than 256 tokens."""
    chain = Problem("q", tuple("a b c d" for _ in range(90)), "3")
    text = " ".join([*chain.steps, "### 3"])
    model, tokenizer = speaking([text], [chain], n_positions=512)
    (record,) = evaluate(model, tokenizer, Exact(), [chain], num_thoughts=0)
    assert (record.is_correct, record.is_complete, record.num_tokens) == (True, True, 363)
    model, tokenizer = speaking([text], [chain], n_positions=512)
    (record,) = evaluate(model, tokenizer, Exact(), [chain], num_thoughts=0, max_new_tokens=64)
    assert (record.is_correct, record.is_complete) == (False, False)
    assert longest_answer([chain], tokenizer) == 363 + 363 // 4
    assert longest_answer([Problem("q", (), "3")], tokenizer) == 256
