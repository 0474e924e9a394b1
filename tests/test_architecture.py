"""Promises of the house: imports go downward only, and what need not be slow does not load PyTorch."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import cocot

ROOT = Path(cocot.__file__).parent

# From the ground up: a module may import those on lines above its own, and those before it on its own line.
# `cocot` itself imports names when they are first used, which `test_the_front_door_imports_nothing` looks at.
FLOORS = (
    ("errors", "interrupts", "console", "writing"),
    ("checksums",),
    ("tasks.problem", "tasks.graphs", "tasks.prosqa", "tasks.prontoqa", "tasks.gsm8k", "tasks.files", "tasks"),
    ("curriculum", "config", "recipe_files", "plan", "studies"),
    ("deferred", "passes", "thinking"),
    ("batching", "model", "loading", "adapters", "scratch", "optimizers", "runs"),
    ("generation", "probing", "custom_generate", "harness"),
    ("process", "evaluation", "controls", "search", "frontiers"),
    (
        "search_view",
        "charts",
        "report",
        "page",
        "callbacks",
        "stage_trainer",
        "training",
        "trainings",
        "estimates",
        "comparison",
        "export",
    ),
    ("bench.measure", "bench.workload", "bench.ratios", "bench"),
    ("arguments", "cli", "__main__"),
)
HEIGHT = {name: height for height, name in enumerate(name for floor in FLOORS for name in floor)}
NO_TORCH = ("cocot", "cocot.tasks", "cocot.curriculum", "cocot.config", "cocot.plan", "cocot.report", "cocot.cli")


def name_of(path):
    """`tasks/prosqa.py` -> `tasks.prosqa`; the package itself is ''."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def targets(node):
    """Dotted names that a statement imports, of modules or of what is in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level if node.level else f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def imports(name):
    """Modules of cocot that a module imports, inside its functions too; '' is the package."""
    dotted = [target for node in ast.walk(ast.parse(MODULES[name].read_text())) for target in targets(node)]
    assert "." not in "".join(target[:1] for target in dotted), f"{name} imports relatively"
    found = set()
    for target in dotted:
        parts = target.split(".")
        if parts[0] == "cocot":
            prefixes = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
            found.add(next(prefix for prefix in prefixes if prefix in MODULES))
    return found


def test_every_module_has_a_floor():
    """The list above names the modules that there are, each once."""
    assert len(HEIGHT) == sum(map(len, FLOORS))
    assert set(HEIGHT) == set(MODULES) - {""}, "add the module to FLOORS, on the lowest floor that it can stand on"


@pytest.mark.parametrize("name", HEIGHT)
def test_imports_go_downward(name):
    """A module imports what stands below it, and nothing through the package's own front door."""
    upward = {other for other in imports(name) if other not in HEIGHT or HEIGHT[other] >= HEIGHT[name]}
    assert not upward, f"{name} imports {sorted(upward)} from above"


def test_the_check_above_sees_imports():
    """It would find nothing wrong if it saw nothing: some imports that there are, inside functions too."""
    assert {"curriculum", "errors", "thinking"} <= imports("model")
    assert {"training", "recipe_files", "config"} <= imports("cli")
    assert "tasks" in imports("training")


def loaded_by(*command):
    """Modules that a fresh interpreter has loaded after `command`, an import or a run of the command line."""
    code = f"import sys\n{command[0]}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *command[1:]], capture_output=True, text=True, check=True)
    return set(done.stderr.split()), done.stdout


@pytest.mark.parametrize("module", NO_TORCH)
def test_light_modules_load_no_torch(module):
    """Making data, reading recipes and printing tables need neither PyTorch nor transformers."""
    loaded, _ = loaded_by(f"import {module}")
    assert module in loaded
    assert not loaded & {"torch", "transformers", "numpy", "accelerate"}


def test_help_loads_nothing_heavy():
    """`cocot --help` answers at once."""
    run = "runpy.run_module('cocot', run_name='__main__')"
    loaded, text = loaded_by(f"import runpy\ntry: {run}\nexcept SystemExit as end: assert not end.code", "--help")
    assert "continuous latent space" in text
    assert "cocot.cli" in loaded
    assert not loaded & {"torch", "transformers", "jsonargparse", "accelerate", "yaml"}


def test_the_front_door_opens_on_use():
    """Every public name is there, and the first use of one loads it."""
    code = "import cocot\nfor name in cocot.__all__: assert getattr(cocot, name) is not None, name\nassert dir(cocot)"
    loaded, _ = loaded_by(code)
    assert "torch" in loaded
    with pytest.raises(AttributeError, match="abacus"):
        _ = cocot.abacus
