"""How sure a number is: intervals of accuracies, and whether two models, or two methods over their seeds, differ."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import binomtest, ttest_ind_from_stats
from scipy.stats import t as student


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


def seeds_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a method's mean accuracy that the spread of its seeds gives, within 0 and 1.

    Args:
        accuracies: Of each seed, at least two. Few seeds that differ give a wide interval: that is what they say.

    Source: Student, Biometrika 6 (1908).
    """
    count = len(accuracies)
    half = float(student.ppf(0.975, count - 1)) * stdev(accuracies) / sqrt(count)
    return max(0.0, fmean(accuracies) - half), min(1.0, fmean(accuracies) + half)


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of Welch's test: do the seeds of two methods differ by more than seeds do?

    Args:
        first: Accuracies of the first method, of at least two seeds.
        second: Those of the second.

    Source: Welch, Biometrika 34 (1947).
    """
    if not stdev(first) and not stdev(second):  # the statistic is 0 / 0, or divided by 0
        return float(fmean(first) == fmean(second))
    samples = [value for sample in (first, second) for value in (fmean(sample), stdev(sample), len(sample))]
    return float(ttest_ind_from_stats(*samples, equal_var=False).pvalue)
