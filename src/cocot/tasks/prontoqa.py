"""ProntoQA: is a statement true, given a small made-up ontology ("every wumpus is a tumpus") in random order?

In: a count, a seed and a number of hops. Out: `Problem`s; grading and statistics of them.

The entity belongs to a concept from which a chain of rules climbs to a property that the question asks for. Around the
chain stand distractors: a second parent for each of its concepts, an ontology apart, and one rule with the opposite
property. The texts are like those of the public generator (PrOntoQA, arXiv 2210.01240: fictional ontology, random
order, no examples in the prompt), which the Coconut paper used with 5 hops.

Those texts have a shortcut that follows no rule: the distracting rule's concept occurs nowhere else, so "believe the
rule whose concept is better known" is always right. Mode `balanced` closes it. A rendering writes a problem down:
`sentences`, or `symbolic` for models too small to read them.

Example:
    >>> from cocot.tasks.prontoqa import ProntoQA
    >>> task = ProntoQA()
    >>> (problem,) = task.generate(1, seed=0, mode="balanced", hops=1)
    >>> problem.question[-104:]
    'are shumpuses. Vumpuses are zumpuses. Wren is a vumpus. Sam is a sterpus. True or false: Wren is floral.'
    >>> problem.steps, problem.answer
    (('Wren is a vumpus. Vumpuses are not floral.', 'Wren is not floral.'), 'False')
    >>> task.is_correct(problem, " False ")
    True

Read next: `problem.py` (the values made here), `prosqa.py` (the sister task).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from cocot.errors import ConfigError, DataError
from cocot.settings.typed import choose
from cocot.tasks.base import Task, register
from cocot.tasks.problem import Problem, check_request, is_whole, mean_statistics, one_of

_PERSONS = ("Alex", "Fae", "Max", "Polly", "Rex", "Sally", "Sam", "Stella", "Wren")
# Split from text: in a wall of quotes a missing comma would join two names unseen.
_CONCEPTS = """brimpus dumpus gorpus grimpus impus jompus lempus lorpus numpus rompus shumpus sterpus tumpus vumpus
    wumpus yumpus zumpus""".split()  # noqa: SIM905
_FAMILIES = [
    family.split()
    for family in (
        "aggressive amenable angry kind mean",
        "bitter sour spicy sweet",
        "blue brown orange red",
        "bright dull",
        "cold hot temperate",
        "discordant loud melodic muffled",
        "earthy floral fruity",
        "fast moderate slow",
        "feisty happy nervous shy",
        "large small",
        "liquid luminous metallic wooden",
        "opaque transparent",
        "overcast rainy snowy sunny windy",
    )
]
# How often a rule says "not", as counted in 10,000 problems of the public generator.
_NEGATED_END, _NEGATED_CHAIN, _NEGATED_ELSE = 0.467, 0.275, 1 / 3
_NUM_SYMBOLS = 30  # as many as the concepts and properties of the largest problem
_RULE = re.compile(r"(?:(?:Each|Every) (\w+) is|(\w+) are) (not )?(?:an? )?(\w+)")
_QUERY = re.compile(r"True or false: \w+ is (not )?(\w+)\.$")
_SYMBOLIC_RULE = re.compile(r"(\w+) (\w+) ;")


class _Rule(NamedTuple):
    """`subject` is (not) `predicate`: another concept, or a property."""

    subject: str
    is_negated: bool
    predicate: str

    def sentence(self, rng: Random) -> str:
        """One of the three ways to say it."""
        negation = "not " if self.is_negated else ""
        if rng.random() < 0.5:
            return f"{_plural(self.subject).capitalize()} are {negation}{_plural(self.predicate)}."
        return f"{rng.choice(('Each', 'Every'))} {self.subject} is {negation}{_with_article(self.predicate)}."


def _plural(word: str) -> str:
    return f"{word}es" if word in _CONCEPTS else word


def _with_article(word: str) -> str:
    if word not in _CONCEPTS:
        return word
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _fact(person: str, word: str, is_negated: bool = False) -> str:
    return f"{person} is {'not ' if is_negated else ''}{_with_article(word)}."


class _Ontology(NamedTuple):
    """The rules of one problem, and who is what.

    Attributes:
        proof: The rules that climb from the entity's concept to the property asked for.
        others: All other rules.
        start: The entity's concept.
        elsewhere: The concept of the second fact.
        is_of_another: Whether the second fact is about another entity.
    """

    proof: list[_Rule]
    others: list[_Rule]
    start: str
    elsewhere: str
    is_of_another: bool


class _Supply:
    """Names and properties that no rule of the problem has used yet."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._concepts = iter(rng.sample(_CONCEPTS, len(_CONCEPTS)))
        self._families = iter(rng.sample(_FAMILIES, len(_FAMILIES)))

    def concepts(self, count: int) -> list[str]:
        return [next(self._concepts) for _ in range(count)]

    def property(self, subject: str, probability: float) -> _Rule:
        """A rule that gives `subject` a fresh property, negated with that probability."""
        return _Rule(subject, self._rng.random() < probability, self._rng.choice(next(self._families)))


