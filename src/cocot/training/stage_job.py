"""What one stage of training is given beside the model.

Read next: `training/trainer.py`, which does the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cocot.data.dataset import StageData
from cocot.methods import Method
from cocot.tasks.base import Task
from cocot.tasks.problem import Problem
from cocot.training.config import TrainConfig
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import Batches, PlannedStage


@dataclass(frozen=True)
class Validation:
    """What a stage is measured on.

    Attributes:
        task: Grades the answers.
        problems: Never seen in training, never test data.
        num_thoughts: Thoughts before each answer at this stage.
        max_new_tokens: Longest answer that is waited for.
    """

    task: Task
    problems: Sequence[Problem]
    num_thoughts: int
    max_new_tokens: int


@dataclass(frozen=True)
class StageJob:
    """One stage of a run.

    Attributes:
        planned: The stage.
        method: Whose loss it is.
        data: The problems to learn from.
        validation: What it is measured on.
        config: The optimizer's settings.
        batches: How the recipe's batch is reached.
        run: The run's folder.
        seed: Seeds order and dropout.
        keeps_best: Whether the best model goes to the run's `best/`.
        earlier_moments: State file of the optimizer of the stage before; None to begin without moments.
        validates_first: Whether to validate before the first step, too.
    """

    planned: PlannedStage
    method: Method
    data: StageData
    validation: Validation
    config: TrainConfig
    batches: Batches
    run: RunFolder
    seed: int
    keeps_best: bool = False
    earlier_moments: Path | None = None
    validates_first: bool = False

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        return self.run.stage(self.planned.stage.name)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return len(self.data) // self.config.batch_size
