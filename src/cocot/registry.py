"""Names for things of one kind, to which others can add: methods and tasks.

    METHODS: Registry[Method] = Registry("method", "cocot.methods")
    METHODS.register(Mine())
    METHODS["mine"]

What an installed package names as an entry point of the group is known, too; it is imported when the names are first
asked for. Nothing that a model folder, a run folder or a recipe says is ever imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, Protocol, TypeVar

from cocot.errors import ConfigError
from cocot.settings.typed import choose, short


class _Named(Protocol):
    name: str


Kind = TypeVar("Kind", bound=_Named)


class Registry(Mapping[str, Kind], Generic[Kind]):
    """What is known of one kind, by name, in the order in which it was registered."""

    def __init__(self, kind: str, group: str) -> None:
        """Begin without any.

        Args:
            kind: What one of them is called in messages.
            group: Entry points of this group are classes to register, in installed packages.
        """
        self._kind, self._group = kind, group
        self._known: dict[str, Kind] = {}
        self._has_entry_points = False

    def register(self, item: Kind) -> None:
        """Make something known by its name. Defining the same class again, as a notebook does, replaces it.

        Raises:
            ConfigError: another class has that name.
        """
        known = self._known.get(item.name)
        if known is not None and _place(known) != _place(item):
            raise ConfigError(
                f"the {self._kind} {item.name!r} is {_place(known)} already; give {_place(item)} another name."
            )
        self._known[item.name] = item

    def register_class(self, kind: type[Kind]) -> None:
        """Make one object of a class known by the class's name.

        Raises:
            ConfigError: the class has no name, or another class has it.
        """
        if not kind.name:
            raise ConfigError(f"the {self._kind} {kind.__qualname__} has no name; set the attribute `name`.")
        self.register(kind())

    def __getitem__(self, name: str) -> Kind:
        """The one of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self:
            raise ConfigError(f"unknown {self._kind} {short(name)}; {choose(name, self)}")
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        """Whether it is known, here or by an installed package."""
        if not isinstance(name, str):
            return False
        return name in self._known or name in self._with_entry_points()

    def __iter__(self) -> Iterator[str]:
        """Every name."""
        return iter(dict(self._with_entry_points()))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._with_entry_points())

    def _with_entry_points(self) -> Mapping[str, Kind]:
        if not self._has_entry_points:
            for point in entry_points(group=self._group):
                self.register(self._made(point))
            self._has_entry_points = True
        return self._known

    def _made(self, point: EntryPoint) -> Kind:
        try:
            item: Kind = point.load()()
        except Exception as error:  # of a stranger's module: anything
            raise ConfigError(
                f"the {self._kind} {point.name!r} of an installed package, {point.value}, cannot be loaded: "
                f"{type(error).__name__}: {error}. Mend the package, or remove it."
            ) from error
        return item


def _place(item: object) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}"