def _chain(supply: _Supply, hops: int, has_distractors: bool) -> tuple[list[_Rule], list[_Rule], str, str]:
    """A chain of `hops` concepts under a top one: the rules that climb it, its distractors, its first and last concept.

    Every concept has a second parent, and every one but the first a property, as has every second parent.
    """
    top, *chain = supply.concepts(hops + 1)  # each is a kind of the one before it
    parents = supply.concepts(hops)
    climbs = [_Rule(lower, False, upper) for upper, lower in zip([top, *chain], chain, strict=False)]
    if not has_distractors:
        return climbs[:0:-1], [], chain[0], chain[-1]
    others = [climbs[0], *(_Rule(lower, False, parent) for lower, parent in zip(chain, parents, strict=True))]
    others += [supply.property(concept, _NEGATED_CHAIN) for concept in chain[1:]]
    others += [supply.property(concept, _NEGATED_ELSE) for concept in parents]
    return climbs[:0:-1], others, chain[0], chain[-1]


def _released(rng: Random, hops: int, has_distractors: bool) -> _Ontology:
    """A chain, an ontology apart, and a concept of which nothing is said but the opposite of the answer."""
    supply = _Supply(rng)
    climb, others, highest, start = _chain(supply, hops, has_distractors)
    end = supply.property(highest, _NEGATED_END)
    below, above, stranger = supply.concepts(3)
    if has_distractors:
        others += [_Rule(below, False, above), supply.property(below, _NEGATED_ELSE)]
    others.append(_Rule(stranger, not end.is_negated, end.predicate))
    return _Ontology([*climb, end], others, start, below, is_of_another=False)


def _balanced(rng: Random, hops: int, has_distractors: bool) -> _Ontology:
    """Two chains drawn by the same law, with opposite ends, one for the entity and one for another."""
    supply = _Supply(rng)
    (climb, others, highest, start), (climb_2, others_2, highest_2, start_2) = (
        _chain(supply, hops, has_distractors) for _ in "ab"
    )
    end = supply.property(highest, 0.5)
    opposite = _Rule(highest_2, not end.is_negated, end.predicate)
    return _Ontology([*climb, end], [*others, *others_2, *climb_2, opposite], start, start_2, is_of_another=True)


class _Mode(NamedTuple):
    draw: Callable[[Random, int, bool], _Ontology]
    most_hops: int  # as far as names and properties reach


