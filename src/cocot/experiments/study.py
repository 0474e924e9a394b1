"""A study: one table made by several trainings. Which they are, what they are tested on, what the paper has to compare.

In: the name of a shipped study and a scale, or a recipe and methods. Out: a `Study` and its `Trial`s, one a training.

    study = read_study("prosqa", "demo")
    for trial in trials(study, overrides=[]):
        print(trial.path, trial.config.curriculum.method)

Read next: `experiments/compare.py`, which makes the table; `studies/*.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cocot.errors import ConfigError
from cocot.settings import plain_yaml
from cocot.settings.typed import choose
from cocot.training.config import RunConfig
from cocot.training.recipes import override_words, read_recipe

_SHIPPED = Path(__file__).parents[1] / "configs" / "studies"
METHOD, SEED = "curriculum.method", "seed"


@dataclass(frozen=True)
class Study:
    """What to train and what to ask.

    Attributes:
        recipe: Name of a shipped recipe, or a YAML file.
        axes: What differs between the trainings: every combination of one value of each axis is trained. A dotted field
            of the recipe with a list of values; or a name with a mapping from value names to several such fields. The
            first axis is what is compared, and is often the method.
        tests: Test sets by name: settings that replace those of the validation problems.
        num_problems: Problems a test set.
        ablations: Whether models that think are also asked with other thoughts, and with fewer.
        note: What a reader of the table must know of its scale.
        paper: The paper's figures by value of the first axis: accuracy, and tokens if it has them.
        search: Settings that are searched: dotted fields of the recipe, each with its values. Every row is trained with
            every combination of them, and keeps the one that its validation problems choose (`experiments/search.py`).
    """

    recipe: str
    axes: Mapping[str, Any]
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"test": {}})
    num_problems: int = 1000
    ablations: bool = False
    note: str = ""
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def with_axis(self, axis: str, values: Sequence[Any]) -> Study:
        """The same study with other values of an axis.

        Raises:
            ConfigError: the axis is a mapping, which lacks one of the values.
        """
        known = self.axes.get(axis)
        if not isinstance(known, Mapping):
            return replace(self, axes={**self.axes, axis: list(values)})
        by_text = {str(value): value for value in known}
        unknown = [value for value in values if str(value) not in by_text]
        if unknown:
            raise ConfigError(f"the study has no {axis} {unknown[0]!r}; choose among: {', '.join(by_text)}.")
        chosen = [by_text[str(value)] for value in values]
        return replace(self, axes={**self.axes, axis: {value: known[value] for value in chosen}})

    def with_values(self, axis: str, values: Sequence[Any]) -> Study:
        """`with_axis`, the axis by its short name, `layers`.

        Raises:
            ConfigError: the study has no such axis, or the axis has no such value.
        """
        names = {_short(name): name for name in self.axes}
        if axis not in names or not values:
            words = f"{axis}={','.join(map(str, values))}" if values else axis
            raise ConfigError(f"{words!r} gives no axis of this study its values; its axes are: {', '.join(names)}.")
        return self.with_axis(names[axis], values)

    def with_search(self, search: Mapping[str, Sequence[Any]]) -> Study:
        """The same study with a search of these settings.

        Raises:
            ConfigError: there is nothing to choose among, or one of the settings is an axis of the study.
        """
        for setting, values in search.items():
            if setting in (*self.axes, METHOD, SEED):
                raise ConfigError(f"{setting} is an axis of this study: its values are compared, and none is chosen.")
            if len(values) < 2:
                raise ConfigError(f"a search of {setting} takes at least two values: {setting}=VALUE,VALUE.")
        return replace(self, search=dict(search))


def axis_values(words: str) -> tuple[str, list[Any]]:
    """An axis or a setting and its values as said on the command line: `layers=2,4`.

    Raises:
        ConfigError: the words are not of that form.
    """
    axis, _, values = words.partition("=")
    try:
        return axis, [plain_yaml.parse(value) for value in values.split(",")] if values else []
    except ConfigError as error:
        raise ConfigError(f"{words!r}: give values with commas between and nothing else, {axis}=2,3.") from error


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        values: Its value of each axis, by the axis's short name.
        settings: Its value of each setting that is searched, by the setting's name.
        overrides: Its settings as dotted overrides of the recipe.
        config: The resolved recipe.
        path: Its run folder within that of the study: a folder for the first axis, for each searched setting, and for
            each further axis. So a study with a search and the same one without can share the study's folder.
        compute: Operations of its training as a ratio to Coconut's; None where they were not counted.
    """

    values: dict[str, str]
    settings: dict[str, str]
    overrides: list[str]
    config: RunConfig
    path: Path
    compute: float | None = None

    @property
    def row(self) -> dict[str, str]:
        """The values but the seed, which are those of its row of the table."""
        return {axis: value for axis, value in self.values.items() if axis != SEED}

    @property
    def group(self) -> tuple[str, ...]:
        """The same without the names: trials of one group are one row of the table."""
        return tuple(self.row.values())


def trials(study: Study, overrides: Sequence[str]) -> list[Trial]:
    """Every training of the study, the last axis turning fastest, a search's with every combination of its settings.

    Args:
        study: The study.
        overrides: Dotted overrides of its recipe, under those of the axes.

    Raises:
        ConfigError: an axis sets what no recipe has, or an impossible value.
    """
    options = [_options(axis, values) for axis, values in {**study.axes, **study.search}.items()]
    made: list[Trial] = []
    for chosen in product(*options):
        own = [*overrides, *(word for *_, settings in chosen for word in override_words(settings))]
        texts = [(axis, value) for axis, value, _ in chosen]
        axes, settings = texts[: len(study.axes)], texts[len(study.axes) :]
        path = Path(axes[0][1], *(f"{axis}_{value}" for axis, value in [*settings, *axes[1:]]))
        if any(path == other.path for other in made):
            raise ConfigError(f"{path} is there twice; name each value of an axis once.")
        made.append(Trial(dict(axes), dict(settings), own, read_recipe(study.recipe, own), path))
    return made


def _options(axis: str, values: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(short name of the axis, name of the value, settings) of each value."""
    if isinstance(values, Mapping):
        return [(_short(axis), str(value), dict(settings)) for value, settings in values.items()]
    return [(_short(axis), str(value), {axis: value}) for value in values]


def _short(axis: str) -> str:
    return axis.rpartition(".")[2]


def shipped_studies() -> dict[str, list[str]]:
    """The studies that come with cocot: name -> scales."""
    return {path.stem: list(_read(path)["scales"]) for path in sorted(_SHIPPED.glob("*.yaml"))}


def chosen_scale(name: str, scale: str | None) -> str:
    """A scale of a shipped study; None for its first, the smallest.

    Raises:
        ConfigError: there is no such study, or it has no such scale.
    """
    known = shipped_studies()
    if name not in known:
        raise ConfigError(f"no study {name!r}; {choose(name, known)}")
    if scale is None:
        return known[name][0]
    if scale not in known[name]:
        raise ConfigError(f"study {name} has no scale {scale!r}; {choose(scale, known[name])}")
    return scale


def read_study(name: str, scale: str | None = None) -> Study:
    """A shipped study at a scale, by default its smallest.

    Raises:
        ConfigError: there is no such study, or it has no such scale.
    """
    scale = chosen_scale(name, scale)
    values = _read(_SHIPPED / f"{name}.yaml")
    merged = {**values, **values["scales"][scale]}
    return Study(**{item.name: merged[item.name] for item in fields(Study) if item.name in merged})


def _read(path: Path) -> dict[str, Any]:
    return plain_yaml.read_mapping(path)
