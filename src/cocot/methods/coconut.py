"""Coconut: continuous thoughts in the place of written steps, stage by stage (Hao et al., arXiv 2412.06769, section 3).

With it, its ablations: the thoughts without the curriculum, and the curriculum without the thoughts (Table 1).
"""

from __future__ import annotations

from cocot.methods.base import Method, OneStage, register
from cocot.methods.tokens import LATENT, PAUSE


@register
class Coconut(Method):
    """The interface's defaults are its definition."""

    name = "coconut"
    summary = "thoughts replace the steps, stage by stage"
    filler = LATENT
    shares_first_stage = True


@register
class CoconutWithoutCurriculum(OneStage):
    """All thoughts from the beginning."""

    name = "coconut_no_curriculum"
    summary = "thoughts before the answer, no curriculum"
    filler = LATENT
    shares_first_stage = True


@register
class CoconutWithoutThoughts(Method):
    """Steps are removed, and nothing takes their place."""

    name = "no_thought"
    summary = "the curriculum of coconut with nothing in the place of the steps"
    shares_first_stage = True


@register
class PauseAsThought(Method):
    """Coconut's curriculum, with a pause token wherever it has a thought."""

    name = "pause_as_thought"
    summary = "the curriculum of coconut with pause tokens for thoughts"
    filler = PAUSE
    shares_first_stage = True
