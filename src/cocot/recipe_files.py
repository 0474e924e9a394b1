"""Recipes: YAML files of a `RunConfig`, shipped or the user's own, with dotted overrides.

In: the name of a shipped recipe or a path, and `--train.learning_rate 1e-4`-like overrides. Out: a `RunConfig`.
Read next: `config.py` (every field), `recipes/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from cocot.config import RunConfig
from cocot.errors import ConfigError

_SHIPPED = Path(__file__).with_name("recipes")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with cocot, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file; the `config.yaml` of a run is one, too.
        overrides: `--dotted.name value` pairs, as on the command line.

    Raises:
        ConfigError: no such recipe, an unknown key (the nearest name is suggested), or an impossible value.
    """
    path = shipped_recipes().get(recipe, Path(recipe))
    if not path.is_file():
        raise ConfigError(f"no recipe {recipe!r}; give a YAML file or one of: {', '.join(shipped_recipes())}.")
    _check_is_mapping(path)
    parser = recipe_parser()
    try:
        values = parser.parse_args(["--config", str(path), *overrides])
        chosen = parser.instantiate(values)
        return RunConfig(**{field.name: chosen[field.name] for field in fields(RunConfig)})
    except ArgumentError as error:
        raise ConfigError(_explain(str(error))) from error


def recipe_parser() -> ArgumentParser:
    """The parser of a recipe's fields, for its help."""
    parser = ArgumentParser(prog="cocot train RECIPE", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RunConfig)
    return parser


def field_names(kind: Any = RunConfig, path: str = "") -> Iterator[str]:
    """Every dotted name of a recipe."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        name = f"{path}{field.name}"
        yield name
        for part in get_args(hints[field.name]) or (hints[field.name],):
            if part is not NoneType and is_dataclass(part):
                yield from field_names(part, f"{name}.")


def _check_is_mapping(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no recipe: it must hold `name: value` lines, a `model:` among them.")


def _explain(message: str) -> str:
    """One line, with the nearest known name where a key is unknown."""
    line = " ".join(message.split())
    group = re.search(r"""Group '([\w.]+)' does not accept|Parser key "([\w.]+)":.*Option '""", line)
    named = re.search(r"[Oo]ption '([\w.]+)' is not accepted|accept option '([\w.]+)'|unrecognized.*?--([\w.]+)", line)
    if named is None:
        return line
    wanted = ".".join(part for match in (group, named) if match for part in match.groups() if part)
    near = get_close_matches(wanted, list(field_names()), n=1, cutoff=0.5)
    return f"unknown key {wanted!r}" + (f"; did you mean {near[0]!r}?" if near else f": {line}")
