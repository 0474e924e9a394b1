"""Recipes: YAML files of a `RunConfig`, shipped or the user's own, with dotted overrides.

In: the name of a shipped recipe or a path, and `--train.learning_rate 1e-4`-like overrides. Out: a `RunConfig`.
A recipe, and the `config.yaml` of a run, is data: nothing that it says is imported, opened or run by reading it.
Read next: `training/config.py` (every field), `settings/plain_yaml.py`, `settings/typed.py`, `recipes/`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from os import PathLike, fspath
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


Recipe = str | PathLike[str] | RunConfig
"""Name of a shipped recipe, path of a YAML file, or the settings themselves."""
Overrides = Sequence[str] | Mapping[str, Any]
"""`--dotted.name value` words, as on the command line; or values by name, in groups or dotted."""


def read_recipe(recipe: Recipe, overrides: Overrides = ()) -> RunConfig:
    """Read a recipe and apply overrides.

        read_recipe("demo", {"seed": 1, "curriculum": {"method": "cot"}, "train.learning_rate": 1e-4})

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file; the `config.yaml` of a run is one, too. Or settings.
        overrides: `--dotted.name value` words, as on the command line. Or values by name: a mapping (or an instance of
            the group's class) replaces those settings of a group that it names.

    Raises:
        ConfigError: no such recipe, an unknown key (the nearest name is suggested), or an impossible value.
    """
    values = _plain(asdict(recipe)) if isinstance(recipe, RunConfig) else plain_yaml.read_mapping(_path(recipe))
    if isinstance(overrides, Mapping):
        pairs = _flat(overrides)
    else:
        pairs = ((name, _value(name, text)) for name, text in _pairs(overrides))
    _warmup_as_phase(values)
    for name, value in pairs:
        _set(values, name, value)
    return build(RunConfig, values)


def _warmup_as_phase(values: dict[str, Any]) -> None:
    """Read `data.warmup`, as older recipes and runs have it, as the phase that it was."""
    data = values.get("data")
    warmup = data.pop("warmup", None) if isinstance(data, dict) else None
    if isinstance(warmup, dict) and warmup.get("epochs") != 0:
        rates = (values.get("train") or {}).get("stage_learning_rate") or {}
        phase = {"name": "warmup", "stages": {"stage_0": 1.0}, **warmup, "learning_rate": rates.pop("warmup", 1.0)}
        _set(values, "curriculum.phases", [phase])


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Overrides by their dotted names, from words of the command line.

    Raises:
        ConfigError: a word is no override, has no value, or begins with the name of no group of a recipe.
    """
    values = {name: _value(name, text) for name, text in _pairs(words)}
    groups = {item.name for item in fields(RunConfig)}
    if unknown := {name.partition(".")[0] for name in values} - groups:
        build(RunConfig, dict.fromkeys(unknown))  # says which, and what is near
    return values


def recipe_name(recipe: Recipe) -> str:
    """What a run of a recipe is called where nobody names it: the file's name, or the method's."""
    return recipe.curriculum.method if isinstance(recipe, RunConfig) else Path(recipe).stem


def override_words(overrides: Overrides) -> list[str]:
    """Overrides as the command line has them."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    pairs = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in _flat(overrides))
    return [word for name, text in pairs for word in (f"--{name}", text)]


def _path(recipe: str | PathLike[str]) -> Path:
    shipped = shipped_recipes()
    path = shipped.get(str(recipe), Path(recipe))
    if not path.is_file():
        raise ConfigError(f"no recipe {str(recipe)!r}: it is no YAML file; {choose(str(recipe), shipped)}")
    return path


def _flat(settings: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and plain value of each setting, groups taken apart."""
    for key, value in settings.items():
        name = f"{group}.{key}" if group else str(key)
        plain = _plain(value)
        if isinstance(plain, dict) and any(parts(_kind(name))):
            yield from _flat(plain, name)
        else:
            yield name, plain


def _plain(value: Any) -> Any:
    """A value of a program as a YAML file would have it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(inner) for inner in value]
    return fspath(value) if isinstance(value, PathLike) else value


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
