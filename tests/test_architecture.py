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
    ("errors", "interrupts", "console", "write_errors", "writing"),
    ("typed_settings", "plain_yaml", "checksums", "bundled", "compatibility", "machine"),
    ("tasks.problem", "tasks.graphs", "tasks.prosqa", "tasks.prontoqa", "tasks.gsm8k", "tasks.files", "tasks"),
    ("curriculum", "encoding", "config", "recipe_files", "plan", "run_problems", "studies"),
    ("thinking", "own_head", "deferred", "passes", "self_test"),
    (
        "launch",
        "batching",
        "special_tokens",
        "model",
        "loading",
        "adapters",
        "scratch",
        "optimizers",
        "runs",
        "selection",
    ),
    ("decoding", "generation", "probing", "custom_generate", "harness"),
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
NO_TORCH = (
    "cocot",
    "cocot.tasks",
    "cocot.data.curriculum",
    "cocot.training.config",
    "cocot.training.plan",
    "cocot.experiments.tables",
    "cocot.cli",
)


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
    if name == "custom_generate":  # it is copied out with its neighbour, and finds it there by the same words
        dotted = [target.replace(".", "cocot.modeling.recurrence") if target == "." else target for target in dotted]
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
    assert not loaded & {"torch", "transformers", "accelerate", "yaml"}


def test_the_front_door_opens_on_use():
    """Every public name is there, and the first use of one loads it."""
    listed = "import cocot, sys; assert set(cocot.__all__) <= set(dir(cocot)); assert 'torch' not in sys.modules"
    used = "for name in cocot.__all__: assert getattr(cocot, name).__name__.removeprefix('cocot.') == name"
    loaded, _ = loaded_by(f"{listed}\n{used}")
    assert "torch" in loaded
    with pytest.raises(AttributeError, match="abacus"):
        _ = cocot.abacus


UNIX_ONLY = ("fcntl", "termios", "resource", "pwd", "grp", "tty", "pty")
WITHOUT_UNIX = """
import builtins, sys

def import_as_on_windows(name, globals=None, *rest, **named):
    if name in sys.argv[1].split(",") and (globals or {}).get("__name__", "").startswith("cocot"):
        raise ModuleNotFoundError(f"no module {name} on Windows")
    return real(name, globals, *rest, **named)

real, builtins.__import__ = builtins.__import__, import_as_on_windows
sys.modules["fcntl"] = None  # which the lock needs, and which others can do without
from cocot.cli import main
for command in (["--help"], ["ask", "prosqa-small", "1 2 ; ? 2 1 1"], ["eval", "prosqa-small", "-n", "4"],
                ["export", "prosqa-small", "out"]):
    try:
        code = main(command)
    except SystemExit as end:
        code = end.code
    assert not code, command
from importlib import import_module
for name in sys.argv[2].split(","):
    import_module(name)
"""


def test_what_only_unix_has_is_not_needed(tmp_path):
    """`ask`, `eval` and `export` run, and every module is imported, where those of UNIX_ONLY are missing."""
    modules = ",".join(f"cocot.{name}" for name in HEIGHT if not name.endswith("__main__"))
    command = [sys.executable, "-c", WITHOUT_UNIX, ",".join(UNIX_ONLY), modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "custom_generate" / "generate.py").exists()


def test_text_files_have_an_encoding():
    """Windows would read and write a file that is opened without one in the code page of the country."""
    found = [
        f"{name}:{call.lineno}"
        for name, path in MODULES.items()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name)
        if is_text(call) and "encoding" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not found


def is_text(call):
    """Whether a call opens, reads or writes text, as far as its name and its mode tell."""
    constants = [
        part for part in [*call.args, *(word.value for word in call.keywords)] if isinstance(part, ast.Constant)
    ]
    is_binary = any("b" in part.value for part in constants if isinstance(part.value, str))
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not is_binary
    opens = call.func.attr == "open" and all(isinstance(part, ast.Constant) for part in call.args)
    return call.func.attr in ("read_text", "write_text") or (opens and not is_binary)
