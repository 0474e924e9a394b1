"""The tasks that cocot knows by name.

problems = cocot.tasks.get("prosqa").generate(1000, seed=0, mode="released")
"""

from __future__ import annotations

from cocot.errors import ConfigError
from cocot.settings.typed import choose, short
from cocot.tasks.gsm8k import GSM8k
from cocot.tasks.problem import Graph, Problem, Task
from cocot.tasks.prontoqa import ProntoQA
from cocot.tasks.prosqa import ProsQA

__all__ = ["TASKS", "Graph", "Problem", "Task", "get"]

TASKS: dict[str, Task] = {task.name: task for task in (ProsQA(), ProntoQA(), GSM8k())}


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"unknown task {short(name)}; {choose(name, TASKS)}")
    return TASKS[name]
