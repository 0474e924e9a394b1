"""`cocot.probe`: what a model thinks of every node of a search, thought by thought.

In: a model, problems. Out: a `SearchTree`, which prints as `cocot probe` does and draws itself in a notebook.

    search = cocot.probe("prosqa-small", count=20)
    search.tree(3)

Read next: `interpret/search_tree.py`, which measures it.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from cocot.api.models import Model, Problems, chosen, loaded
from cocot.interpret.search_tree import SearchTree, probe_search
from cocot.tasks.base import Task


def probe(
    model: Model,
    tokenizer: PreTrainedTokenizerBase | None = None,
    problems: Problems | None = None,
    *,
    task: str | Task | None = None,
    count: int = 200,
    num_thoughts: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
) -> SearchTree:
    """Measure how likely each node of each problem's graph is as the next step, after k = 0 ... K thoughts.

    Args:
        model: As for `evaluate`, like the next four.
        tokenizer: That of a model in memory.
        problems: Problems, or a file of them.
        task: A task, or its name.
        count: How many problems to generate, where none are given.
        num_thoughts: The largest K; None for as many as the model was trained with.
        batch_size: Problems a batch.
        max_new_tokens: Longest text after the thoughts, in tokens.

    Raises:
        ConfigError: a number is not whole, too small or too large.
        DataError: there are no problems, or one of them cannot be probed (`interpret.search_tree.probe_search`).
        ModelError: there is no such model, or it was not given thoughts.
    """
    selection = chosen(model, problems, task, count)
    return probe_search(
        *loaded(model, tokenizer),
        selection.task,
        selection.problems,
        num_thoughts=num_thoughts,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
