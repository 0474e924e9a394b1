"""The search inside a model: how likely each node of a problem's graph is as the next step after k = 0 ... K thoughts.

In: a model, a tokenizer, problems with graphs. Out: a `SearchTree`: labelled arrays, and what the model writes from
there; printed, its tables; in a notebook, the tables and a tree.

    search = probe_search(model, tokenizer, task, problems)
    search.write("runs/demo/coconut/search")
    search.tree(3)                                     # in a notebook: problem 3, thought by thought

Source: arXiv 2412.06769, section 5.
Read next: `interpret/search_data.py` (the arrays), `interpret/likelihood.py` (probabilities of texts),
`tasks/graphs.py` (depth and height).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocot.data.encoding import encode_question
from cocot.display.html import block, heading, paragraph, table
from cocot.errors import ConfigError, DataError
from cocot.evaluation.evaluate import evaluate
from cocot.interpret.drawing import drawing
from cocot.interpret.likelihood import continuation_log_probs
from cocot.interpret.search_data import SearchData
from cocot.interpret.terminal import describe, tables, tree_text
from cocot.interpret.tree_html import tree_html
from cocot.modeling.generation import ThoughtRecorder
from cocot.modeling.thought_settings import thought_settings
from cocot.tasks.base import Task
from cocot.tasks.graphs import depths, heights, is_chain_of_names, mentioned
from cocot.tasks.problem import Graph, Problem, check_whole

_NUM_NEAREST = 5
_MOST_THOUGHTS, _MOST_BATCH = 10_000, 1_000_000


class SearchTree(SearchData):
    """What a model holds likely, by thought and node; printed as tables, drawn as trees."""

    def __str__(self) -> str:
        return describe(self)

    def _repr_html_(self) -> str:
        """For notebooks: every table, and the tree of the first problem that has one."""
        parts = [part for title, rows in tables(self).items() for part in (heading(title), table(rows))]
        first = next((index for index, problem in enumerate(self.problems) if problem.graph), None)
        drawn = [] if first is None else [tree_html(drawing(self, first), first)]
        hint = paragraph(f"tree(0) to tree({len(self.problems) - 1}) of this object draw each problem.")
        return block(*drawn, hint, *parts)

    def tree(self, index: int) -> ProblemTree:
        """One problem, to be printed or to be looked at in a notebook.

        Raises:
            ConfigError: there is no such problem.
        """
        if not 0 <= index < len(self.problems):
            raise ConfigError(f"there is no problem {index}: the problems are 0 to {len(self.problems) - 1}.")
        return ProblemTree(self, index)


@dataclass(frozen=True)
class ProblemTree:
    """One problem of a search.

    Attributes:
        search: The search.
        index: Which of its problems, from 0.
    """

    search: SearchData
    index: int

    def __str__(self) -> str:
        return tree_text(self.search, self.index)

    def _repr_html_(self) -> str:
        """For notebooks: the tree after each number of thoughts."""
        return block(tree_html(drawing(self.search, self.index), self.index))


def probe_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    num_thoughts: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
) -> SearchTree:
    """Measure every node of every problem after k = 0 ... K thoughts.

    The model switches to words after k thoughts. What it would write next is the next step; its text before the name of
    a node is given (`Every`, say), and the value of a node is the probability of its name there: the product over the
    name's tokens. Without thoughts that is the first step's end (its beginning is the root), after k thoughts the
    beginning of step k + 1, so row k is about the nodes max(1, k) steps below the root; where a step is a single name,
    row k is about those k + 1 steps below. Where a problem has fewer steps, the text of its last step is given.

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
    return SearchTree(
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
    """Row k of `SearchTree.values`."""
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
    which = 0 if k or is_chain_of_names(graph, problem.steps) else 1
    if len(places) <= which:
        raise DataError(
            f"step {step!r} does not name two nodes of its graph, an edge, nor one alone, where it arrives."
        )
    before = step[: places[which].start]
    given = tokenizer.encode(before.rstrip(), add_special_tokens=False) if before.strip() else []
    texts = [tokenizer.encode(before + name, add_special_tokens=False)[len(given) :] for name in graph.symbols]
    return given, texts
