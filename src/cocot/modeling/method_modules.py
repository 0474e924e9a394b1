"""Modules that a method trains beside the model's own weights: they hang on the model as `model.method_modules`.

There the optimizer, devices, processes and checkpoints treat them like all other weights; their names in a file begin
with `method_modules.`. A result keeps them only if the method says so.
Read next: `methods/base.py`, `training/run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cocot.errors import ModelError
from cocot.methods import Method
from cocot.methods.base import PROJECTION, STOP

NAME = "method_modules"
_PREFIX = f"{NAME}."
_KINDS = "weight", "bias"


def add_modules(model: Any, method: Method, saved: Path | None = None) -> None:
    """Let a model have the method's modules, new ones or those that were saved with it.

    Args:
        model: A model that was given thoughts.
        method: Makes the modules; most methods have none.
        saved: Folder of a checkpoint or a result; None for new modules.

    Raises:
        ModelError: what was saved does not fit what the method makes.
    """
    modules = method.modules(model)
    if modules is None:
        return
    if saved is not None:
        try:
            modules.load_state_dict(_saved_modules(saved))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"the modules of method {method.name!r} in {saved} do not fit: {reason}") from error
    model.add_module(NAME, modules.to(model.device))


def projection_of(model: Any) -> Any:
    """What a thought goes through before it is fed back, if the model has such a part; else None."""
    return getattr(getattr(model, NAME, None), PROJECTION, None)


def _saved_modules(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            names = filter(is_of_method, weights.keys())
            found |= {name.removeprefix(_PREFIX): weights.get_tensor(name) for name in names}
    return found


def modules_in(model: Any) -> dict[str, Tensor]:
    """The weights of a model that are a method's, by their names in a file."""
    return {name: weight for name, weight in model.state_dict().items() if is_of_method(name)}


def can_leave(modules: Mapping[str, Tensor]) -> bool:
    """Whether an exported folder knows these weights: a projection as `codi` has it, a decision as of `adaptive`."""
    layers = {PROJECTION: ("0.", "2.", "3."), STOP: ("",)}
    names = {part: {f"{_PREFIX}{part}.{layer}{kind}" for layer in layers[part] for kind in _KINDS} for part in layers}
    return modules.keys() in (names[PROJECTION], names[STOP], names[PROJECTION] | names[STOP])


def without_modules(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights without those of a method."""
    return {name: weight for name, weight in weights.items() if not is_of_method(name)}


def is_of_method(name: str) -> bool:
    """Whether a weight of that name is a method's."""
    return name.startswith(_PREFIX)
