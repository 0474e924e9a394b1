"""Settings as dataclasses: built from plain data with every name, type and bound checked.

In: a dataclass and a mapping, of a file or the command line. Out: an instance, or one line that says which setting is
wrong, what it was, and what it may be. Bounds stand beside the defaults:

    @dataclass(frozen=True)
    class Shape:
        layers: int = number(2, low=1, high=1024)

        def __post_init__(self) -> None:
            check_numbers(self, "shape")

    build(Shape, {"layers": 4}, "shape")

Read next: `training/config.py`, whose settings are of this kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from inspect import cleandoc
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cocot.errors import ConfigError

_T = TypeVar("_T")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def number(default: Any, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A dataclass field whose number, or every number inside, lies within bounds; `above` is a bound not reached.

    Args:
        default: Its default; a function makes a new one each time.
        low: The least that is allowed.
        high: The most that is allowed.
        above: What it must exceed.
    """
    value: Any = {"default_factory": default} if callable(default) else {"default": default}
    return field(metadata={"bounds": (low, high, above)}, **value)


def check_numbers(settings: Any, name: str) -> None:
    """Check every number of a dataclass against its field's bounds, and every word of a Literal.

    No setting may be infinite or not a number. Data that `build` read is checked for all types; this is also what
    settings that a program made must pass.

    Args:
        settings: An instance.
        name: Its dotted name, which messages begin with; empty for the outermost.

    Raises:
        ConfigError: a number is out of bounds, or a word is none of those to choose from.
    """
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        if any(get_origin(option) is Literal for option in _options(hints[item.name])):
            _convert(hints[item.name], getattr(settings, item.name), _join(name, item.name))
        low, high, above = item.metadata.get("bounds", (None, None, None))
        for value in _numbers(getattr(settings, item.name)):
            reasons = [
                f"a finite number of at most {high}" if isinstance(value, float) and not math.isfinite(value) else "",
                f"at least {low}" if low is not None and value < low else "",
                f"above {above}" if above is not None and value <= above else "",
                f"at most {high}" if high is not None and value > high else "",
            ]
            if reason := next(filter(None, reasons), ""):
                raise ConfigError(f"{_join(name, item.name)} is {short(value)}; it must be {reason}.")


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner)


def build(kind: type[_T], values: Any, name: str = "") -> _T:
    """An instance of the dataclass `kind` from plain data.

    Args:
        kind: A dataclass whose fields are of plain types, Literals, lists, mappings, dataclasses, or unions of those.
        values: A mapping from field names to plain data.
        name: Dotted name of the whole, for messages.

    Raises:
        ConfigError: a name is unknown (the nearest one is suggested), one is missing, or a value is of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name or 'this'} must be settings by name, got {short(values)}.")
    hints, known = get_type_hints(kind), {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {short(_join(name, key))}{_hint(key, known, name)}")
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{_join(name, key)} is missing; give it a value.")
    return kind(**{key: _convert(hints[key], value, _join(name, key)) for key, value in values.items()})


def _hint(key: object, known: Mapping[str, Any], name: str) -> str:
    near = nearest(str(key), known)
    return f"; did you mean {_join(name, near)!r}?" if near else f"; choose among: {', '.join(known)}."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`; None if none is like it."""
    return next(iter(get_close_matches(word[:100], list(known), n=1, cutoff=0.5)), None)


def choose(word: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: all that are known, and the nearest one."""
    near = nearest(str(word), known)
    return f"choose one of: {', '.join(known)}.{f' Did you mean {near!r}?' if near else ''}"


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as `kind` has it."""
    options = _options(kind)
    for option in options:
        if is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value, name)  # type: ignore[arg-type]
        if _is_of(option, value):
            return _plain(option, value, name)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    near = nearest(value, choices) if isinstance(value, str) and choices else None
    hint = f" Did you mean {near!r}?" if near else ""
    raise ConfigError(f"{name} is {short(value)}; it must be {' or '.join(map(_describe, options))}.{hint}")


def _is_of(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def _plain(kind: Any, value: Any, name: str) -> Any:
    if kind is float and abs(value) < 2**1000:  # a larger whole number is no float; bounds refuse it
        return float(value)
    if get_origin(kind) is list:
        return [_convert(get_args(kind)[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if get_origin(kind) is dict:
        if unnamed := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{name} has the name {short(unnamed[0])}; names must be text.")
        return {key: _convert(get_args(kind)[1], item, _join(name, key)) for key, item in value.items()}
    return value


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of: {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is list:
        return f"a list, each {_describe(get_args(kind)[0])}"
    return _WORDS.get(kind, "settings by name")


def short(value: Any) -> str:
    """A value as one line of a message shows it."""
    return _SHORT.repr(value)


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def accepts_text(kind: Any) -> bool:
    """Whether a setting of that type may be any text."""
    return str in _options(kind)


def type_name(kind: Any) -> str:
    """A type as help shows it."""
    return " or ".join(_describe(option) for option in _options(kind))


def parts(kind: Any) -> Iterator[Any]:
    """The dataclasses among the options of a type."""
    return (option for option in _options(kind) if is_dataclass(option))


def walk(kind: Any, name: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Every setting below a dataclass: dotted name, type, default, and what its class's docstring says of it."""
    hints, texts = get_type_hints(kind), _explanations(kind)
    for item in fields(kind):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        yield _join(name, item.name), hints[item.name], default, texts.get(item.name, "")
        for part in parts(hints[item.name]):
            yield from walk(part, _join(name, item.name))


def _explanations(kind: Any) -> dict[str, str]:
    """The `Attributes:` of a docstring in Google style."""
    section = cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
