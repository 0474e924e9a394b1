"""cocot: language models that reason in a continuous latent space (arXiv 2412.06769).

The names below are the public API; each is imported when it is first used, so that `import cocot` stays cheap.

    model, tokenizer = cocot.load("prosqa-small")
    cocot.evaluate(model, tokenizer, count=100)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cocot.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers; tests/test_public_api.py compares it with the table
    from cocot import errors as errors
    from cocot import methods as methods
    from cocot import tasks as tasks
    from cocot.api.benchmark import benchmark as benchmark
    from cocot.api.evaluation import Evaluation as Evaluation
    from cocot.api.evaluation import evaluate as evaluate
    from cocot.api.pages import report as report
    from cocot.api.probing import probe as probe
    from cocot.api.studies import compare as compare
    from cocot.api.studies import describe_study as describe_study
    from cocot.api.studies import reproduce as reproduce
    from cocot.api.training import describe_training as describe_training
    from cocot.api.training import train as train
    from cocot.errors import CocotError as CocotError
    from cocot.errors import ConfigError as ConfigError
    from cocot.errors import DataError as DataError
    from cocot.errors import Interrupted as Interrupted
    from cocot.errors import ModelError as ModelError
    from cocot.errors import RunError as RunError
    from cocot.evaluation.evaluate import Metrics as Metrics
    from cocot.evaluation.evaluate import Prediction as Prediction
    from cocot.experiments.study import shipped_studies as shipped_studies
    from cocot.experiments.tables import Table as Table
    from cocot.interpret.search_tree import SearchTree as SearchTree
    from cocot.interpret.thought_words import read_thoughts as read_thoughts
    from cocot.methods.base import CurriculumConfig as CurriculumConfig
    from cocot.methods.base import Method as Method
    from cocot.methods.phases import Phase as Phase
    from cocot.modeling.config import InitConfig as InitConfig
    from cocot.modeling.config import LoraSettings as LoraSettings
    from cocot.modeling.config import ModelConfig as ModelConfig
    from cocot.modeling.generation import Answer as Answer
    from cocot.modeling.generation import answer as answer
    from cocot.modeling.latent_model import give_thoughts as give_thoughts
    from cocot.modeling.loading import load as load
    from cocot.serving.export import export as export
    from cocot.serving.export import prompt_embeddings as prompt_embeddings
    from cocot.serving.export import write_embeddings as write_embeddings
    from cocot.tasks.base import Task as Task
    from cocot.tasks.files import read_problems as read_problems
    from cocot.tasks.files import write_problems as write_problems
    from cocot.tasks.problem import Graph as Graph
    from cocot.tasks.problem import Problem as Problem
    from cocot.training.config import DataConfig as DataConfig
    from cocot.training.config import RunConfig as RunConfig
    from cocot.training.config import TrainConfig as TrainConfig
    from cocot.training.evaluation_problems import Selection as Selection
    from cocot.training.evaluation_problems import select_problems as select_problems
    from cocot.training.recipes import describe_fields as describe_fields
    from cocot.training.recipes import read_recipe as read_recipe
    from cocot.training.recipes import shipped_recipes as shipped_recipes
    from cocot.training.run_folder import RunFolder as RunFolder
    from cocot.training.run_folder import environment as environment

_HOMES = {
    "Answer": "cocot.modeling.generation",
    "CocotError": "cocot.errors",
    "ConfigError": "cocot.errors",
    "CurriculumConfig": "cocot.methods.base",
    "DataConfig": "cocot.training.config",
    "DataError": "cocot.errors",
    "Evaluation": "cocot.api.evaluation",
    "Graph": "cocot.tasks.problem",
    "InitConfig": "cocot.modeling.config",
    "Interrupted": "cocot.errors",
    "LoraSettings": "cocot.modeling.config",
    "Method": "cocot.methods.base",
    "Metrics": "cocot.evaluation.evaluate",
    "ModelConfig": "cocot.modeling.config",
    "ModelError": "cocot.errors",
    "Phase": "cocot.methods.phases",
    "Prediction": "cocot.evaluation.evaluate",
    "Problem": "cocot.tasks.problem",
    "RunConfig": "cocot.training.config",
    "RunError": "cocot.errors",
    "RunFolder": "cocot.training.run_folder",
    "SearchTree": "cocot.interpret.search_tree",
    "Selection": "cocot.training.evaluation_problems",
    "Table": "cocot.experiments.tables",
    "Task": "cocot.tasks.base",
    "TrainConfig": "cocot.training.config",
    "answer": "cocot.modeling.generation",
    "benchmark": "cocot.api.benchmark",
    "compare": "cocot.api.studies",
    "describe_fields": "cocot.training.recipes",
    "describe_study": "cocot.api.studies",
    "describe_training": "cocot.api.training",
    "environment": "cocot.training.run_folder",
    "errors": "cocot.errors",
    "evaluate": "cocot.api.evaluation",
    "export": "cocot.serving.export",
    "give_thoughts": "cocot.modeling.latent_model",
    "load": "cocot.modeling.loading",
    "methods": "cocot.methods",
    "probe": "cocot.api.probing",
    "prompt_embeddings": "cocot.serving.export",
    "read_problems": "cocot.tasks.files",
    "read_recipe": "cocot.training.recipes",
    "read_thoughts": "cocot.interpret.thought_words",
    "report": "cocot.api.pages",
    "reproduce": "cocot.api.studies",
    "select_problems": "cocot.training.evaluation_problems",
    "shipped_recipes": "cocot.training.recipes",
    "shipped_studies": "cocot.experiments.study",
    "tasks": "cocot.tasks",
    "train": "cocot.api.training",
    "write_embeddings": "cocot.serving.export",
    "write_problems": "cocot.tasks.files",
}
"""Every public name, and the module that it is imported from; a module is its own home."""

__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'cocot' has no attribute {name!r}")
        home = import_module(_HOMES[name])
        return home if home.__name__ == f"cocot.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
