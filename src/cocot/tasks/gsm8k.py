"""GSM8k: arithmetic in words. Readers of its published forms, a grader of numbers, and a generator that needs no file.

In: lines or objects of a published file; or a count and a seed. Out: `Problem`s whose steps are equations.

Published forms: the original's objects (`answer` holds `<<48/2=24>>` marks and ends in `#### 72`) and the lines
`question||<<48/2=24>> <<48+24=72>> #### 72` of implicit chain of thought (iCoT, GSM8k-Aug). The marks, in order and
without blanks, are the steps; where a chain has none, as in iCoT's multiplication, its summands or its sentences are.
The generator, *gsm-mini*, writes stories of one to six such steps over whole numbers.

Example:
    >>> from cocot.tasks.gsm8k import GSM8k, from_line
    >>> from_line("How many?||<<2+3=5>> <<5*2=10>> #### 1,000")
    Problem(question='How many?', steps=('<<2+3=5>>', '<<5*2=10>>'), answer='1000', graph=None)
    >>> GSM8k().is_correct(_, " $1,000.00 dollars")
    True
    >>> (problem,) = GSM8k().generate(1, seed=0, steps=2)
    >>> problem.question[47:]
    'Faye gives 27 of the cards to Hugo. How many cards does Faye have now?'
    >>> problem.steps, problem.answer
    (('<<40+16=56>>', '<<56-27=29>>'), '29')

Read next: `problem.py` (the values made here), `files.py` (which reads files with it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

from cocot.errors import ConfigError, DataError
from cocot.settings.typed import choose
from cocot.tasks.base import Task, register
from cocot.tasks.problem import Problem, check_request, check_whole, is_whole, mean_statistics

_MOST_NUMBER = 10**12
_MARK = re.compile(r"<<([^<>]*)>>")
_SUM = re.compile(r"[-+*/=()0-9\s]+")
_THOUSANDS = re.compile(r"(?<![0-9])(?<![0-9][,.])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")

# Split from text: in a wall of quotes a missing comma would join two names unseen.
_PERSONS = """Ada Ben Carl Dora Emil Faye Gina Hugo Iris Jack Kate Liam Mona Noah Olga Paul Rosa Sven Tina
    Vera""".split()  # noqa: SIM905
_THINGS = """apples books buttons candles cards coins cups eggs flowers keys lemons marbles pears pens plums shells
    stamps stickers stones toys""".split()  # noqa: SIM905


def from_line(line: str) -> Problem:
    """A problem from one line of iCoT's format.

    Raises:
        ValueError: the line has another form.
    """
    question, bars, rest = line.rpartition("||")
    chain, hashes, answer = rest.rpartition("####")
    if not bars or not hashes:
        raise ValueError("not of the form 'question||<<step>> <<step>> #### answer'")
    return _problem(question, steps_of(chain), answer)


def from_original(question: str, solution: str) -> Problem:
    """A problem from an object of the original files: its question, and its answer with the marks inside.

    Raises:
        ValueError: the solution has no `####`.
    """
    text, hashes, answer = solution.rpartition("####")
    if not hashes:
        raise ValueError("the answer does not end in '#### number'")
    return _problem(question, _marks(text), answer)  # the published GSM8k-Aug, too, has no steps where it has no marks


def steps_of(chain: str) -> tuple[str, ...]:
    """The steps of a chain in one text: its marks; of a written sum its summands; else its sentences."""
    if marks := _marks(chain):
        return marks
    border = r"\s+(?=\+)" if _SUM.fullmatch(chain) else r"(?<=[.!?])\s+|\s*\n\s*"
    return tuple(step for step in re.split(border, chain.strip()) if step)


def _marks(text: str) -> tuple[str, ...]:
    return tuple(f"<<{''.join(mark.split())}>>" for mark in _MARK.findall(text))


def _problem(question: str, steps: tuple[str, ...], answer: str) -> Problem:
    return Problem(question.strip(), steps, _without_thousands(answer.strip()))


def _without_thousands(text: str) -> str:
    """The text without the commas between thousands."""
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _value(text: str) -> Decimal | None:
    """The number that an answer gives, whatever its currency and unit; None if there is not exactly one.

    Commas belong to it only as separators of thousands: `1,000` is one number, `1,5` and `1,2,3` are several.
    """
    plain = _without_thousands(text.replace("\N{MINUS SIGN}", "-"))
    found = _NUMBER.findall(plain.replace("$", "").replace("€", "").replace("£", ""))
    return Decimal(found[0]) if len(found) == 1 else None


class _Story:
    """A story that goes on sentence by sentence; its equations are its steps."""

    def __init__(self, rng: Random, largest: int) -> None:
        self.rng, self.largest = rng, largest
        self.name, self.friend = rng.sample(_PERSONS, 2)
        self.things = rng.choice(_THINGS)
        self.total = 0
        self.sentences: list[str] = []
        self.steps: list[str] = []

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, max(low, min(high, self.largest)))

    def compute(self, left: int, sign: str, right: int) -> int:
        """Write the equation down and return its value; whole numbers only."""
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        self.steps.append(f"<<{left}{sign}{right}={value}>>")
        return value

    def say(self, *ways: str, **numbers: int) -> None:
        words = {"name": self.name, "friend": self.friend, "things": self.things, **numbers}
        self.sentences.append(self.rng.choice(ways).format(**words))


class _Event(NamedTuple):
    """Something that changes the total: how many steps it takes, when it can happen, what it does."""

    num_steps: int
    is_possible: Callable[[_Story], bool]
    happen: Callable[[_Story], None]


def _gain(story: _Story) -> None:
    n = story.number(2, story.largest)
    story.say(
        "{friend} gives {name} {n} more {things}.",
        "Then {name} finds {n} {things}.",
        "{name} buys another {n} {things}.",
        "The next day {n} {things} arrive by mail.",
        n=n,
    )
    story.total = story.compute(story.total, "+", n)


def _lose(story: _Story) -> None:
    n = story.number(1, story.total - 1)
    story.say(
        "{name} gives {n} of the {things} to {friend}.",
        "Then {name} loses {n} {things}.",
        "{name} sells {n} of them.",
        "{n} of the {things} get stolen.",
        n=n,
    )
    story.total = story.compute(story.total, "-", n)


def _multiply(story: _Story) -> None:
    n = story.number(2, min(9, story.largest // story.total))
    story.say(
        "A year later {name} has {n} times as many.",
        "{friend} sees that and brings so many more that there are {n} times as many {things}.",
        "By summer the number of {things} has grown to {n} times what it was.",
        n=n,
    )
    story.total = story.compute(story.total, "*", n)


def _divisors(story: _Story) -> list[int]:
    return [n for n in range(2, 10) if story.total % n == 0 and story.total > n]


def _divide(story: _Story) -> None:
    n = story.rng.choice(_divisors(story))
    story.say(
        "{name} puts them into {n} equal piles and keeps only one.",
        "{name} shares the {things} equally among {n} people, of whom {name} is one.",
        "Only one in {n} of the {things} is good, and {name} throws the others away.",
        n=n,
    )
    story.total = story.compute(story.total, "/", n)


def _gain_boxes(story: _Story) -> None:
    n, m = story.number(2, 9), story.number(2, 12)
    story.say(
        "{friend} brings {n} boxes with {m} {things} each.",
        "For {n} days {name} gets {m} {things} a day.",
        "In {n} shops {name} buys {m} {things} each.",
        n=n,
        m=m,
    )
    story.total = story.compute(story.total, "+", story.compute(n, "*", m))


def _lose_boxes(story: _Story) -> None:
    n = story.number(2, min(9, story.total // 3))
    m = story.number(1, (story.total - 1) // n)
    story.say(
        "{name} fills {n} bags with {m} {things} each and sells the bags.",
        "{name} gives {m} {things} to each of {n} children.",
        "For {n} days {name} uses up {m} {things} a day.",
        n=n,
        m=m,
    )
    story.total = story.compute(story.total, "-", story.compute(n, "*", m))


_EVENTS = (
    _Event(1, lambda story: True, _gain),
    _Event(1, lambda story: story.total >= 2, _lose),
    _Event(1, lambda story: 0 < 2 * story.total <= story.largest, _multiply),
    _Event(1, lambda story: bool(_divisors(story)), _divide),
    _Event(2, lambda story: True, _gain_boxes),
    _Event(2, lambda story: story.total >= 8, _lose_boxes),
)


def _tell(rng: Random, num_steps: int, largest: int) -> Problem:
    """A story of exactly so many steps."""
    story = _Story(rng, largest)
    story.total = story.number(2, largest)
    story.say(
        "{name} has {n} {things}.",
        "There are {n} {things} in the room, all of them {name}'s.",
        "On Monday {name} collects {n} {things}.",
        n=story.total,
    )
    while (left := num_steps - len(story.steps)) > 0:
        rng.choice([event for event in _EVENTS if event.num_steps <= left and event.is_possible(story)]).happen(story)
    story.say("How many {things} does {name} have now?", "How many {things} are {name}'s in the end?")
    return Problem(" ".join(story.sentences), tuple(story.steps), str(story.total))


def _statistics(index: int, problem: Problem) -> dict[str, float]:
    """The row of one problem; `GSM8k.report` averages them."""
    expected = _value(problem.answer)
    if expected is None:
        raise DataError(f"problem {index} ({problem.question[:40]!r}...) has no number for an answer.")
    said = [Decimal(number) for number in _NUMBER.findall(problem.question.replace(",", ""))]
    last = _value(problem.steps[-1].rpartition("=")[2].rstrip(">")) if problem.steps else None
    return {
        "question_words": len(problem.question.split()),
        "steps": len(problem.steps),
        "no_steps": not problem.steps,
        "last_step_is_answer": last == expected,
        "shortcut_last_number": bool(said) and said[-1] == expected,
        "shortcut_sum_of_numbers": sum(said) == expected,
    }


@register
class GSM8k(Task):
    """Arithmetic word problems: the data of arXiv 2110.14168 and 2405.14838, and *gsm-mini*, which is made here."""

    name = "gsm8k"

    def generate(
        self, count: int, *, seed: int, steps: int | Sequence[int] | None = None, largest: int = 100, **settings: Any
    ) -> list[Problem]:
        """Make gsm-mini problems; fewer of them with the same settings are a prefix of more.

        Args:
            count: How many.
            seed: Any whole number; another one gives other problems.
            steps: Equations a problem, 1 to 6; of several, each problem draws one (default: all of them).
            largest: The largest number that a question names, at least 12.
            **settings: Refused.

        Returns:
            The problems: every value is a whole number, and the last step's is the answer.

        Raises:
            ConfigError: a setting is unknown or impossible.
        """
        check_request(count, seed)
        for name in settings:
            raise ConfigError(f"unknown GSM8k setting {name!r}; {choose(name, ('steps', 'largest'))}")
        lengths = range(1, 7) if steps is None else list(steps) if isinstance(steps, Sequence) else [steps]
        if not lengths or not all(is_whole(length) and 1 <= length <= 6 for length in lengths):
            raise ConfigError(f"steps must be a whole number from 1 to 6, or a list of such, got {steps!r}.")
        check_whole("largest", largest, 12, _MOST_NUMBER)
        rng = Random(f"{self.name} {seed}")  # seeded by text, as Random(-1) would repeat Random(1)
        return [_tell(rng, rng.choice(lengths), largest) for _ in range(count)]

    def is_correct(self, problem: Problem, text: str) -> bool:
        """Whether `text` gives the answer's number, whatever its commas, currency, unit and trailing zeros."""
        given, expected = _value(text), _value(problem.answer)
        return text.strip() == problem.answer.strip() if expected is None else given == expected

    def statistics(self, problems: Sequence[Problem]) -> dict[str, float]:
        """Means over the problems, and the accuracy of rules that do not compute.

        Returns:
            The mean of each statistic. The shortcuts: the last number of the question, and the sum of all of them.

        Raises:
            DataError: there are no problems, or an answer is no number.
        """
        return mean_statistics(problems, _statistics)