_MODES = {
    "released": _Mode(_released, min((len(_CONCEPTS) - 4) // 2, (len(_FAMILIES) - 1) // 2)),
    "balanced": _Mode(_balanced, min((len(_CONCEPTS) - 2) // 4, (len(_FAMILIES) + 1) // 4)),
}


def _lengths(hops: int | Sequence[int] | None, mode: str, modes: Sequence[str]) -> list[int]:
    """The proofs' lengths that `mode` draws from."""
    most, most_of_all = _MODES[mode].most_hops, max(_MODES[each].most_hops for each in modes)
    given = [min(5, most)] if hops is None else list(hops) if isinstance(hops, Sequence) else [hops]
    lengths = [length for length in given if is_whole(length) and 1 <= length <= most_of_all]
    reached = [length for length in lengths if length <= most]
    if len(lengths) < len(given) or not reached:
        raise ConfigError(
            f"hops must be a whole number from 1 to {most} in mode {mode!r}, or a list of such, got {hops!r}."
        )
    return reached


def _sentences(rng: Random, ontology: _Ontology, short_steps: str | None) -> Problem:
    person, another = rng.sample(_PERSONS, 2)
    proof = [rule.sentence(rng) for rule in ontology.proof]
    rules = [*proof, *(rule.sentence(rng) for rule in ontology.others)]
    rng.shuffle(rules)
    start = _fact(person, ontology.start)
    second = _fact(another if ontology.is_of_another else person, ontology.elsewhere)
    conclusions = [start, *(_fact(person, rule.predicate, rule.is_negated) for rule in ontology.proof)]
    end, is_true = ontology.proof[-1], rng.random() < 0.5
    query = _fact(person, end.predicate, end.is_negated == is_true)
    names = (
        ontology.start,
        *(f"not {rule.predicate}" if rule.is_negated else rule.predicate for rule in ontology.proof),
    )
    return Problem(
        question=" ".join([*rules, *rng.sample([start, second], 2), f"True or false: {query}"]),
        steps=names if short_steps else (*map(" ".join, zip(conclusions, proof, strict=False)), conclusions[-1]),
        answer=str(is_true),
    )


def _symbols(rng: Random, ontology: _Ontology, _: str | None) -> Problem:
    numbers = iter(rng.sample(range(_NUM_SYMBOLS), _NUM_SYMBOLS))
    names = defaultdict[tuple[str, bool], str](lambda: str(next(numbers)))  # of a word, and of its negation

    def symbols(rule: _Rule) -> str:
        return f"{names[rule.subject, False]} {names[rule.predicate, rule.is_negated]} ;"

    proof, others = ([symbols(rule) for rule in rules] for rules in (ontology.proof, ontology.others))
    rules = [*proof, *others]
    rng.shuffle(rules)
    # The query is two further rules, "the one means True, the other False": so an answer is a look-up like any other.
    end, is_true = ontology.proof[-1], rng.random() < 0.5
    verdicts = [f"{names[end.predicate, end.is_negated == is_met]} {is_met == is_true} ;" for is_met in (True, False)]
    question = [*rules, *rng.sample(verdicts, 2), "?", names[ontology.start, False]]
    return Problem(" ".join(question), (*proof, verdicts[0]), str(is_true))


_RENDERINGS = {"sentences": _sentences, "symbolic": _symbols}


def from_example(example: Mapping[str, Any]) -> Problem:
    """A problem from a `test_example` of the public generator.

    Raises:
        ValueError: a field is missing or of another type.
    """
    texts = [example.get("question"), example.get("query"), example.get("answer")]
    chain = example.get("chain_of_thought")
    if not isinstance(chain, list) or not all(isinstance(text, str) for text in (*texts, *chain)):
        raise ValueError("a test_example has question, query and answer (text) and chain_of_thought (a list of text)")
    question, query, answer = texts
    pairs = (" ".join(chain[index : index + 2]) for index in range(0, len(chain), 2))
    return Problem(f"{question} {query}", tuple(pairs), str(answer))


def _claims(question: str) -> list[tuple[str, bool]]:
    """The rules about the property asked for: the concept each is about, and whether to believe it is to say True."""
    rules = _SYMBOLIC_RULE.findall(question)
    verdicts = {symbol: word == "True" for symbol, word in rules if word in ("True", "False")}
    if verdicts:
        return [(concept, verdicts[symbol]) for concept, symbol in rules if symbol in verdicts]
    query = _QUERY.search(question)
    about = [rule for rule in _RULE.finditer(question) if query and rule[4] == query[2]]
    return [
        ((rule[1] or rule[2].removesuffix("es")).lower(), bool(rule[3]) == bool(query[1])) for rule in about if query
    ]


def _statistics(index: int, problem: Problem) -> dict[str, float]:
    """The row of one problem; `ProntoQA.report` averages them."""
    claims, is_true = _claims(problem.question), problem.answer == "True"
    if len(claims) != 2 or problem.answer not in ("True", "False"):
        raise DataError(
            f"problem {index} ({problem.question[:40]!r}...) is not of ProntoQA's form: rules, two of them about the "
            "property asked for, then 'True or false: ...'. Report on generated or published problems only."
        )
    words = Counter(re.findall(r"\w+", problem.question.lower()))
    mentions = [words[concept] + words[f"{concept}es"] for concept, _ in claims]
    beliefs = [float(is_true == says_true) for _, says_true in claims]
    query = _QUERY.search(problem.question)
    num_negations = words["not"]
    return {
        "sentences": len(re.findall(r"\.| ;", problem.question)),
        "question_words": len(problem.question.split()),
        "chain_words": len(" ".join(problem.steps).split()),
        "steps": len(problem.steps),
        "answer_true": is_true,
        "query_negated": bool(query and query[1]),
        "negations": num_negations,
        "shortcut_even_negations": float(is_true == (num_negations % 2 == 0)),
        "shortcut_last_mentioned": beliefs[1],
        "shortcut_better_known": 0.5 if mentions[0] == mentions[1] else beliefs[mentions[1] > mentions[0]],
    }


@register
class ProntoQA(Task):
    """The ProntoQA task of arXiv 2412.06769, section 4.1: make problems, grade answers, report statistics."""

    name = "prontoqa"

    def generate(
        self,
        count: int,
        *,
        seed: int,
        mode: str | Sequence[str] = "released",
        hops: int | Sequence[int] | None = None,
        rendering: str = "sentences",
        short_steps: str | None = None,
        distractors: bool = True,
        **settings: Any,
    ) -> list[Problem]:
        """Make problems; fewer of them with the same settings are a prefix of more.

        Args:
            count: How many.
            seed: Any whole number; another one gives other problems.
            mode: `released` (like the public generator's, which the paper used) or `balanced` (no shortcut: without
                the fact about its entity the question says nothing about the answer). Of several, each problem draws
                one.
            hops: Rules of the proof: 1 to 6, default 5 as in the paper; of `balanced` 1 to 3, default 3. Of several,
                each problem draws one of those that its mode reaches.
            rendering: `sentences` (the published format) or `symbolic` (a number for every concept and property, the
                entity's concept last).
            short_steps: Only `sentences`: `names` writes a step of the chain as the concept or property alone that the
                entity is now known to be, `vumpus`, `not floral`, in place of sentences.
            distractors: Whether rules stand about that lead nowhere; without them every rule but the opposite one (and
                the chain that leads to it) belongs to the proof.
            **settings: Refused.

        Returns:
            The problems, with a step more than hops. A step in sentences is what is known and the rule that it calls
            for, the last step the conclusion; a step in symbols is a rule, the last one of the query.

        Raises:
            ConfigError: a setting is unknown or impossible.

        Source: arXiv 2210.01240 and its public generator; arXiv 2412.06769, section 4.1.
        """
        modes = tuple(mode) if isinstance(mode, Sequence) and not isinstance(mode, str) else (mode,)
        for name in settings:
            known = ("mode", "hops", "rendering", "short_steps", "distractors")
            raise ConfigError(f"unknown ProntoQA setting {name!r}; {choose(name, known)}")
        if not modes:
            raise ConfigError(f"mode={mode!r} is empty: give one of {', '.join(_MODES)}, or several to draw from.")
        for each in modes:
            check_request(count, seed, mode=each, rendering=rendering)
            if each not in _MODES:
                raise ConfigError(f"unknown ProntoQA mode {each!r}; {choose(each, _MODES)}")
        if rendering not in _RENDERINGS:
            raise ConfigError(f"unknown ProntoQA rendering {rendering!r}; {choose(rendering, _RENDERINGS)}")
        if short_steps not in (None, "names"):
            raise ConfigError(f"short_steps must be 'names' or left out, got {short_steps!r}.")
        if short_steps and rendering != "sentences":
            raise ConfigError(f"the steps of rendering {rendering!r} are short as they are: leave short_steps out.")
        if not isinstance(distractors, bool):
            raise ConfigError(f"distractors must be true or false, got {distractors!r}.")
        lengths = {each: _lengths(hops, each, modes) for each in modes}
        rng = Random(f"{self.name} {seed}")  # seeded by text, as Random(-1) would repeat Random(1)
        problems = []
        for _ in range(count):
            drawn = one_of(rng, modes)
            ontology = _MODES[drawn].draw(rng, rng.choice(lengths[drawn]), distractors)
            problems.append(_RENDERINGS[rendering](rng, ontology, short_steps))
        return problems

    def is_correct(self, problem: Problem, text: str) -> bool:
        """Whether `text` is the answer, `True` or `False`, to the letter."""
        return text.strip() == problem.answer

    def statistics(self, problems: Sequence[Problem]) -> dict[str, float]:
        """Means over the problems, and the accuracy of rules that do not reason.

        Args:
            problems: Generated or published problems.

        Returns:
            The mean of each statistic. The shortcuts: `even_negations` says True if the question holds an even number
            of "not"; of the two rules about the property that is asked for, `last_mentioned` believes the later one
            and `better_known` the one whose concept occurs more often in the question (on a tie it guesses).

        Raises:
            DataError: there are no problems, or one of them is of another form.
        """
        return mean_statistics(problems, _statistics)
