"""Tests of the GSM8k task: published files read as they are, numbers graded as numbers, gsm-mini adds up."""

import doctest
import os
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cocot.errors import ConfigError, DataError
from cocot.tasks import gsm8k
from cocot.tasks.files import read_problems
from cocot.tasks.gsm8k import GSM8k, from_line, from_original
from cocot.tasks.problem import Problem

TASK = GSM8k()


@cache
def made(count, seed=0, **settings):
    return TASK.generate(count, seed=seed, **settings)


def published(name):
    path = Path(os.environ.get("COCOT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / name
    if not path.is_file():
        pytest.skip(f"no published GSM8k data at {path}: set COCOT_DATA to the folder that holds it")
    return read_problems(path)


# Published forms


def test_both_published_forms_hold_the_same_problems():
    """All 500 of iCoT's validation lines are problems of the original training file: same steps, same answers."""
    original = {" ".join(p.question.split()): p for p in published("gsm8k_train.jsonl.gz")}
    lines = published("gsm8k_icot_valid.txt")
    assert (len(original), len(lines)) == (7473, 500)
    for problem in lines:
        other = original[" ".join(problem.question.split())]
        assert (problem.steps, problem.answer) == (other.steps, other.answer)


def test_a_problem_without_marks_has_no_steps():
    """Not one empty step, as the original preprocessing makes of it."""
    assert from_line("Why? || #### 7") == Problem("Why?", (), "7")
    assert from_original("Why?", "Because.\n#### 7").steps == ()
    assert sum(not problem.steps for problem in published("gsm8k_icot_valid.txt")) == 6


def test_marks_are_taken_in_order_without_blanks():
    """Commas leave the answer, line breaks stay in the question, text between the marks is left out."""
    problem = from_original("One\ntwo?  ", "It is 4 / 2 = <<4 / 2 = 2>>2.\nThen <<2*500=1000>>1,000\n#### 1,000")
    assert problem == Problem("One\ntwo?", ("<<4/2=2>>", "<<2*500=1000>>"), "1000")
    assert from_line("a || b?||<<1+1=2>> #### -1,234.5") == Problem("a || b?", ("<<1+1=2>>",), "-1234.5")


@pytest.mark.parametrize("line", ["no bars #### 5", "a question||<<1+1=2>> 2", "||"])
def test_other_lines_are_refused(line):
    """A line of another form is an error that names the form."""
    with pytest.raises(ValueError, match="not of the form 'question"):
        from_line(line)
    with pytest.raises(ValueError, match="does not end in '#### number'"):
        from_original("q", "no answer")


# Grading

EQUAL = [
    ("1000", "1,000"),
    ("3", "3.0"),
    ("3", " 3.\n"),
    ("18", "$18"),
    ("18", "18 dollars"),
    ("18", "The answer is $18.00."),
    ("0.5", ".5"),
    ("-4", "-4"),
    ("-4", "\N{MINUS SIGN}4"),
    ("1234567", "1,234,567 people"),
    ("15", "15%"),
    ("2", "€2"),
    ("1,000", "1000"),
    ("n/a", " n/a "),
]
UNEQUAL = [
    ("1000", "1001"),
    ("1000", "1"),
    ("3", "3 4"),
    ("3", ""),
    ("3", "three"),
    ("4", "-4"),
    ("0.5", "5"),
    ("12", "1 2"),
    ("n/a", "na"),
    ("3", "3.01"),
    ("6", "1/6"),
]


@pytest.mark.parametrize(("expected", "text"), EQUAL)
def test_equal_numbers_are_correct(expected, text):
    """Commas, currency, units and trailing zeros do not matter."""
    assert TASK.is_correct(Problem("?", (), expected), text)


@pytest.mark.parametrize(("expected", "text"), UNEQUAL)
def test_other_numbers_are_wrong(expected, text):
    """A different number, several numbers or none are wrong."""
    assert not TASK.is_correct(Problem("?", (), expected), text)


def test_any_text_is_graded():
    """No text that a model may write makes the grader fail, or hang."""
    draw = random.Random(0)
    letters = "0123456789.,-+$€£%eE/\u0660\u221e\N{MINUS SIGN} \n\tNaNinf\x00\U0001f600"
    problem = Problem("?", (), "12")
    for _ in range(20_000):
        TASK.is_correct(problem, "".join(draw.choices(letters, k=draw.randrange(40))))
    assert not TASK.is_correct(problem, "9" * 100_000)
    assert not TASK.is_correct(problem, "1," * 100_000)


# gsm-mini


def check(problem):
    """Every equation holds, and every number is used once: each of the question's, and each result but the last."""
    numbers = Counter(map(int, re.findall(r"[0-9]+", problem.question)))
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}
    results, used = Counter(), Counter()
    for step in problem.steps:
        equation = re.fullmatch(r"<<([0-9]+)([-+*/])([0-9]+)=([0-9]+)>>", step)
        assert equation, step
        left, right, result = int(equation[1]), int(equation[3]), int(equation[4])
        assert operations[equation[2]](left, right) == result, step
        assert all((numbers + results)[value] > used[value] for value in (left, right)), step
        used.update((left, right))
        results[result] += 1
    results[result] -= 1
    assert used == numbers + results
    assert problem.answer == str(result)


def test_stories_add_up():
    """One to six steps over whole numbers; nothing is said that is not used."""
    for problem in made(3000):
        check(problem)
    assert {len(problem.steps) for problem in made(3000)} == set(range(1, 7))


def test_a_wrong_story_is_noticed():
    """The check is no rubber stamp."""
    problem = made(1, steps=3)[0]
    wrong = [
        Problem(problem.question + " 7 birds.", problem.steps, problem.answer),
        Problem(problem.question, problem.steps[:-1], problem.answer),
        Problem(problem.question, problem.steps, problem.answer + "0"),
    ]
    for changed in wrong:
        with pytest.raises(AssertionError):
            check(changed)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, [2, 4]])
