"""Do the thoughts matter? One trained model, asked the same problems with other thoughts, and with fewer of them.

In: a model that thinks, a task's problems. Out: records under the name of each control.

    for name, records in run_ablations(model, tokenizer, task, problems):
        print(name, compute_metrics(records).accuracy)

The model first answers undisturbed, and its thoughts are kept. Every control is then another table of thoughts in their
place: a row of `ABLATIONS`.
Read next: `evaluation/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.errors import ConfigError, DataError
from cocot.evaluation.evaluate import Prediction, evaluate
from cocot.methods.tokens import LATENT
from cocot.modeling.generation import ThoughtRecorder
from cocot.modeling.thought_settings import thought_settings
from cocot.tasks.base import Task
from cocot.tasks.problem import Problem


def _noise(thoughts: Tensor) -> Tensor:
    noise = torch.randn(thoughts.shape, generator=torch.Generator().manual_seed(0))
    lengths: Tensor = torch.linalg.vector_norm(thoughts, dim=-1, keepdim=True)
    return normalize(noise, dim=-1) * lengths


ABLATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "noise": _noise,
    "shuffled": lambda thoughts: thoughts.roll(1, dims=0),
    "mean": lambda thoughts: thoughts.mean(dim=0, keepdim=True).expand_as(thoughts),
}
"""From the thoughts of all problems, (problems, thoughts, width), to what is fed in their place: nothing; a random
direction of the same length; the thoughts of another problem; the mean thought of all problems."""

AS_TRAINED = "as trained"


def ablation_names(num_thoughts: int) -> list[str]:
    """What `run_ablations` tries on a model of so many thoughts, after `AS_TRAINED`."""
    return [*ABLATIONS, *(f"k={fewer}" for fewer in range(num_thoughts))]


def run_ablations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, problems: Sequence[Problem], **settings: Any
) -> Iterator[tuple[str, list[Prediction]]]:
    """Evaluate undisturbed, under every control, and with k = 0 to one thought fewer than trained.

    Args:
        model: A model trained to think.
        tokenizer: Its tokenizer.
        task: Grades the answers.
        problems: What to ask; at least two.
        **settings: As `evaluate` takes them.

    Yields:
        The name of a control, `as trained` first and `k=0`, `k=1`, ... last, and its records.

    Raises:
        ConfigError: the model was not trained to think with continuous thoughts.
        DataError: there are fewer than two problems.
    """
    trained = thought_settings(model)
    if trained.filler != LATENT or not trained.num_thoughts:
        raise ConfigError("ablations replace continuous thoughts, and this model was not trained to have any.")
    if len(problems) < 2:
        raise DataError("ablations need at least two problems: one gets the thoughts of another.")
    recorder = ThoughtRecorder(len(problems))
    yield AS_TRAINED, evaluate(model, tokenizer, task, problems, thought_hook=recorder, **settings)
    for name, control in ABLATIONS.items():
        others = control(recorder.thoughts)

        def replace(rows: Sequence[int], number: int, thought: Tensor, others: Tensor = others) -> Tensor:
            return others[list(rows), number - 1, None].to(thought)

        yield name, evaluate(model, tokenizer, task, problems, thought_hook=replace, **settings)
    for fewer in range(trained.num_thoughts):
        yield f"k={fewer}", evaluate(model, tokenizer, task, problems, num_thoughts=fewer, **settings)
