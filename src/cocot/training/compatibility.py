"""Whether the installed transformers still has what cocot changes in it: found out before a run, not hours into it.

In: a subclass and the class of transformers that it changes. Out: nothing, or one line that says what differs.
Read next: `training/trainer.py`, whose methods with a leading underscore are no promise of transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from types import CodeType
from typing import Any

from cocot.errors import ConfigError

SUPPORTED = ("5.17", "5.24")
"""The oldest and the newest transformers that the tests ran with."""


def check_overrides(own: type, base: type, overridden: Collection[str], called: Mapping[str, Collection[str]]) -> None:
    """Refuse a `base` that is not the class that `own` was written for.

    Args:
        own: A subclass of what `base` is, or was.
        base: The class as it is installed.
        overridden: Names that `own` means to override: `base` must have each, call it, and take the same parameters.
            Every other name of `own` must be free: else it would replace something without meaning to.
        called: What `own` calls without overriding it, and the parameters that it passes.

    Raises:
        ConfigError: with every difference, the installed transformers, and those that are supported.
    """
    found = [*_changed(own, base, overridden), *_taken(own, base, overridden), *_uncallable(base, called)]
    if found:
        oldest, newest = SUPPORTED
        raise ConfigError(
            f"transformers {version('transformers')} does not fit this cocot: {'; '.join(found)}. It works with "
            f"{oldest} to {newest}: pip install 'transformers=={newest}.*'."
        )


def _changed(own: type, base: type, overridden: Collection[str]) -> Iterator[str]:
    for name in sorted(overridden):
        if not hasattr(base, name):
            yield f"{base.__name__} has no {name}"
            continue
        if not _is_called(base, name):
            yield f"{base.__name__} no longer calls {name}"
        ours, theirs = _parameters(own, name), _parameters(base, name)
        if list(ours) != list(theirs) and not any(part.kind is part.VAR_KEYWORD for part in ours.values()):
            yield f"{base.__name__}.{name} takes ({', '.join(theirs)}), not ({', '.join(ours)})"


def _taken(own: type, base: type, overridden: Collection[str]) -> Iterator[str]:
    written = {name for name, value in vars(own).items() if _is_written_in(own, name, value)}
    names = written & set(dir(base)) - set(overridden)
    return (f"{base.__name__} has a {name} of its own" for name in sorted(names) if not name.startswith("__"))


def _is_written_in(own: type, name: str, value: Any) -> bool:
    """Whether a method stands in the body of the class; what a program puts there later, it means to replace."""
    return getattr(value, "__qualname__", None) == f"{own.__qualname__}.{name}"


def _uncallable(base: type, called: Mapping[str, Collection[str]]) -> Iterator[str]:
    for name, passed in called.items():
        if not hasattr(base, name):
            yield f"{base.__name__} has no {name}"
        elif absent := set(passed) - set(_parameters(base, name)):
            yield f"{base.__name__}.{name} does not take {', '.join(sorted(absent))}"


def _parameters(of: type, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(of, name)).parameters


def _is_called(base: type, name: str) -> bool:
    """Whether another method of a class uses the name."""
    methods = {other: inspect.unwrap(value) for other, value in vars(base).items() if inspect.isfunction(value)}
    return any(name in _names(method.__code__) for other, method in methods.items() if other != name)


def _names(code: CodeType) -> Iterator[Any]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)