def test_steps_are_as_many_as_asked(steps):
    """A number, or several to draw from."""
    lengths = {len(problem.steps) for problem in made(200, steps=tuple(steps) if isinstance(steps, list) else steps)}
    assert lengths == set(steps if isinstance(steps, list) else [steps])


def test_numbers_of_a_question_are_no_larger_than_asked():
    """`largest` bounds what is said."""
    for largest in (12, 30):
        said = [int(n) for p in made(500, largest=largest) for n in re.findall(r"[0-9]+", p.question)]
        assert max(said) == largest


def test_stories_are_many():
    """Hardly one of thousands is told twice, and a thousand sentence forms, names and things occur."""
    problems = made(5000)
    assert len({problem.question for problem in problems}) > 4990
    forms = {re.sub(r"[0-9]+", "N", sentence) for p in problems for sentence in p.question.split(". ")}
    assert len(forms) > 5000


def test_no_shortcut_goes_far():
    """Rules that do not compute are right on fewer than one in ten."""
    report = TASK.statistics(made(3000))
    assert report["last_step_is_answer"] == 1
    assert max(report["shortcut_last_number"], report["shortcut_sum_of_numbers"]) < 0.1


def test_the_same_arguments_give_the_same_problems():
    """Same seed, same problems, fewer are a prefix of more; another seed, others; no global chance is used."""
    random.seed(1)
    first = TASK.generate(20, seed=3)
    random.seed(2)
    assert TASK.generate(20, seed=3) == first
    assert TASK.generate(5, seed=3) == first[:5]
    assert TASK.generate(20, seed=-3) != first


BAD_SETTINGS = {
    "setting": ({"mode": "mini"}, "unknown GSM8k setting 'mode'; choose one of: steps, largest"),
    "no steps": ({"steps": 0}, "from 1 to 6, or a list of such, got 0"),
    "many steps": ({"steps": [2, 7]}, "got [2, 7]"),
    "empty": ({"steps": []}, "got []"),
    "text": ({"steps": "3"}, "got '3'"),
    "small": ({"largest": 11}, "largest must be a whole number of at least 12, got 11"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_explained(case):
    """Each says what is wrong and what may be given."""
    settings, message = BAD_SETTINGS[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        TASK.generate(1, seed=0, **settings)


def test_reports_refuse_other_problems():
    """An answer that is no number, or no problems at all."""
    with pytest.raises(DataError, match="0 problems"):
        TASK.statistics([])
    with pytest.raises(DataError, match=r"problem 1 .* no number for an answer"):
        TASK.statistics([*made(1), Problem("q", (), "many")])


def test_the_example_of_the_module_runs():
    """The docstring's example is true."""
    assert doctest.testmod(gsm8k).failed == 0
