"""What thoughts are asked for, for a batch: the tokens that are right after each, or the step that each stands for.

In: `Example`s with `targets` or `removed`. Out: tensors that lie as the thoughts of an end-aligned batch do.
Read next: `methods/frontier.py` and `methods/sim_cot.py`, which learn from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cocot.data.examples import IGNORED, Example

THOUGHT_TARGETS, REMOVED_STEPS, REMOVED_THOUGHTS = "thought_targets", "removed_steps", "removed_thoughts"
WRITTEN, ANSWER_PROMPTS, STOP_TARGETS = "written", "answer_prompts", "stop_targets"
FOR_METHODS = (THOUGHT_TARGETS, REMOVED_STEPS, REMOVED_THOUGHTS, WRITTEN, ANSWER_PROMPTS, STOP_TARGETS)
"""Their names in a batch: for a method's loss, none of the model's inputs."""


def asked_of_thoughts(examples: Sequence[Example]) -> dict[str, Tensor]:
    """All that a batch asks its thoughts for, by name; empty where nothing is asked."""
    targets = thought_targets(examples)
    found = {} if targets is None else {THOUGHT_TARGETS: targets}
    return {**found, **removed_steps(examples), **stop_targets(examples)}


def thought_targets(examples: Sequence[Example]) -> Tensor | None:
    """The sets of the thoughts of a batch.

    Args:
        examples: Rows of the batch. Their thoughts end together: one with fewer begins later.

    Returns:
        (examples, most thoughts, most ids of a set), int64, -100 where there is none; None where no example has any.
    """
    most_ids = max((len(ids) for example in examples for ids in example.targets), default=0)
    if most_ids == 0:
        return None
    most = max(example.num_thoughts for example in examples)
    targets = torch.full((len(examples), most, most_ids), IGNORED)
    for row, example in enumerate(examples):
        first = most - example.num_thoughts
        for number, ids in enumerate(example.targets, first):
            targets[row, number, : len(ids)] = torch.tensor(ids)
    return targets


def stop_targets(examples: Sequence[Example]) -> dict[str, Tensor]:
    """After which thoughts to stop: `stop_targets`, (examples, most thoughts), int64; nothing where no example says so.

    In front of a row's thoughts it is -100.
    """
    most = max(len(example.stops) for example in examples)
    rows = [[IGNORED] * (most - len(example.stops)) + [*example.stops] for example in examples]
    return {STOP_TARGETS: torch.tensor(rows)} if most else {}


def removed_steps(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The steps that the thoughts of a batch stand for.

    Args:
        examples: Rows of the batch. Their thoughts end together: one with fewer begins later.

    Returns:
        `removed_steps`, the token ids of each step, (steps, longest), int64, -100 where a step has no more; and
        `removed_thoughts`, the places of its thoughts in the flattened (examples x thoughts), (steps, thoughts a step),
        int64. Nothing where no example has any.
    """
    steps: list[Tensor] = []
    places: list[Tensor] = []
    most = max(example.num_thoughts for example in examples)
    for row, example in enumerate(examples, 1):
        if example.removed:
            own = torch.arange(row * most - example.num_thoughts, row * most).view(len(example.removed), -1)
            kept = [number for number, step in enumerate(example.removed) if step]
            steps += [torch.tensor(example.removed[number]) for number in kept]
            places.append(own[kept])
    if not steps:
        return {}
    padded = pad_sequence(steps, batch_first=True, padding_value=IGNORED)
    return {REMOVED_STEPS: padded, REMOVED_THOUGHTS: torch.cat(places)}
