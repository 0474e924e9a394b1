"""iCoT: a chain of thought that is internalised, token by token (Deng et al., arXiv 2405.14838)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from random import Random

from cocot.methods.base import CurriculumConfig, Method, Stage, register


@register
class InternalisedChainOfThought(Method):
    """Each stage removes as many tokens from the front of the chain, whatever steps they belong to."""

    name = "icot"
    summary = "internalised chain of thought: tokens removed little by little"
    shares_first_stage = True

    def steps_left(
        self, steps: Sequence[Sequence[int]], index: int, config: CurriculumConfig, chance: Random
    ) -> list[int]:
        """All but the first tokens; now and then some more are gone (removal smoothing, section 3 of the paper)."""
        num_more = int(chance.expovariate(config.icot_smoothing)) if index else 0  # a geometric draw
        return list(chain.from_iterable(steps))[index * config.icot_tokens_per_stage + num_more :]

    def describe_left(self, stage: Stage, config: CurriculumConfig) -> str:
        """In tokens."""
        if stage.is_final or not stage.index:
            return super().describe_left(stage, config)
        return f"all but {stage.index * config.icot_tokens_per_stage} tokens"
