"""How sure a number is: the interval of a proportion, and whether two models differ on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

_Z_95 = 1.959963984540054


def wilson_interval(num_correct: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion: sound at 0 %, at 100 % and for few problems."""
    share = num_correct / count
    spread = _Z_95**2 / count
    centre = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


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
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, number) for number in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**count)))
