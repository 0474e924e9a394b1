"""YAML read as plain data: mappings, lists, text, numbers, true, false and null, and nothing else.

In: text or a file. Out: a value. Tags of Python's own, aliases and repeated names are refused, so that no text can
build an object, name a second file, or grow as it is read. Words mean what they mean in YAML 1.2: `1e-4` is a number,
`no` is text.

    values = read_mapping(Path("recipe.yaml"))

Read next: `training/recipes.py`, which reads recipes with it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cocot.errors import ConfigError
from cocot.settings.typed import short

_MOST_BYTES = 1_000_000
_NOT_PLAIN = (yaml.YAMLError, ValueError, RecursionError)  # a number of thousands of digits; thousands of brackets


class _Loader(yaml.SafeLoader):
    """The safe loader of PyYAML, without aliases, with the scalars of YAML 1.2, and no name twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - that of the class, which PyYAML copies when it changes

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a name", key.start_mark)
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{short(key.value)} is set twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:
    """The value that a text spells.

    Raises:
        ConfigError: it is not plain YAML. The message tells the place and the reason, and quotes no other file.
    """
    try:
        return yaml.load(text, _Loader)
    except _NOT_PLAIN as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        raise ConfigError(f"{place}{' '.join(reason.split())}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a file.

    Raises:
        ConfigError: the file cannot be read, is larger than a megabyte, or holds something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError("it is larger than a megabyte")
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not text in UTF-8.") from error
    except ConfigError as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it must hold `name: value` lines.")
    return content
