"""Tests of every option of every command and every field of a recipe, found in the parser and the dataclasses.

Whatever an option is given: it is a legal value, or the answer is one line that begins with `cocot: `, exit code 2, and
nothing was written. A new option or field is covered by being there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from conftest import PROBLEMS, TOKENIZER, make_thinker
from runs_support import tiny_config, write_recipe

import cocot
from cocot import tasks
from cocot.cli import main
from cocot.cli.arguments import build_parser
from cocot.errors import CocotError
from cocot.evaluation.evaluate import evaluate
from cocot.interpret.search_tree import probe_search
from cocot.settings.typed import walk
from cocot.training.config import RunConfig

NUMBERS = ["nan", "inf", "-1", "-1e30", "0", "1e30", "1e999", str(2**70), "one", "", "1" * 5000, "[1]", "{a: 1}"]
NEVER = {"nan", "inf", "-1", "-1e30", "1e999", "one", "", "1" * 5000}
"""What is a good value of no number here, but where a negative one is: a seed of problems."""

# A good call of each command that does as little as it can; options are put behind it.
CALLS = {
    "train": ["{recipe}", "--dry-run"],
    "compare": ["{recipe}", "--methods", "nothing"],  # refused in the end, so that nothing is ever trained
    "reproduce": ["prosqa", "--methods", "nothing"],
    "eval": ["{none}"],  # no model: refused in the end
    "ask": ["{none}", "a question"],
    "probe": ["{none}"],
    "report": ["{none}"],
    "export": ["{none}", "{new}"],
    "serve": ["{none}"],
    "data": ["prosqa", "--out", "{new}"],
    "bench": ["--shapes", "nothing"],
    "recipes": [],
    "env": [],
}


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser."""
    (action,) = (item for item in build_parser()._actions if isinstance(item, argparse._SubParsersAction))
    return dict(action.choices)


def options(kind: type | None) -> Iterator[tuple[str, argparse.Action]]:
    """Every option of every command that takes a value: numbers, paths, or names (None)."""
    for name, parser in commands().items():
        for action in parser._actions:
            if action.option_strings and action.nargs in (None, "+"):
                is_number = action.type is not None and action.type is not Path
                if {int: is_number, Path: action.type is Path, None: action.type is None}[kind]:
                    yield name, action


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a recipe and files of every bad kind beside it."""
    write_recipe(tmp_path / "mine.yaml", tiny_config())
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80" * 9)
    (tmp_path / "folder").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path


def call(command: list[str], place: Path, capsys: pytest.CaptureFixture[str], legal: bool | None) -> str:
    """Run a command here; `legal`: whether it must succeed, must be refused, or (None) may do either."""
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    places = {"{recipe}": "mine.yaml", "{none}": "none", "{new}": "new", "{empty}": "empty"}
    words = [str(place / places[word]) if word in places else word for word in command]
    code = main(words)
    _, err = capsys.readouterr()
    shown = " ".join(words)[:300]
    if legal is not None:
        assert code == (0 if legal else 2), (shown, err)
    if code == 2:
        lines = err.splitlines()
        assert len(lines) == 1, (shown, err[-2000:])
        assert lines[0].startswith("cocot: "), (shown, err)
        assert len(err) < 1500 + 3 * sum(map(len, words)), shown
        after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
        assert after.keys() == before.keys(), shown
    (place / "new").unlink(missing_ok=True)
    return err


def test_every_command_has_a_call() -> None:
    """The table above names every command; the sweeps below find many options of each kind."""
    assert CALLS.keys() == commands().keys()
    assert len(list(options(int))) > 30
    assert len(list(options(Path))) > 10
    assert len(list(options(None))) > 10


@pytest.mark.parametrize(("command", "action"), list(options(int)), ids=lambda item: getattr(item, "dest", item))
def test_a_number_that_cannot_be(
    command: str, action: argparse.Action, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option with a number: what is no whole number or out of bounds is refused, by the option's name."""
    option = action.option_strings[-1]
    is_seed = option == "--seed"
    for text in NUMBERS:
        whole = text.lstrip("-").isdigit() and len(text) < 4000
        legal = None if whole and (is_seed or text != "-1") else False
        err = call([command, *CALLS[command], f"{option}={text}"], place, capsys, legal)
        if not whole or (int(text) in (-1, 2**70) and not is_seed):
            assert option in err, (command, option, text[:40], err)


