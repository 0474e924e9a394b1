"""Models and problems as they are at hand: in memory, or where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.errors import ConfigError
from cocot.modeling.loading import Source, load_here
from cocot.tasks.base import Task
from cocot.tasks.problem import Problem
from cocot.training.evaluation_problems import Selection, select_problems

Model = PreTrainedModel | Source
"""A model that was given thoughts; or a run folder, a model folder, an id on the Hub, the name of a bundled model."""
Problems = Sequence[Problem] | Selection | str | PathLike[str]
"""Problems; those that `cocot.select_problems` chose, with their grader; or a file of problems."""


def loaded(model: Model, tokenizer: PreTrainedTokenizerBase | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, on this process's device if they are still to be loaded.

    Raises:
        ConfigError: a model in memory is given without its tokenizer.
        ModelError: there is no such model.
    """
    if isinstance(model, str | PathLike):
        found, own = load_here(model)
        return found, own if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ConfigError("a model in memory is given together with its tokenizer: (model, tokenizer, ...).")
    return model, tokenizer


def chosen(model: Model, problems: Problems | None, task: str | Task | None, count: int) -> Selection:
    """Problems and their grader; what is not said follows from the model: see `cocot.select_problems`.

    Raises:
        ConfigError: there is no such task; or a grader is named for problems that have one.
    """
    if isinstance(problems, Selection):
        if task is not None:
            raise ConfigError("these problems were chosen together with their grader; leave task=... out.")
        return problems
    return select_problems(model, task=task, data=problems, count=count)
