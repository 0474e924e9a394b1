"""cocot: language models that reason in a continuous latent space (arXiv 2412.06769).

The names below are the public API; each is imported when it is first used, so that `import cocot` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocot import tasks
    from cocot.modeling.generation import Answer, answer
    from cocot.modeling.latent_model import give_thoughts
    from cocot.modeling.loading import load
    from cocot.tasks.problem import Problem

__version__ = "0.1.0"

_HOME = {
    "Answer": "cocot.modeling.generation",
    "Problem": "cocot.tasks.problem",
    "answer": "cocot.modeling.generation",
    "give_thoughts": "cocot.modeling.latent_model",
    "load": "cocot.modeling.loading",
}
__all__ = ["Answer", "Problem", "answer", "give_thoughts", "load", "tasks"]


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return import_module("cocot.tasks")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cocot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
