"""Accuracy, tokens and seconds of a model on problems, with one record a problem.

In: a model, its tokenizer, a task's problems. Out: `Prediction`s (one JSONL line each) and their `Metrics`.

    records = evaluate(model, tokenizer, tasks.get("prosqa"), problems)
    summary = compute_metrics(records)

Read next: `experiments/tables.py` (summaries -> a table).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object  # type: ignore[import-untyped]
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.data.encoding import as_written, num_written, with_head_room
from cocot.errors import DataError, RunError
from cocot.evaluation.statistics import wilson_interval
from cocot.modeling.generation import MOST_NEW_TOKENS, HookFactory, answer
from cocot.system.files import write_text
from cocot.system.processes import processes
from cocot.tasks.base import Task
from cocot.tasks.problem import Problem


@dataclass(frozen=True, slots=True)
class Prediction:
    """One problem and what the model made of it; `is_complete`, `num_tokens`, `seconds` as in `Answer`.

    `num_steps` are those of the written solution; None in records of before they were kept.
    """

    question: str
    expected: str
    answer: str
    output: str
    is_correct: bool
    num_tokens: int
    num_thoughts: int
    is_complete: bool
    seconds: float
    num_steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as one line of a JSONL file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Records in one row.

    Attributes:
        accuracy: Share of correct answers.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end of it.
        tokens: Generated tokens a problem, thoughts included, mean.
        seconds_per_question: Wall-clock seconds a problem, mean.
        problems: How many problems.
        cut: How many answers were cut because they had reached the longest that was allowed.
    """

    accuracy: float
    low: float
    high: float
    tokens: float
    seconds_per_question: float
    problems: int
    cut: int

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON-ready values."""
        return asdict(self)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    num_thoughts: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    shows_progress: bool = False,
    thought_hook: HookFactory | None = None,
    use_generation_config: bool = False,
) -> list[Prediction]:
    """Ask the model every problem and grade its answers.

    An answer is compared with the expected one as the tokenizer spells it: what a model would write that gives exactly
    the answer that training shows it.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        task: Grades the answers.
        problems: What to ask.
        num_thoughts: Thoughts before each answer; None for as many as the model was trained with.
        batch_size: Questions a batch.
        max_new_tokens: Longest text after the thoughts, in tokens; None for as long as the longest written solution,
            with head room, at least 256, as far as the context has room.
        shows_progress: Whether to show a bar with the time left.
        thought_hook: What becomes of a thought before it is fed back; indices are those of `problems`.
        use_generation_config: Whether to decode as the model's `generation_config.json` says; see `answer`.

    Raises:
        DataError: there are no problems, or `answer` cannot use one.
        ModelError: the model was not given thoughts.
    """
    if not problems:
        raise DataError("there are no problems to evaluate on.")
    questions = [problem.question for problem in problems]
    graded = _as_spelled(problems, tokenizer)
    bar = tqdm(total=len(questions), unit="question", disable=not shows_progress)
    with bar:
        answers = answer(
            model,
            tokenizer,
            questions,
            num_thoughts,
            max_new_tokens,
            batch_size,
            on_batch=bar.update,
            thought_hook=thought_hook,
            use_generation_config=use_generation_config,
            most_new_tokens=longest_answer(problems, tokenizer),
        )
    return [
        Prediction(
            question=problem.question,
            expected=problem.answer,
            answer=given.text,
            output=given.output,
            is_correct=task.is_correct(spelled, given.text),
            num_tokens=given.num_tokens,
            num_thoughts=given.num_thoughts,
            is_complete=given.is_complete,
            seconds=given.seconds,
            num_steps=len(problem.steps),
        )
        for problem, spelled, given in zip(problems, graded, answers, strict=True)
    ]


def longest_answer(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens to wait for an answer, where nothing else is said and the context has room for as many."""
    return max(MOST_NEW_TOKENS, with_head_room(max(num_written(problem, tokenizer) for problem in problems)))


def _as_spelled(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """The problems with their answers as the tokenizer spells them; what it cannot spell, no model can answer."""
    spelled, lacking = [], []
    for problem in problems:
        try:
            spelled.append(replace(problem, answer=as_written(problem.answer, tokenizer)))
        except DataError:
            spelled.append(problem)
            lacking.append(problem.answer)
    if lacking:
        logging.getLogger("cocot").warning(
            "%d of %d expected answers, such as %r, hold what the model's vocabulary lacks; it cannot give them, and "
            "they count as wrong.",
            len(lacking),
            len(problems),
            lacking[0],
        )
    return spelled


def evaluate_together(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, problems: Sequence[Problem], **settings: Any
) -> list[Prediction]:
    """`evaluate`, with the problems shared out over the processes that `torchrun` started.

    Args:
        model: A model that was given thoughts; the same in every process, or one that they hold together.
        tokenizer: Its tokenizer.
        task: Grades the answers.
        problems: What to ask; the same in every process.
        **settings: As `evaluate` takes them.

    Returns:
        The records of all problems, in their order, to every process.
    """
    here = processes()
    own = problems[here.process_index :: here.num_processes]
    # As many for every process: those that hold a model together must run its layers equally often.
    filled = [*own, *problems[: math.ceil(len(problems) / here.num_processes) - len(own)]]
    shares = gather_object([evaluate(model, tokenizer, task, filled, **settings)])
    return [shares[index % len(shares)][index // len(shares)] for index in range(len(problems))]


def write_predictions(path: Path, records: Sequence[Prediction]) -> None:
    """Write one JSON line a problem; an existing file is replaced only once the new one is whole."""
    write_text(path, "".join(json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records))


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote.

    Raises:
        RunError: the file holds something else, or another version of cocot wrote it.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [Prediction(**json.loads(line)) for line in lines]
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} does not hold records as this version writes them ({error}); remove it, and the same command "
            "asks the questions again."
        ) from error


def compute_metrics(records: Sequence[Prediction]) -> Metrics:
    """Accuracy with its interval, and the means of tokens and seconds."""
    num_correct = sum(record.is_correct for record in records)
    low, high = wilson_interval(num_correct, len(records))
    return Metrics(
        accuracy=num_correct / len(records),
        low=low,
        high=high,
        tokens=fmean(record.num_tokens for record in records),
        seconds_per_question=fmean(record.seconds for record in records),
        problems=len(records),
        cut=sum(not record.is_complete for record in records),
    )


def by_steps(records: Sequence[Prediction]) -> dict[int, list[Prediction]]:
    """Records sorted by the steps of the written solution, the fewest first; empty where all take equally many."""
    known = sorted({record.num_steps for record in records if record.num_steps is not None})
    groups = {steps: [record for record in records if record.num_steps == steps] for steps in known}
    return groups if len(groups) > 1 else {}
