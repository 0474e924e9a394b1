"""The course of a training: loss and validation accuracy over the steps of all stages, and where each stage begins.

In: the entries of `metrics.jsonl`. Out: points, and a drawing of them for notebooks.

    training_curve(run.read_log()).accuracy[-1]

Read next: `experiments/charts.py`, which draws the same for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cocot.display.html import beside
from cocot.display.svg import BLUE, ORANGE, curve


@dataclass(frozen=True)
class TrainingCurve:
    """Steps count through all stages.

    Attributes:
        loss: Optimizer steps and the training loss there.
        accuracy: Optimizer steps and the validation accuracy there.
        stages: First step of each stage, and its name.
    """

    loss: list[tuple[int, float]]
    accuracy: list[tuple[int, float]]
    stages: list[tuple[int, str]]

    def to_html(self) -> Markup:
        """Both curves beside each other; what has no points is left out."""
        drawings = [
            curve(title, points, self.stages, colour, is_share)
            for title, points, colour, is_share in (
                ("training loss", self.loss, ORANGE, False),
                ("validation accuracy", self.accuracy, BLUE, True),
            )
            if points
        ]
        return beside(drawings)


def training_curve(log: Sequence[Mapping[str, Any]]) -> TrainingCurve:
    """The points of a log, whose entries count their steps from the beginning of their stage."""
    found = TrainingCurve([], [], [])
    offset, last, stage = 0, 0, None
    for entry in log:
        if entry["stage"] != stage:
            offset, stage = offset + last, entry["stage"]
            found.stages.append((offset, entry["stage"]))
        last = entry["step"]
        for name, points in (("loss", found.loss), ("eval_accuracy", found.accuracy)):
            if name in entry:
                points.append((offset + last, entry[name]))
    return found
