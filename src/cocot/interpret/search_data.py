"""What is known of the search inside a model: labelled arrays and texts, and the two files that hold them.

In: a folder. Out: a `SearchData`: probabilities, thoughts and outputs, by thought, problem and node.

    search = SearchData.read("runs/demo/coconut/search")
    search.values[1][search.is_reachable].mean()       # after one thought

On disk it is a folder, with the arrays and texts of its attributes under their names. In two lines:

    arrays = safetensors.numpy.load_file("search/arrays.safetensors")
    texts = json.loads(Path("search/search.json").read_text())

Read next: `interpret/search_tree.py`, which measures and shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cocot.errors import RunError
from cocot.interpret.path_categories import categorise
from cocot.system.files import new_folder, read_json, write_json
from cocot.tasks.files import problem_of
from cocot.tasks.graphs import is_chain_of_names
from cocot.tasks.problem import Problem

SCHEMA = 1
_ARRAYS, _TEXTS = "arrays.safetensors", "search.json"


@dataclass(frozen=True, repr=False)
class SearchData:
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

    def __repr__(self) -> str:
        name, most = type(self).__name__, len(self.values) - 1
        return f"{name}({len(self.problems):,} problems, {self.node.size:,} nodes, after 0 to {most} thoughts)"

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

    def next_depth(self, k: int) -> NDArray[np.int32]:
        """Steps from the root to the nodes that the next step after k thoughts leads to, for the problem of each node.

        Step k + 1 begins with a node k steps below the root, and without thoughts the first step ends with one a step
        below; where a step is a single name, it is that of a node k + 1 steps below. (nodes,).
        """
        of_problem = [
            k + 1 if item.graph and is_chain_of_names(item.graph, item.steps) else max(1, k) for item in self.problems
        ]
        return np.array(of_problem, dtype=np.int32)[self.problem]

    def probability_mass(self, k: int) -> dict[str, NDArray[np.float64]]:
        """How the probability of the next step is shared out after k thoughts, by problem.

        Only problems with a graph that still have a step to go count. The parts: `frontier`, the nodes that the
        next step can lead to (`next_depth`); `reachable`, other nodes below it; `elsewhere`, all other nodes;
        `no node`.
        """
        goes_on = np.array([problem.graph is not None and len(problem.steps) > k for problem in self.problems])
        is_frontier = self.depth == self.next_depth(k)
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

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Whether a folder is one that `write` wrote."""
        return (Path(folder) / _TEXTS).is_file()

    @classmethod
    def read(cls, folder: str | Path) -> Self:
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
