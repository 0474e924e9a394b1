"""Recipes: YAML files of a `RunConfig`, shipped or the user's own, with dotted overrides.

In: the name of a shipped recipe or a path, and `--train.learning_rate 1e-4`-like overrides. Out: a `RunConfig`.
A recipe, and the `config.yaml` of a run, is data: nothing that it says is imported, opened or run by reading it.
Read next: `training/config.py` (every field), `settings/plain_yaml.py`, `settings/typed.py`, `recipes/`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cocot.errors import ConfigError
from cocot.settings import plain_yaml
from cocot.settings.typed import accepts_text, build, choose, parts, short, type_name, walk
from cocot.training.config import RunConfig

_SHIPPED = Path(__file__).parents[1] / "configs" / "recipes"


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
    shipped = shipped_recipes()
    path = shipped.get(recipe, Path(recipe))
    if not path.is_file():
        raise ConfigError(f"no recipe {recipe!r}: it is no YAML file; {choose(recipe, shipped)}")
    values = plain_yaml.read_mapping(path)
    for name, text in _pairs(overrides):
        _set(values, name, _value(name, text))
    return build(RunConfig, values)


def field_names() -> Iterator[str]:
    """Every dotted name of a recipe."""
    return (name for name, *_ in walk(RunConfig))


def describe_fields() -> str:
    """Every field of a recipe as an override: its type, its default, and what it means."""
    blocks = ["Every field of a recipe. Each can follow `cocot train RECIPE` as --name value.\n"]
    for name, kind, default, text in walk(RunConfig):
        is_group = any(parts(kind))
        shown = "" if default is MISSING or is_dataclass(default) else f" (default: {_shown(default)})"
        head = name if is_group else f"--{name} {type_name(kind)}"
        blocks.append(f"{head}{shown}\n{textwrap.indent(textwrap.fill(text, 100), '      ')}\n")
    return "\n".join(blocks)


def _shown(default: Any) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default) or "''"


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text of each override, `--name value` or `--name=value`."""
    words = iter(overrides)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"unexpected argument {short(word)}; settings are given as --name value.")
        value = text if equals else next(words, None)
        if value is None or (not equals and value.startswith("--")):
            if name not in set(field_names()):
                value = ""  # the name is what is wrong
            else:
                raise ConfigError(f"--{name} has no value; give it one: --{name} VALUE.")
        yield name, value


def _value(name: str, text: str) -> Any:
    """What a text on the command line stands for; where text is wanted it is taken as it is, but for `null`."""
    kind = _kind(name)
    try:
        value = plain_yaml.parse(text) if text.strip() else text  # an empty shell variable is not meant as null
    except ConfigError:
        return text
    return text if accepts_text(kind) and not isinstance(value, list | None) else value


def _kind(name: str) -> Any:
    """The type of a setting; Any inside mappings, and where there is no such setting."""
    kinds: list[Any] = [RunConfig]
    for part in name.split("."):
        hints = [get_type_hints(kind) for kind in kinds if is_dataclass(kind)]
        kind = next((hint[part] for hint in hints if part in hint), Any)
        kinds = [kind, *get_args(kind)]
    return kinds[0]


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested mappings; parts that are not there, or null, are made."""
    *path, last = name.split(".")
    for part in path:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(f"unknown key {name!r}; {part!r} is {short(values)} and has no parts.")
    values[last] = value
