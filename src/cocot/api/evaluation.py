"""`cocot.evaluate`: how often a model is right, and whether its thoughts matter.

In: a model, problems. Out: an `Evaluation`, which prints as `cocot eval` does and is a table in a notebook.

    evaluation = cocot.evaluate("prosqa-small", count=100)
    evaluation.metrics.accuracy

Read next: `evaluation/evaluate.py`, which asks and grades.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.api.models import Model, Problems, chosen, loaded
from cocot.display.html import block, paragraph, table
from cocot.errors import ConfigError
from cocot.evaluation.ablations import run_ablations
from cocot.evaluation.evaluate import (
    Metrics,
    Prediction,
    by_steps,
    compute_metrics,
    evaluate_together,
    longest_answer,
    write_predictions,
)
from cocot.experiments.tables import Row, cells, plain, shortcuts_of
from cocot.modeling.thought_settings import thought_settings
from cocot.system.processes import processes
from cocot.tasks.base import Task
from cocot.training.evaluation_problems import Selection


@dataclass(frozen=True)
class Evaluation:
    """What a model answered, and how often it was right.

    Attributes:
        results: Predictions by what was asked: the model's name; with ablations `as trained`, `zeros`, ..., `k=0`, ...
        conditions: What decides the numbers, by name, human-readable.
        with_ablations: Whether the model was also asked with other thoughts, and with fewer.
        shortcuts: With ablations, the accuracy of rules that do not reason on the same problems, by name.
    """

    results: Mapping[str, list[Prediction]]
    conditions: Mapping[str, str]
    with_ablations: bool = False
    shortcuts: Mapping[str, float] = field(default_factory=dict)

    @property
    def predictions(self) -> list[Prediction]:
        """Those of the model itself, one a problem."""
        return next(iter(self.results.values()))

    @property
    def metrics(self) -> Metrics:
        """Accuracy, tokens and seconds of the model itself."""
        return compute_metrics(self.predictions)

    @property
    def rows(self) -> list[Row]:
        """One row of metrics for each of the results, as in `table.json`."""
        axis = "thoughts" if self.with_ablations else "model"
        return [
            {"values": {axis: name}, "tests": {"test": compute_metrics(records).to_json()}}
            for name, records in self.results.items()
        ]

    @property
    def rows_by_steps(self) -> list[Row]:
        """One row for each number of steps that written solutions take; empty if all take as many."""
        return [
            {"values": {"steps": str(steps)}, "tests": {"test": compute_metrics(records).to_json()}}
            for steps, records in by_steps(self.predictions).items()
        ]

    @property
    def notes(self) -> list[str]:
        """Lines below the table: with ablations what shortcuts reach, then what decides the numbers."""
        lines = [f"{name}: {value:.1%}" for name, value in self.shortcuts.items()]
        if self.with_ablations and not lines:
            lines = ["no shortcuts are known for these problems"]
        return [*lines, "; ".join(f"{name}: {value}" for name, value in self.conditions.items())]

    def write(self, path: str | PathLike[str]) -> None:
        """Write one JSON line a problem; with ablations, into a file for each, its name after the stem of `path`.

        Raises:
            RunError: a file cannot be written.
        """
        place = Path(path)
        for name, records in self.results.items():
            own = place.with_stem(f"{place.stem}.{name.replace(' ', '_')}") if self.with_ablations else place
            write_predictions(own, records)

    def __str__(self) -> str:
        return "\n".join([self.tables, *self.notes])

    @property
    def tables(self) -> str:
        """The rows for a terminal; below them those by the steps of the written solution, if these differ."""
        return "\n\n".join(plain(rows) for rows in (self.rows, self.rows_by_steps) if rows)

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(f'{name}: {compute_metrics(own)}' for name, own in self.results.items())})"

    def _repr_html_(self) -> str:
        """For notebooks: the table."""
        tables = [table(cells(rows)) for rows in (self.rows, self.rows_by_steps) if rows]
        return block(*tables, *map(paragraph, self.notes))


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase | None = None,
    problems: Problems | None = None,
    *,
    task: str | Task | None = None,
    count: int = 1000,
    num_thoughts: int | None = None,
    ablations: bool = False,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    use_generation_config: bool = False,
    on_result: Callable[[Evaluation], Any] | None = None,
) -> Evaluation:
    """Ask a model problems and grade its answers; processes of one launch share the questions out.

    Args:
        model: A model in memory, or where one lies: a run folder, a model folder, an id on the Hub, a bundled name.
        tokenizer: That of a model in memory.
        problems: Problems, or a file of them; None for the run's validation file, else generated ones of its kind.
        task: A task, or its name; None for the one that the model was trained for.
        count: How many problems to generate, where none are given.
        num_thoughts: Thoughts before each answer; None for as many as the model was trained with.
        ablations: Whether to ask also with other thoughts, and with fewer: do they matter?
        batch_size: Questions a batch.
        max_new_tokens: Longest answer in tokens; None for as long as the longest written solution, with head room, at
            least 256, as far as the context has room.
        use_generation_config: Whether to decode as the model's `generation_config.json` says, not greedily.
        on_result: Called with the evaluation so far whenever one more of the results is there.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: there are no problems, or one does not fit.
        ModelError: there is no such model, or it was not given thoughts.
        RunError: files of the model or of the run are not what was written there.
    """
    if ablations and num_thoughts is not None:
        raise ConfigError("ablations try every number of thoughts; leave num_thoughts (--thoughts) out.")
    here = processes()
    if ablations and here.num_processes > 1:
        raise ConfigError("ablations run in one process.")
    selection = chosen(model, problems, task, count)
    name = Path(fspath(model)).name if isinstance(model, str | PathLike) else "model"
    found, tokenizer = loaded(model, tokenizer)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "use_generation_config": use_generation_config,
        "shows_progress": here.is_main_process,
    }
    asked = (found, tokenizer, selection.task, selection.problems)
    results: Iterable[tuple[str, list[Prediction]]]
    if ablations:
        results = run_ablations(*asked, **settings)
    else:
        results = [(name, evaluate_together(*asked, num_thoughts=num_thoughts, **settings))]
    shortcuts = shortcuts_of(selection.task, selection.problems) if ablations else {}
    conditions = {
        "graded as": selection.grader,
        "thoughts": "as in the table" if ablations else _num_thoughts(found, num_thoughts),
        "decoding": "as generation_config.json says" if use_generation_config else "greedy",
        "longest answer": _longest(selection, tokenizer, max_new_tokens),
        "problems": selection.source,
    }
    known: dict[str, list[Prediction]] = {}
    for title, records in results:
        known[title] = records
        if on_result is not None:
            on_result(Evaluation(dict(known), conditions, ablations, shortcuts))
    return Evaluation(known, conditions, ablations, shortcuts)


def _num_thoughts(model: PreTrainedModel, asked: int | None) -> str:
    return str(thought_settings(model).num_thoughts if asked is None else asked)


def _longest(selection: Selection, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> str:
    if asked is not None:
        return f"{asked} tokens"
    return f"{longest_answer(selection.problems, tokenizer)} tokens, if the context has room"
