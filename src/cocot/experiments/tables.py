"""Human-readable results: tables in plain text and in Markdown. Reads values and files, never a model.

In: the content of `table.json`, or rows of evaluation results, `{values, tests: {name: summary}}`. Out: text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

from cocot.display.html import block, heading, paragraph, table
from cocot.errors import CocotError, RunError
from cocot.system.console import align
from cocot.system.files import read_json, write_json, write_text
from cocot.tasks.base import Task
from cocot.tasks.problem import Problem

Row = dict[str, Any]

SCHEMA = 2

BY_STEPS = "Accuracy by the steps of the written solution"
SIDE_BY_SIDE = "Side by side: accuracy in each study; mean rank of the rows that all studies have, 1 is best"
ABLATIONS = "Accuracy with other thoughts, and with fewer"
THOUGHTS = "thoughts"
"""The axis of `ablations` that says which thoughts a model was given."""
SEARCH = "Settings that were tried: accuracy on validation problems, first seed, in brackets what the row keeps"


class Table:
    """The results of several trainings: what `table.json` holds. Prints as the command line prints it.

    Attributes:
        path: The folder of the study, which holds the runs, `table.json` and `table.md`.
        content: All that `table.json` holds; `docs/reproduce.md` describes it.
    """

    def __init__(self, path: str | PathLike[str], content: Row) -> None:
        self.path, self.content = Path(path), content

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Table:
        """The table of a folder of `cocot compare` or `cocot reproduce`.

        Raises:
            RunError: the folder has none, or another version of cocot wrote it.
        """
        content = read_table(Path(path))
        if content is None:
            raise RunError(f"{path} holds no table.json; `cocot compare` and `cocot reproduce` write one.")
        return cls(path, content)

    @property
    def rows(self) -> list[Row]:
        """One row a method (or other trial): its values, its results by test set, the paper's."""
        return list(self.content["rows"])

    @property
    def ablations(self) -> list[Row]:
        """The same models with other thoughts, and with fewer; empty where the study asks for none."""
        return list(self.content["ablations"])

    @property
    def search(self) -> list[Row]:
        """What every combination of the searched settings reached; empty where none were searched."""
        return list(self.content.get("search", []))

    @property
    def shortcuts(self) -> list[str]:
        """A line for each test set: what rules that do not reason would reach on it."""
        return shortcuts(self.content)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Table({str(self.path)!r}, {len(self.rows)} rows)"

    def __str__(self) -> str:
        parts = [f"{section.title}:\n{align(section.cells)}" for section in sections(self.content)[1:]]
        return "\n\n".join([plain(self.rows), *parts, *(["\n".join(self.shortcuts)] if self.shortcuts else [])])

    def _repr_html_(self) -> str:
        """For notebooks: the tables, and what stands below them."""
        first, *others = sections(self.content)
        return block(
            heading(str(self.path)),
            *([paragraph(self.content["note"])] if self.content["note"] else []),
            table(first.cells),
            *(part for section in others for part in (heading(section.title), table(section.cells))),
            *map(paragraph, self.shortcuts),
        )


@dataclass(frozen=True)
class Section:
    """A part of a study's results.

    Attributes:
        title: What it shows; of the first part, "Results".
        cells: Its text cells, the heading first.
        num_axes: Columns that name a row; the others hold its numbers.
    """

    title: str
    cells: Sequence[tuple[str, ...]]
    num_axes: int


