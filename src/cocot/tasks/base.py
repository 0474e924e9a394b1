"""What a task is: how its problems are made and its answers graded. The interface and the registry.

A task is one object of a subclass of `Task`. A name is enough for data of one's own whose answers are right word for
word; everything else has a default:

    @cocot.tasks.register
    class Chess(cocot.Task):
        name = "chess"

        def is_correct(self, problem, text):
            return text.strip().lower() == problem.answer.lower()

`data.task: chess` in a recipe, or `--task chess`, names it. A task outside of this package is registered by this
decorator; an installed package can also name such a class as an entry point of the group `cocot.tasks`, which the
command line and every training process then know too.
Read next: `prosqa.py`, a task with a generator; `files.py`, problems in files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from cocot.errors import ConfigError
from cocot.registry import Registry
from cocot.tasks.problem import Problem, mean_statistics


class Task:
    """A family of problems. Subclass it, say what differs from the defaults, and `register` the class.

    Attributes:
        name: By which recipes, models and the command line know it. All that must be given.
    """

    name: str = ""

    def is_correct(self, problem: Problem, text: str) -> bool:
        """Whether a model's answer solves a problem. By default: word for word; only white space is free.

        Args:
            problem: The problem; its `answer` is spelled as the model's tokenizer spells it.
            text: What the model wrote after the answer mark `### `; all that it wrote, where it wrote no mark.
        """
        return text.split() == problem.answer.split()

    def generate(self, count: int, *, seed: int, **settings: Any) -> list[Problem]:
        """Make problems; optional: a task without a generator learns from files alone.

        Args:
            count: How many.
            seed: Any whole number. The same arguments must give the same problems, in every process.
            **settings: What `data.generate` of a recipe says, and options of the command line such as `--mode`.

        Raises:
            ConfigError: the task has no generator, or the generator no such setting.
        """
        raise ConfigError(
            f"the task {self.name} has no generator; name files of problems: data.train and data.valid in a recipe, "
            "--data on the command line, problems=... in Python."
        )

    def statistics(self, problems: Sequence[Problem]) -> dict[str, float]:
        """Statistics worth printing beside a data set; by default the mean number of steps.

        One whose name begins with `shortcut` is the accuracy of a rule that does not reason: tables show it.

        Args:
            problems: Problems that were generated, or read from a file.

        Raises:
            DataError: there are no problems, or they are of another form than the task's own.
        """
        return mean_statistics(problems, lambda index, problem: {"steps": len(problem.steps)})

    def frontiers(self, problem: Problem) -> tuple[tuple[str, ...], ...]:
        """What a search has reached after each of its steps; by default nothing: the task does not say.

        The methods `frontier` and `soft` train on it.

        Args:
            problem: The problem, as generated or read from a file.

        Returns:
            For k = 1, 2, ... the words (names in the question) that are right after k steps of the search.
        """
        return ()

    def render(self, problem: Problem, rendering: str, seed: int) -> Problem:
        """Write a problem down in another rendering; by default refused: the task has one rendering only.

        Args:
            problem: The problem, as generated or read from a file.
            rendering: Name of one of the task's renderings.
            seed: Any whole number; seeds what the rendering draws.

        Raises:
            ConfigError: the task cannot write problems in this rendering.
            DataError: the problem has nothing from which it could be written again.
        """
        raise ConfigError(f"the problems of {self.name} cannot be written in a rendering; leave rendering out.")


TASKS: Registry[Task] = Registry("task", "cocot.tasks")
TaskClass = TypeVar("TaskClass", bound=type[Task])


def register(kind: TaskClass) -> TaskClass:
    """Make a task known by its name; a decorator for its class, which raises as `Registry.register_class`."""
    TASKS.register_class(kind)
    return kind


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is no such task.
    """
    return TASKS[name]