@pytest.mark.parametrize(("command", "action"), list(options(Path)), ids=lambda item: getattr(item, "dest", item))
def test_a_path_that_cannot_be(
    command: str, action: argparse.Action, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option with a path: nothing there, a folder for a file and the other way, an empty and a binary file."""
    option = action.option_strings[-1]
    for name in ("missing", "folder", "empty", "binary", "empty/below", "x" * 300, "f" + "/f" * 3000):
        words = [part for part in CALLS[command] if part != "--dry-run"]
        if command in ("train",):
            words += ["--curriculum.method", "nothing"]
        if command == "data":
            words = ["prosqa", "--count", "2"]
        legal = True if (command, option, name) in WRITABLE else None if command == "data" else False
        call([command, *words, option, str(place / name)], place, capsys, legal)
        (place / "missing").unlink(missing_ok=True)


WRITABLE = {("data", "--out", "missing")}

NAMES = {
    ("train", "recipe"): "dmeo",
    ("compare", "recipe"): "dmeo",
    ("reproduce", "study"): "prosqua",
    ("data", "task"): "prosqaa",
    ("reproduce", "--scale"): "cpuu",
    ("reproduce", "--methods"): "cocont",
    ("reproduce", "--axis"): "metod=cot",
    **{(name, "--search"): "train.learning_rat=1e-3,3e-3" for name in ("compare", "reproduce")},
    ("compare", "--methods"): "cocont",
    ("eval", "--task"): "prosqaa",
    ("probe", "--task"): "prosqaa",
    ("export", "--task"): "prosqaa",
    ("compare", "--on"): "rya",
    ("reproduce", "--on"): "rya",
    ("bench", "--shapes"): "smal",
    ("bench", "--device"): "cudaa",
    **{(name, option): "balancd" for name in ("eval", "probe", "export", "data") for option in ("--mode",)},
    **{(name, "--rendering"): "symbolc" for name in ("eval", "probe", "export", "data")},
}
MEANT = {"dmeo": "demo", "prosqua": "prosqa", "prosqaa": "prosqa", "cpuu": "cpu", "cocont": "coconut"}
MEANT |= {
    "rya": "ray",
    "metod=cot": "method",
    "train.learning_rat=1e-3,3e-3": "train.learning_rate",
    "smal": "small",
    "cudaa": "cuda",
    "balancd": "balanced",
    "symbolc": "symbolic",
}


FREE = {("serve", "--name"), ("serve", "--host")}
"""Any text may be right."""


def test_every_option_with_a_name_is_tried() -> None:
    """The table above names all of them."""
    found = {(name, action.option_strings[-1]) for name, action in options(None)}
    assert found - FREE == {(name, option) for name, option in NAMES if option.startswith("--")}


@pytest.mark.parametrize(("command", "option"), NAMES)
def test_a_name_that_is_nearly_one(command: str, option: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every name on the command line: a near miss is refused, and what was meant is in the line."""
    wrong = NAMES[command, option]
    words = [*CALLS[command]]
    if option.startswith("--"):
        words += [option, wrong]
    else:
        words[0] = wrong
    if command == "export":
        words.append("--embeds")
    if option == "--search":
        words[words.index("--methods") + 1] = "cot"
    if option in ("--mode", "--rendering") and command != "data":
        words[0] = "prosqa-small"  # whose task knows them
    err = call([command, *words], place, capsys, False)
    assert wrong.partition("=")[0] in err
    assert MEANT[wrong] in err.replace(repr(wrong), "")


def numeric_fields() -> list[tuple[str, Any]]:
    """Every field of a recipe that is a number, or may be one."""
    return [(name, kind) for name, kind, *_ in walk(RunConfig) if {int, float} & {kind, *get_args(kind)}]


def parts_of(name: str) -> list[str]:
    """What a field needs around it."""
    if name.startswith("model.lora"):
        return ["--model.init", "null", "--model.path", "somewhere"]
    return []


@pytest.mark.parametrize(("name", "kind"), numeric_fields())
def test_a_number_of_a_recipe_that_cannot_be(
    name: str, kind: Any, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every numeric field: what no field takes is refused by its name; the rest is refused or makes a plan."""
    assert len(numeric_fields()) > 30
    for text in NUMBERS:
        words = ["train", str(place / "mine.yaml"), *parts_of(name), f"--{name}={text}", "--dry-run"]
        never = text in NEVER or text == str(2**70) or text == "1e30"
        err = call(words, place, capsys, False if never else None)
        if never:
            assert name in err, (name, text[:40], err)


TEXTS = ["", "nan", "-1", "[a]", "{a: 1}", "{a: {b: 1}}", "[", "\0", "x" * 1000]


def test_every_other_field_of_a_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields that are no numbers: other types, near misses of names, mappings with names that nothing knows."""
    others = [(name, kind) for name, kind, default, _ in walk(RunConfig) if (name, kind) not in numeric_fields()]
    assert len(others) > 20
    for name, kind in others:
        choices = [
            option for part in (kind, *get_args(kind)) if get_origin(part) is Literal for option in get_args(part)
        ]
        for text in [
            "",
            "nan",
            "-1",
            "[a]",
            "{a: 1}",
            "{a: {b: 1}}",
            "[",
            "\0",
            "x" * 1000,
            *(f"{x}x" for x in choices),
        ]:
            err = call(
                ["train", str(place / "mine.yaml"), *parts_of(name), f"--{name}={text}", "--dry-run"],
                place,
                capsys,
                False if choices else None,
            )
            if choices:
                assert name in err, (name, text[:40], err)
                if text[:-1] in choices:
                    assert f"Did you mean {text[:-1]!r}?" in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--train.learning_rate", "-1"], "train.learning_rate is -1.0; it must be above 0"),
        (["--train.adam_beta2", "2"], "train.adam_beta2 is 2.0; it must be at most"),
        (["--train.warmup_steps", "-1"], "train.warmup_steps is -1"),
        (["--train.lr_scheduler", "greedy"], "train.lr_scheduler is 'greedy'; it must be one of: constant"),
        (["--train.report_to", "[wandbb]"], "train.report_to names 'wandbb'"),
        (["--model.init.width", "33"], "which 2 heads cannot share"),
        (["--model.init.width", "6"], "cannot build model.init"),  # rotary positions take pairs
        (["--model.init.layers", "0"], "model.init.layers is 0"),
        (["--model.init.architecture", "lama"], "the nearest are llama"),
        (["--model.init.architecture", "bert-base"], "no causal language model"),
        (["--model.init.settings", "{n_positons: 3}"], "does not have; did you mean 'n_positions'?"),
        (["--model.init.settings", "{hidden_size: 3}"], "sets hidden_size, which follows"),
        (["--model.init.settings", "{n_positions: -1}"], "cannot build model.init"),
        (["--seed", str(2**70)], "seed is 1180591620717411303424; it must be at most 2147483647"),
        (["--data.generate", "{count: 3}"], "data.generate sets count"),
        (["--data.generate", "{mode: [3]}"], "mode must be a name"),
        (["--data.num_train", "3"], "an epoch of 3 problems holds no batch of 8"),
        (["--data.fresh=false", "--data.train", "{empty}"], "holds no problems"),
    ],
)
def test_nothing_is_trained_or_written(
    override: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be trained is refused by `cocot train` itself before the run folder is made."""
    if "6" in override:
        override = [*override, "--model.init.architecture", "llama", "--model.init.settings", "{}"]
    err = call(["train", "{recipe}", "--out", str(place / "run"), *override], place, capsys, False)
    assert message in err
    assert not (place / "run").exists()


BAD_NUMBERS: list[Any] = [-1, -3, 2**70, 1.5, float("nan"), math.inf, "2", True, [1]]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, 0], ids=str)
def test_numbers_of_the_library(value: Any, tmp_path: Path) -> None:
    """`batch_size`, `max_new_tokens`, `num_thoughts`, `count` and `seed` in Python: an error of ours, or an answer."""
    model = make_thinker("llama")
    task, question = tasks.get("prosqa"), [PROBLEMS[0].question]
    calls = {
        name: [
            lambda setting=setting: cocot.answer(model, TOKENIZER, question, **setting),
            lambda setting=setting: evaluate(model, TOKENIZER, task, PROBLEMS[:1], **setting),
            lambda setting=setting: probe_search(model, TOKENIZER, task, PROBLEMS[:1], **setting),
        ]
        for name in ("batch_size", "max_new_tokens", "num_thoughts")
        for setting in [{"num_thoughts": 1, "max_new_tokens": 1, name: value}]
    }
    for task_name in tasks.TASKS:
        made = tasks.get(task_name)
        calls |= {
            f"{task_name} count": [lambda made=made: made.generate(value, seed=0)],
            f"{task_name} seed": [lambda made=made: made.generate(1, seed=value)],
        }
    for name, acts in calls.items():
        is_legal = (value == 0 and (name == "num_thoughts" or " " in name)) or (
            name.endswith("seed") and type(value) is int
        )
        for act in acts:
            if is_legal:
                act()
            else:
                with pytest.raises(CocotError):
                    act()
