"""The structure: each package imports only the packages below it, no modules import each other in a circle, and what
need not be slow does not load PyTorch.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cocot

ROOT = Path(cocot.__file__).parent

# Which packages a package may import: its arrows. A module in the root is a package of its own here.
# `cocot` itself imports names when they are first used, which `test_importing_cocot_loads_nothing` looks at.
BASICS = {"errors", "settings", "system", "display", "version"}
TEXT = {*BASICS, "registry", "tasks"}
MODELS = {*TEXT, "assets", "methods", "data", "modeling"}
RUNS = {*MODELS, "evaluation", "training"}
ARROWS = {
    "errors": set(),
    "version": set(),
    "assets": set(),
    "display": set(),
    "settings": {"errors"},
    "system": {"errors"},
    "registry": {"errors", "settings"},
    "tasks": {*BASICS, "registry"},
    "methods": {"errors", "settings", "registry"},
    "data": {*TEXT, "methods"},
    "modeling": MODELS - {"modeling"},
    "evaluation": MODELS,
    "interpret": {*MODELS, "evaluation"},
    "training": {*MODELS, "evaluation"},
    "experiments": {*RUNS, "interpret"},
    "serving": {*RUNS, "interpret"},
    "bench": {*RUNS, "interpret"},
    "api": {*RUNS, "interpret", "experiments", "serving", "bench"},
    "cli": {*RUNS, "interpret", "experiments", "serving", "bench", "api"},
    "__main__": {"cli", "system"},
}
COPIED_OUT = {
    "modeling.recurrence": set(),
    "modeling.own_head": {"modeling.recurrence"},
    "modeling.thought_inputs": {"modeling.own_head", "modeling.recurrence"},
    "modeling.custom_generate": {"modeling.own_head", "modeling.recurrence", "modeling.thought_inputs"},
}
NO_TORCH = (
    *("cocot", "cocot.tasks", "cocot.methods", "cocot.data.examples", "cocot.training.config"),
    *("cocot.training.schedule", "cocot.experiments.tables", "cocot.cli"),
)


def name_of(path):
    """`tasks/prosqa.py` -> `tasks.prosqa`; the package itself is ''."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def package_of(name):
    """The package that a module is in; a module in the root is one of its own."""
    return name.split(".")[0]


def targets(node, name):
    """Dotted names that a statement of a module imports, of modules or of what is in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        # only what is copied out imports relatively: it finds its neighbour there by the same words
        assert not node.level or name in COPIED_OUT, f"{name} imports relatively"
        module = f"cocot.{package_of(name)}.{node.module}" if node.level else node.module
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


@cache
def imports(name):
    """Modules of cocot that a module imports, inside its functions too; '' is the package."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for target in (target for node in ast.walk(tree) for target in targets(node, name)):
        parts = target.split(".")
        if parts[0] == "cocot":
            prefixes = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
            found.add(next(prefix for prefix in prefixes if prefix in MODULES))
    return found


def test_every_package_is_listed():
    """The list above names the packages that there are."""
    assert ARROWS.keys() == {package_of(name) for name in MODULES} - {""}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_follow_the_arrows(name):
    """A module imports what its package may, and nothing through `cocot` itself, which is for users."""
    allowed = ARROWS[package_of(name)] | {package_of(name)}
    wrong = {other for other in imports(name) if package_of(other) not in allowed}
    assert not wrong, f"{name} imports {sorted(wrong)}: see ARROWS"


def test_the_arrows_have_no_circle():
    """Neither the packages nor the modules import each other in a circle."""
    tuple(TopologicalSorter(ARROWS).static_order())
    tuple(TopologicalSorter({name: imports(name) for name in MODULES if name}).static_order())


@pytest.mark.parametrize("name", COPIED_OUT)
def test_what_is_copied_out_stands_alone(name):
    """`cocot export` copies these files into folders that are used without cocot."""
    assert imports(name) == COPIED_OUT[name]


def test_experiments_and_serving_do_not_know_each_other():
    """A model leaves without the tables, and tables are made without leaving."""
    assert "serving" not in ARROWS["experiments"]
    assert "experiments" not in ARROWS["serving"]


def test_the_check_above_sees_imports():
    """It would find nothing wrong if it saw nothing: some imports that there are, inside functions too."""
    assert {"data.layout", "errors", "modeling.recurrence"} <= imports("modeling.latent_model")
    assert {"api.training", "training.recipes"} <= imports("cli.commands")
    assert "tasks" in imports("training.run")


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


def test_importing_cocot_loads_nothing():
    """Every public name is there, and the first use of one loads it."""
    listed = "import cocot, sys; assert set(cocot.__all__) <= set(dir(cocot)); assert 'torch' not in sys.modules"
    used = "for name in cocot.__all__: assert getattr(cocot, name).__name__.removeprefix('cocot.') == name, name"
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
    needs_vllm = {"serving.vllm.budget", "serving.vllm.models", "serving.vllm.scheduler"}
    modules = ",".join(f"cocot.{name}" for name in MODULES.keys() - {"", "__main__"} - needs_vllm)
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
