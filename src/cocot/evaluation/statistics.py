"""How sure a number is: the interval of a proportion, and whether two models differ on the same problems."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def wilson_interval(num_correct: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion: sound at 0 %, at 100 % and for few problems."""
    interval = binomtest(num_correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test: do two models differ on the same problems?

    Only problems count that one of them solves and the other does not; were the models equally good, each of the two
    would be the solver with probability 1/2.

    Args:
        first: Whether the first model solved each problem.
        second: The same of the second model, in the same order.

    Source: McNemar, Psychometrika 12 (1947); the exact form is a sign test.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count = only_first + only_second
    return float(binomtest(only_first, count).pvalue) if count else 1.0
