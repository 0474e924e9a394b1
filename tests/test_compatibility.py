"""Tests of the guard: a transformers that changed what cocot changes in it is found before a run begins."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.requirements import Requirement
from runs_support import tiny_config
from transformers import Trainer

from cocot.errors import ConfigError
from cocot.training import run, trainer
from cocot.training.compatibility import SUPPORTED
from cocot.training.run import train
from cocot.training.trainer import CALLED, OVERRIDDEN, StageTrainer, check_trainer

ROOT = Path(__file__).parent.parent
PRIVATE = [name for name in (*OVERRIDDEN, *CALLED) if name.startswith("_")]


def stand_in(**changed: Any) -> type:
    """A copy of Trainer in which some names are others; None takes one away."""
    kept = {name: value for name, value in {**vars(Trainer), **changed}.items() if value is not None}
    kept = {name: value for name, value in kept.items() if name not in ("__dict__", "__weakref__")}
    return type("Trainer", Trainer.__bases__, kept)


def test_the_installed_transformers_fits() -> None:
    """And a copy of its Trainer does: what the tests below change is what they see."""
    check_trainer()
    check_trainer(stand_in())


@pytest.mark.parametrize("name", [*OVERRIDDEN, *CALLED])
def test_a_method_that_is_gone_is_noticed(name: str) -> None:
    """Removed or renamed: the message has the method, the installed version and the supported ones, in one line."""
    renamed = {name: None, f"{name}_": vars(Trainer)[name]}
    with pytest.raises(ConfigError, match=f"Trainer has no {name}") as caught:
        check_trainer(stand_in(**renamed))
    message = str(caught.value)
    assert f"transformers {transformers.__version__} does not fit this cocot" in message
    assert "5.17 to 5.24: pip install 'transformers==5.24.*'" in message
    assert "\n" not in message


def other_parameters(self: Any, another: Any) -> None: ...


def more_parameters(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with one parameter more, at its end."""
    scope: dict[str, Any] = {}
    code = method.__code__
    names = code.co_varnames[: code.co_argcount]
    exec(f"def method({', '.join(names)}, another=None): ...", scope)
    return scope["method"]


@pytest.mark.parametrize("name", [name for name in (*PRIVATE, "save_model")])
def test_other_parameters_are_noticed(name: str) -> None:
    """One more, or another in their place."""
    changes = [other_parameters] + [more_parameters(vars(Trainer)[name])] * (name in OVERRIDDEN)
    for changed in changes:
        with pytest.raises(ConfigError, match=rf"Trainer\.{name} (takes|does not take)"):
            check_trainer(stand_in(**{name: changed}))


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_method_that_is_no_longer_called_is_noticed(name: str) -> None:
    """Ours would never run, and nothing would say so."""

    def uses(value: Any) -> bool:
        code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
        return code is not None and any(
            name in part.co_names for part in (code, *(inner for inner in code.co_consts if hasattr(inner, "co_names")))
        )

    callers = {caller: (lambda self: None) for caller, value in vars(Trainer).items() if uses(value) and caller != name}
    with pytest.raises(ConfigError, match=f"Trainer no longer calls {name}"):
        check_trainer(stand_in(**callers))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(StageTrainer).items()
        if inspect.isfunction(value) and not name.startswith("__") and name not in OVERRIDDEN
    ],
)
def test_a_new_method_of_a_name_of_ours_is_noticed(name: str) -> None:
    """Ours would take its place without meaning to."""
    with pytest.raises(ConfigError, match=f"Trainer has a {name} of its own"):
        check_trainer(stand_in(**{name: lambda self: None}))


def test_every_private_name_that_is_used_is_in_the_table() -> None:
    """What `StageTrainer` reads of `self` with a leading underscore is its own, or is declared."""
    text = Path(trainer.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"(?:self|super\(\))\.(_[a-z]\w*)", text))
    assert used & set(dir(Trainer)) == set(PRIVATE) & used
    assert "_save" in used, "the pattern sees nothing"


def test_a_run_is_refused_before_it_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the middle of it."""
    monkeypatch.setattr(run, "check_trainer", lambda: check_trainer(stand_in(_save_checkpoint=None)))
    with pytest.raises(ConfigError, match="Trainer has no _save_checkpoint"):
        train(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_supported_versions_are_those_of_the_package_and_of_the_tests() -> None:
    """The oldest is what pyproject.toml asks for, the newest what constraints.txt holds, both those of the matrix."""
    oldest, newest = SUPPORTED
    found = re.search(r'"(transformers[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found is not None
    assert str(Requirement(found[1]).specifier) == f">={oldest}"
    assert f"\ntransformers=={newest}." in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"for version in =={oldest}.0 =={newest}.*;" in (ROOT / "Makefile").read_text(encoding="utf-8")