def sections(content: Row) -> list[Section]:
    """All that a study found, wherever it is shown: the rows first, then what it has of the rest."""
    rows, ablations = content["rows"], content["ablations"]
    num_axes = len(rows[0]["values"])
    found = [
        Section("Results", cells(rows), num_axes),
        Section(BY_STEPS, cells_by_steps(rows), num_axes),
        Section(SEARCH, cells_of_search(content.get("search", [])), num_axes),
        Section(ABLATIONS, cells_of_ablations(ablations), len(ablations[0]["values"]) - 1 if ablations else 0),
    ]
    return [section for section in found if section.cells]


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text cells, the heading first; a column that no row fills is left out.

    With several test sets, all have their columns of accuracy; the other columns are those of the first.
    """
    axes, tests = list(rows[0]["values"]), list(rows[0]["tests"])
    columns: list[tuple[str, Callable[[Row], str]]] = [(axis, partial(_value, axis)) for axis in axes]
    columns += [(setting, partial(_setting, setting)) for setting in rows[0].get("settings", {})]
    for test in tests:
        title = f"{test}: " if len(tests) > 1 else ""
        columns += [(f"{title}accuracy", partial(_accuracy, test)), ("95 % interval", partial(_interval, test))]
        columns.append((f"{title}each seed", partial(_seeds, test)))
        columns.append((f"{title}cut", partial(_cut, test)))

    def first(row: Row) -> Row:
        return dict(row["tests"][tests[0]])

    columns += [
        ("p (cot)", lambda row: _p_value(first(row), "cot")),
        ("p (pause)", lambda row: _p_value(first(row), "pause_as_thought")),
        ("tokens", lambda row: f"{first(row)['tokens']:.1f}"),
        ("ms a question", lambda row: f"{1000 * first(row)['seconds_per_question']:.2f}"),
        ("problems", lambda row: f"{first(row)['problems']:,}"),
        ("trained on", lambda row: f"{row['train_problems']:,.0f}" if "train_problems" in row else ""),
        ("training", lambda row: f"{row['train_seconds'] / 60:.1f} min" if "train_seconds" in row else ""),
        ("compute", lambda row: _number(row.get("compute"), 2)),
        ("paper", lambda row: _share(row.get("paper", {}).get("accuracy"))),
        ("paper's tokens", lambda row: _number(row.get("paper", {}).get("tokens"))),
    ]
    filled = [(head, texts) for head, cell in columns if any(texts := [cell(row) for row in rows])]
    heads, bodies = zip(*filled, strict=True)
    return [heads, *zip(*bodies, strict=True)]


def cells_by_steps(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Accuracy by the number of steps that a written solution takes, as text cells; empty where all take as many."""
    found = {
        (test, steps): None for row in rows for test, own in row["tests"].items() for steps in own.get("by_steps", {})
    }
    if not found:
        return []
    tests = {test for test, _ in found}
    heads = [f"{test}: {steps}" if len(tests) > 1 else steps for test, steps in found]

    def texts(row: Row) -> list[str]:
        return [_share(row["tests"].get(test, {}).get("by_steps", {}).get(steps)) for test, steps in found]

    axes = list(rows[0]["values"])
    return [(*axes, *heads), *((*(_value(axis, row) for axis in axes), *texts(row)) for row in rows)]


