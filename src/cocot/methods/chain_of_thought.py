"""Reasoning in words, and none at all: the two ends that every other method is compared with."""

from __future__ import annotations

from dataclasses import replace

from cocot.methods.base import CurriculumConfig, Method, OneStage, Stage, register


@register
class ChainOfThought(Method):
    """Every step is written, in every epoch."""

    name = "cot"
    summary = "chain of thought in words"
    has_stages = False
    shares_first_stage = True

    def stages(self, config: CurriculumConfig) -> list[Stage]:
        """The first stage alone."""
        return [Stage("stage_0", 0, False, config.num_epochs)]

    def stage_for(self, stage: Stage, config: CurriculumConfig) -> Stage:
        """All words in every phase."""
        return replace(stage, index=0, is_final=False, mixture=())


@register
class NoChainOfThought(OneStage):
    """The answer follows the question."""

    name = "no_cot"
    summary = "the answer at once"
    shares_first_stage = True
