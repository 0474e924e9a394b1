"""The tasks that are known by name: those of cocot, and those that others register.

problems = cocot.tasks.get("prosqa").generate(1000, seed=0, mode="released")

Read next: `base.py`, the interface.
"""

from __future__ import annotations

from cocot.tasks.base import TASKS, Task, get, register
from cocot.tasks.problem import Graph, Problem

# Every task that comes with cocot; importing one registers it.
from cocot.tasks import prosqa, prontoqa, gsm8k  # isort: skip
from cocot.tasks.files import read_problems, write_problems

__all__ = [
    "TASKS",
    "Graph",
    "Problem",
    "Task",
    "get",
    "gsm8k",
    "prontoqa",
    "prosqa",
    "read_problems",
    "register",
    "write_problems",
]
