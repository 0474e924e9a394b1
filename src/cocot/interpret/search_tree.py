"""The search inside a model: how likely each node of a problem's graph is as the next step after k = 0 ... K thoughts.

In: a model, a tokenizer, problems with graphs. Out: a `Search`: labelled arrays, and what the model writes from there.

    search = probe_search(model, tokenizer, task, problems)
    search.write("runs/demo/coconut/search")
    search.values[1][search.is_reachable].mean()       # after one thought

On disk a `Search` is a folder, with the arrays and texts of its attributes under their names. In two lines:

    arrays = safetensors.numpy.load_file("search/arrays.safetensors")
    texts = json.load(open("search/search.json"))

Source: arXiv 2412.06769, section 5.
Read next: `interpret/likelihood.py` (probabilities of texts), `tasks/graphs.py` (depth and height).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.data.encoding import encode_question
from cocot.errors import DataError, RunError
from cocot.evaluation.evaluate import evaluate
from cocot.interpret.likelihood import continuation_log_probs
from cocot.interpret.path_categories import categorise
from cocot.modeling.generation import ThoughtRecorder
from cocot.modeling.thought_settings import thought_settings
from cocot.system.files import new_folder, read_json, write_json
from cocot.tasks.base import Task
from cocot.tasks.files import problem_of
from cocot.tasks.graphs import depths, heights, mentioned
from cocot.tasks.problem import Graph, Problem, check_whole

SCHEMA = 1
_ARRAYS, _TEXTS = "arrays.safetensors", "search.json"
_NUM_NEAREST = 5
_MOST_THOUGHTS, _MOST_BATCH = 10_000, 1_000_000


@dataclass(frozen=True)
class Search:
    """What a model holds likely, by thought and node.

    Attributes:
        values: Probability of the node as the next step, (thoughts + 1, nodes), float32. Row k is after k thoughts.
        problem: Index of the node's problem, (nodes,), int32.
        node: The node's id in its problem's graph, (nodes,), int32.
        depth: Steps from the root, -1 where it does not lead, (nodes,), int32.
        height_shortest: Fewest steps down to a leaf, (nodes,), int32: one of the paper's two definitions.
        height_longest: Most steps down to a leaf, (nodes,), int32: the other one.
        problems: The problems. One without a graph has no nodes here; all else is known of it.
        outputs: Text that the model writes after k thoughts, by k and problem.
        correct: Whether that text ends in the right answer, (thoughts + 1, problems).
        thoughts: The thoughts themselves, as after K of them, (problems, thoughts, width), float32.
        nearest: The tokens that the head finds likeliest at each thought, by problem and thought, likeliest first.
        nearest_values: Their probabilities, (problems, thoughts, tokens), float32.
        embedding_norm: Mean length of the model's token embeddings.
    """

    values: NDArray[np.float32]
    problem: NDArray[np.int32]
    node: NDArray[np.int32]
    depth: NDArray[np.int32]
    height_shortest: NDArray[np.int32]
    height_longest: NDArray[np.int32]
    problems: list[Problem]
    outputs: list[list[str]]
    correct: NDArray[np.bool_]
    thoughts: NDArray[np.float32]
    nearest: list[list[list[str]]]
    nearest_values: NDArray[np.float32]
    embedding_norm: float

    @property
    def norms(self) -> NDArray[np.float32]:
        """Length of each thought, (problems, thoughts)."""
        return cast(NDArray[np.float32], np.linalg.norm(self.thoughts, axis=-1))

    @property
    def cosines(self) -> NDArray[np.float32]:
        """Cosine between each thought and the one before it, (problems, thoughts - 1)."""
        unit = self.thoughts / np.maximum(self.norms[..., None], np.finfo(np.float32).tiny)
        return cast(NDArray[np.float32], (unit[:, 1:] * unit[:, :-1]).sum(axis=-1))

    @property
    def is_reachable(self) -> NDArray[np.bool_]:
        """Whether the root leads to the node; not so the root itself, (nodes,)."""
        return self.depth > 0

    def probability_mass(self, k: int) -> dict[str, NDArray[np.float64]]:
        """How the probability of the next step is shared out after k thoughts, by problem.

        Only problems with a graph that still have a step to go count. The parts: `frontier`, the nodes max(1, k) steps
        below the root, which the next step can name; `reachable`, other nodes below it; `elsewhere`, all other nodes;
        `no node`.
        """
        goes_on = np.array([problem.graph is not None and len(problem.steps) > k for problem in self.problems])
        is_frontier = self.depth == max(1, k)
        parts = {
            "frontier": is_frontier,
            "reachable": self.is_reachable & ~is_frontier,
            "elsewhere": ~self.is_reachable,
        }
        sums = {
            name: np.bincount(self.problem, self.values[k] * part, len(self.problems))[goes_on]
            for name, part in parts.items()
        }
        return {**sums, "no node": 1 - np.sum(list(sums.values()), axis=0)}

    def categories(self, k: int) -> list[str]:
        """The paper's category (`path_categories.py`) of the output after k thoughts, for each problem with a graph."""
        given = zip(self.problems, self.outputs[k], self.correct[k], strict=True)
        return [categorise(item, output, k, bool(is_correct)) for item, output, is_correct in given if item.graph]

    def write(self, folder: str | Path) -> None:
        """Write the two files; an older search there is replaced once the new one is whole."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        texts = {name: value for name, value in values.items() if name not in arrays}
        with new_folder(Path(folder)) as place:
            save_file(arrays, place / _ARRAYS)
            problems = [problem.to_json() for problem in self.problems]
            write_json(place / _TEXTS, {"schema": SCHEMA, **texts, "problems": problems})

    @classmethod
    def read(cls, folder: str | Path) -> Search:
        """What `write` wrote.

        Raises:
            RunError: there is no search in the folder, or another version of cocot wrote it.
        """
        file = Path(folder) / _TEXTS
        if not file.is_file():
            raise RunError(f"{folder} holds no search.json; make one with `cocot probe`.")
        texts = read_json(file, "schema", "problems")
        if texts["schema"] != SCHEMA:
            raise RunError(
                f"{file} is of schema {texts['schema']}, and this version reads {SCHEMA}; run `cocot probe` again."
            )
        problems = [problem_of(item, f"{file}, problem {index}") for index, item in enumerate(texts["problems"])]
        others = {field.name: texts[field.name] for field in fields(cls) if field.name in texts}
        arrays: dict[str, Any] = load_file(file.with_name(_ARRAYS))
        return cls(**{**arrays, **others, "problems": problems})


def probe_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    num_thoughts: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
) -> Search:
    """Measure every node of every problem after k = 0 ... K thoughts.

    The model switches to words after k thoughts. What it would write next is the next step; its text before the name of
    a node is given (`Every`, say), and the value of a node is the probability of its name there: the product over the
    name's tokens. Without thoughts that is the first step's end (its beginning is the root), after k thoughts the
    beginning of step k + 1, so row k is about the nodes max(1, k) steps below the root. Where a problem has fewer
    steps, the text of its last step is given.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        task: Grades the answers.
        problems: Problems; those with a graph have steps. Of the others only answers and thoughts are kept.
        num_thoughts: K; None for as many as the model was trained with.
        batch_size: Problems a batch.
        max_new_tokens: Longest text after the thoughts, in tokens; None as in `evaluate`.

    Raises:
        ConfigError: a number is no whole number, too small or too large.
        DataError: there are no problems, or one has a graph and no steps, or its graph has a cycle.
        ModelError: the model was not given thoughts.
    """
    if not problems:
        raise DataError("there are no problems to probe.")
    count = (thought_settings(model).num_thoughts or 0) if num_thoughts is None else num_thoughts
    check_whole("the number of thoughts", count, 0, _MOST_THOUGHTS)
    check_whole("batch_size", batch_size, 1, _MOST_BATCH)
    with_graph = [index for index, problem in enumerate(problems) if problem.graph]
    graphs = [_graph(index, problems[index]) for index in with_graph]
    values, outputs, correct = [], [], []
    for k in range(count + 1):
        values.append(_values(model, tokenizer, [problems[index] for index in with_graph], graphs, k, batch_size))
        recorder = ThoughtRecorder(len(problems))
        records = evaluate(
            model,
            tokenizer,
            task,
            problems,
            num_thoughts=k,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            thought_hook=recorder if k else None,
        )
        outputs.append([record.output for record in records])
        correct.append([record.is_correct for record in records])
    sizes = [len(graph.symbols) for graph in graphs]
    thoughts = recorder.thoughts
    nearest, nearest_values = _nearest(model, tokenizer, thoughts)
    return Search(
        values=np.stack(values),
        problem=np.repeat(np.array(with_graph, dtype=np.int32), sizes),
        node=np.array([node for size in sizes for node in range(size)], dtype=np.int32),
        depth=np.array([depth for graph in graphs for depth in depths(graph)], dtype=np.int32),
        height_shortest=np.array([height for graph in graphs for height in heights(graph, min)], dtype=np.int32),
        height_longest=np.array([height for graph in graphs for height in heights(graph, max)], dtype=np.int32),
        problems=list(problems),
        outputs=outputs,
        correct=np.array(correct),
        thoughts=thoughts.numpy(),
        nearest=nearest,
        nearest_values=nearest_values,
        embedding_norm=_embedding_norm(model),
    )


def _embedding_norm(model: Any) -> float:
    weight = model.get_input_embeddings().weight.detach()
    return float(torch.linalg.vector_norm(weight.float(), dim=-1).mean())


@torch.inference_mode()
def _nearest(
    model: Any, tokenizer: PreTrainedTokenizerBase, thoughts: Tensor
) -> tuple[list[list[list[str]]], NDArray[np.float32]]:
    """What the head reads in each thought: the likeliest tokens and their probabilities."""
    if not thoughts.numel():
        return [[] for _ in thoughts], np.zeros((len(thoughts), 0, _NUM_NEAREST), np.float32)
    head = model.get_output_embeddings()
    found = head(thoughts.to(head.weight)).float().softmax(-1).topk(_NUM_NEAREST)
    texts = [[[str(tokenizer.decode([token])) for token in row] for row in rows] for rows in found.indices.tolist()]
    return texts, cast(NDArray[np.float32], found.values.cpu().numpy())


def _graph(index: int, problem: Problem) -> Graph:
    if problem.graph is None or not problem.steps:
        raise DataError(
            f"problem {index} ({problem.question[:40]!r}...) has no steps to find in its graph; "
            "give it steps, or leave the graph out."
        )
    return problem.graph


def _values(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    graphs: Sequence[Graph],
    k: int,
    batch_size: int,
) -> NDArray[np.float32]:
    """Row k of `Search.values`."""
    settings = thought_settings(model)
    was_training = model.training
    model.eval()
    rows = [torch.empty(0)]  # where no problem has a graph
    for start in range(0, len(problems), batch_size):
        prompts, names = [], []
        for problem, graph in zip(problems[start : start + batch_size], graphs[start:], strict=False):
            before, texts = _names(problem, graph, k, tokenizer)
            prompts.append([*encode_question(problem.question, k, settings, tokenizer), *before])
            names.append(texts)
        rows += continuation_log_probs(model, prompts, names)
    model.train(was_training)
    return torch.cat([row.cpu() for row in rows]).exp().numpy().astype(np.float32)


def _names(
    problem: Problem, graph: Graph, k: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the text before a node's name in the next step, and of every node's name there."""
    step = problem.steps[min(k, len(problem.steps) - 1)]
    places = mentioned(graph, step)
    which = 1 if k == 0 else 0
    if len(places) <= which:
        raise DataError(f"step {step!r} does not name two nodes of its problem's graph.")
    before = step[: places[which].start]
    given = tokenizer.encode(before.rstrip(), add_special_tokens=False) if before.strip() else []
    texts = [tokenizer.encode(before + name, add_special_tokens=False)[len(given) :] for name in graph.symbols]
    return given, texts
