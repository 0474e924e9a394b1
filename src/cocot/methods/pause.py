"""Pause tokens: further columns to compute in, as thoughts would give, but no recurrence (Goyal et al., 2310.02226)."""

from __future__ import annotations

from cocot.methods.base import OneStage, register
from cocot.methods.tokens import PAUSE


@register
class Pause(OneStage):
    """Pause tokens before the answer, from the beginning."""

    name = "pause"
    summary = "pause tokens before the answer, no curriculum"
    filler = PAUSE
    shares_first_stage = True