def cells_of_ablations(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Accuracies with other thoughts, as text cells: a line a model, a column a control; empty without rows."""
    if not rows:
        return []
    tests = list(dict.fromkeys(test for row in rows for test in row["tests"]))
    axes = [axis for axis in rows[0]["values"] if axis != THOUGHTS]
    lines: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(_value(axis, row) for axis in axes), {})
        line |= {(test, _value(THOUGHTS, row)): f"{result['accuracy']:.1%}" for test, result in row["tests"].items()}

    def place(column: tuple[str, str]) -> tuple[int, int]:
        """Numbers of thoughts stand last, fewer first: models differ in how many they have."""
        test, control = column
        return tests.index(test), int(control[2:]) if control.startswith("k=") else -1

    columns = sorted(dict.fromkeys(column for line in lines.values() for column in line), key=place)
    heads = [f"{test}: {control}" if len(tests) > 1 else control for test, control in columns]
    return [(*axes, *heads), *((*names, *(line.get(at, "") for at in columns)) for names, line in lines.items())]


def cells_side_by_side(studies: Mapping[str, Sequence[Row]]) -> list[tuple[str, ...]]:
    """Accuracies of the same rows in several studies, as text cells: a column a study and test set, then the mean rank.

    Args:
        studies: Rows of each study's table, by its name.

    Returns:
        The heading and a line a row; empty for one study, and for studies whose rows differ in other axes. Rows that
        are in all columns are ranked there, the best as 1, those that are equal by their mean rank.
    """
    axes = {tuple(rows[0]["values"]) for rows in studies.values()}
    if len(studies) < 2 or len(axes) > 1:
        return []
    found: dict[str, dict[tuple[str, ...], Row]] = {}
    for name, rows in studies.items():
        tests = list(rows[0]["tests"])
        for test in tests:
            head = f"{name}, {test}" if len(tests) > 1 else name
            found[head] = {tuple(row["values"].values()): row["tests"][test] for row in rows}
    keys = list(dict.fromkeys(key for own in found.values() for key in own))
    ranked = [key for key in keys if all(key in own for own in found.values())]

    def rank(key: tuple[str, ...], own: Mapping[tuple[str, ...], Row]) -> float:
        mine, others = float(own[key]["accuracy"]), [float(own[other]["accuracy"]) for other in ranked]
        return sum(other > mine for other in others) + (others.count(mine) + 1) / 2

    def texts(key: tuple[str, ...]) -> list[str]:
        accuracies = [_accuracy_of(own[key]) if key in own else "" for own in found.values()]
        mean = f"{fmean(rank(key, own) for own in found.values()):.1f}" if key in ranked else ""
        return [*accuracies, mean]

    return [(*axes.pop(), *found, "mean rank"), *((*key, *texts(key)) for key in keys)]


def cells_of_search(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What every combination of the settings reached, as text cells: a line a row of the study; empty without rows."""
    if not rows:
        return []
    heads = dict.fromkeys(_combination(row) for row in rows)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        text = f"[{row['accuracy']:.1%}]" if row["is_kept"] else f"{row['accuracy']:.1%}"
        lines.setdefault(tuple(row["values"].values()), {})[_combination(row)] = text
    return [
        (*rows[0]["values"], *heads),
        *((*values, *(found[head] for head in heads)) for values, found in lines.items()),
    ]


def _combination(row: Row) -> str:
    return ", ".join(f"{setting.rpartition('.')[2]} {value}" for setting, value in row["settings"].items())


def _value(axis: str, row: Row) -> str:
    return str(row["values"][axis])


def _setting(name: str, row: Row) -> str:
    return str(row["settings"][name])


def _accuracy(test: str, row: Row) -> str:
    return _accuracy_of(row["tests"][test])


def _accuracy_of(result: Row) -> str:
    spread = result.get("sd")
    return f"{result['accuracy']:.1%}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _interval(test: str, row: Row) -> str:
    return "{low:.1%} to {high:.1%}".format_map(row["tests"][test])


def _seeds(test: str, row: Row) -> str:
    """The accuracy of each seed, where there are several: a mean hides the one that did not learn."""
    accuracies = row["tests"][test].get("by_seed", ())
    return ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies) if len(accuracies) > 1 else ""


def _cut(test: str, row: Row) -> str:
    """Answers that were longer than allowed, where there are any."""
    count = row["tests"][test].get("cut", 0)
    return f"{count:,}" if count else ""


def _p_value(result: Row, rival: str) -> str:
    value = result.get("p_values", {}).get(rival)
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plain(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    return align(cells(rows))


def shortcuts_of(task: Task, problems: Sequence[Problem]) -> dict[str, float]:
    """What rules that do not reason would reach; empty for problems of another form than the task's own."""
    try:
        found = task.statistics(problems)
    except CocotError:
        return {}
    return {name: value for name, value in found.items() if name.startswith("shortcut")}


def shortcuts(table: Row) -> list[str]:
    """A line for each test set: what rules that do not reason would reach on it."""
    return [
        f"{Path(file).stem}: " + ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in found.items())
        for file, found in table["tests"].items()
        if found
    ]


def write_table(table: Row, folder: Path) -> None:
    """Write `table.json` and `table.md` into `folder`."""
    write_json(folder / "table.json", {"schema": SCHEMA, **table})
    first, *others = sections(table)
    parts = [table["note"], _as_markdown(first)]
    for section in others:
        parts += [f"{section.title}:", _as_markdown(section)]
    if lines := shortcuts(table):
        parts += ["Without any model:", "\n".join(f"- {line}" for line in lines)]
    versions = table["environment"]["versions"]
    parts.append(f"cocot {table['environment']['commit'] or versions['cocot']}, torch {versions['torch']}.")
    write_text(folder / "table.md", "\n\n".join(filter(None, parts)) + "\n")


def read_table(folder: Path) -> Row | None:
    """The content of a folder's `table.json`; None where there is none.

    Raises:
        RunError: another version of cocot wrote it.
    """
    file = folder / "table.json"
    if not file.exists():
        return None
    table: Row = read_json(file)
    if table.get("schema") != SCHEMA:
        raise RunError(
            f"{file} is of schema {table.get('schema')}, and this version reads {SCHEMA}; the command that made it "
            "writes it again, without training again."
        )
    return table


def _as_markdown(section: Section) -> str:
    head, *body = section.cells
    lines = [head, tuple("---" if index < section.num_axes else "---:" for index in range(len(head))), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
