"""A phase: a part of training before the stages of the paper's schedule, on problems and at stages of its own.

    curriculum:
      phases:
        - { name: chains, stages: { stage_0: 1 }, generate: { width: 1 }, epochs: 4, advance_at: 0.95 }
        - { name: two_hops, stages: { stage_1: 1, stage_2: 3 }, generate: { hops: 2 }, epochs: 9, earlier: 0.3 }

A small model learns a long search only step by step: small graphs first, then larger ones, then one hop more at a time
(docs/methods.md). Every method goes through the same phases on the same problems.
Read next: `methods/base.py` (stages), `training/schedule.py` (phases, then stages: the plan of a run).
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from cocot.errors import ConfigError
from cocot.settings.typed import check_numbers, number

_MOST = 1_000_000


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: Name of its folder and of its log entries.
        stages: Stages that its examples are encoded at, `stage_0` to the last one and `final`, each with its weight. In
            validation its problems are answered as at the last of them.
        epochs: Epochs at most.
        generate: Settings that replace those of `data.generate`; null for the generator's default.
        learning_rate: Factor of the learning rate.
        advance_at: Share of right answers to validation problems of its own kind at which it ends early; the epochs it
            leaves go to the last stage of the run.
        earlier: Share of an epoch's problems that are as an earlier phase has them, which is drawn for every epoch.
        method: Method whose loss it has; null for that of the run.
    """

    name: str
    stages: dict[str, float] = number(MISSING, low=0, high=1e9)
    epochs: int = number(1, low=1, high=_MOST)
    generate: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = number(1.0, low=0, high=1e30)
    advance_at: float | None = number(None, low=0, high=1)
    earlier: float = number(0.0, low=0, high=1)
    method: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "curriculum.phases")
        if not self.name.replace("_", "a").isalnum():
            raise ConfigError(f"a phase is called {self.name!r}; its name must be letters, digits and underscores.")
        if not any(self.stages.values()):
            raise ConfigError(f"the phase {self.name} names no stage; give stages, as in {{ stage_0: 1 }}.")
        if taken := sorted({"count", "seed"} & self.generate.keys()):
            raise ConfigError(f"the phase {self.name} generates with {taken[0]} of its own; leave it out of generate.")
