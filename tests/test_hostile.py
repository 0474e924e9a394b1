"""Tests of hostile folders: a folder that was downloaded is data. No code of it runs, and nobody is asked."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TOKENIZER, make_thinker
from runs_support import tiny_config, write_recipe

import cocot
from cocot.cli import main
from cocot.data.layout import ThoughtSettings
from cocot.errors import CocotError, ModelError
from cocot.settings.typed import walk
from cocot.training.config import RunConfig
from cocot.training.recipes import field_names, read_recipe

SECRET = "a-secret-of-another-file"
HOSTILE_TEXTS = {
    "tag": "!!python/object/apply:os.system ['touch SENTINEL']",
    "tag of a name": "!!python/name:hostile.module",
    "own tag": "!include SECRET_FILE",
    "alias": "*name",
    "interpolation": "${oc.env:HOME}",
    "class": "{class_path: hostile.Module, init_args: {}}",
    "python class": "{__class__: hostile.Module}",
    "config": "{config: SECRET_FILE}",
    "path": "SECRET_FILE",
    "digits": "1" * 5000,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that leaves a trace when it is imported, and a file of which nothing may be shown."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'SENTINEL')!r}, 'w')\nclass Module: pass\n")
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refused(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot eval` of a run folder with that `config.yaml` is one line, and nothing of it was run or shown."""
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "config.yaml").write_text(text.replace("SECRET_FILE", str(place / "secret")))
    code = main(["eval", "run"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("cocot: ")
    assert err.count("\n") == 1, err
    assert len(err) < 1000
    assert SECRET not in err
    assert "hostile" not in sys.modules
    assert {path.name for path in place.rglob("*")} == {"hostile.py", "secret", "run", "config.yaml"}


@pytest.mark.parametrize("hostile", HOSTILE_TEXTS)
def test_a_hostile_value_in_any_field_is_data(hostile: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field of a recipe, each with a value that would run or read something: refused in one line, or text."""
    whole = tiny_dict()
    names = [name for name, kind, *_ in walk(RunConfig) if kind not in (str, str | None)]
    assert len(names) > 40
    for name in names:
        values = json.loads(json.dumps(whole))
        *path, last = name.split(".")
        part = values
        for step in path:
            part[step] = part.get(step) or {}
            part = part[step]
        part[last] = "PLACE"
        refused_or_text = yaml.safe_dump(values).replace("PLACE", HOSTILE_TEXTS[hostile])
        if hostile in ("path", "interpolation") and last in ("method", "task", "modules"):
            continue  # any text is of the right type there
        if hostile in ("class", "python class", "config") and last in ("settings", "generate", "valid_generate"):
            continue  # a mapping is of the right type there; see below
        refused(refused_or_text, place, capsys)


def tiny_dict() -> dict[str, Any]:
    """A good recipe as plain data."""
    from dataclasses import asdict

    values: dict[str, Any] = json.loads(json.dumps(asdict(tiny_config())))
    return values


@pytest.mark.parametrize(
    "key", ["class_path", "config", "__class__", "init_args", "__reduce__", "<<", "${oc.env:HOME}"]
)
def test_a_hostile_key_at_any_level_is_unknown(key: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that is no field is refused at every level of a recipe, mappings for generators and models among them."""
    levels = ["", *(name for name in field_names() if any(other.startswith(f"{name}.") for other in field_names()))]
    assert {"", "model", "model.init", "model.lora", "data", "curriculum", "train"} == set(levels)
    for level in levels:
        values = tiny_dict()
        part = values
        for step in filter(None, level.split(".")):
            part[step] = part.get(step) or {}
            part = part[step]
        part[key] = "hostile.Module" if key != "config" else str(place / "secret")
        refused(yaml.safe_dump(values), place, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "alias"),
        ("seed: 1\nseed: 2\n", "set twice"),
        ("? [1]\n: 2\n", "as a name"),
        ("\0", "cannot read"),
        ("x" * 1_000_001, "larger than a megabyte"),
        ("[" * 1000, "nested too deeply"),
        ("", "must hold"),
        ("[1]", "must hold"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An alias (and so a bomb of them), a name that is there twice, and what is no mapping."""
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text(text)
    assert main(["eval", "run"]) == 2
    assert message in capsys.readouterr().err


def test_another_file_in_the_place_of_the_settings_is_not_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `config.yaml` that is a link to another file: the error shows nothing of that file."""
    (place / "run").mkdir()
    for text in (SECRET, f"root: [{SECRET}", f"{SECRET}:x\n- {SECRET}", f"\t{SECRET}: %"):
        (place / "secret").write_text(text)
        (place / "run" / "config.yaml").unlink(missing_ok=True)
        (place / "run" / "config.yaml").symlink_to(place / "secret")
        assert main(["eval", "run"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert SECRET not in err


def test_a_whole_number_is_what_it_looks_like(tmp_path: Path) -> None:
    """Scalars mean what they mean in YAML 1.2: no octal 010, no `1:30` as 90, no `no` as false."""
    for text in ("010", "1:30", "no", "0x10", "1_000", "2024-01-01"):
        path = write_recipe(tmp_path / "r.yaml", tiny_config())
        path.write_text(path.read_text().replace("seed: 0", f"seed: {text}"))
        with pytest.raises(CocotError, match="seed is"):
            read_recipe(str(path))


AUTO = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model", "AutoTokenizer": ["hostile.T", None]}


def _edit(folder: Path, file: str, **values: Any) -> None:
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**known, **values}))


CODE: dict[str, tuple[Callable[[Path], Any], bool]] = {  # what is done to the folder, and whether it still loads
    "code of a known type": (lambda folder: _edit(folder, "config.json", auto_map=AUTO), True),
    "code of an unknown type": (
        lambda folder: _edit(folder, "config.json", auto_map=AUTO, model_type="hostile", architectures=["Model"]),
        False,
    ),
    "code of a tokenizer": (
        lambda folder: _edit(folder, "tokenizer_config.json", auto_map=AUTO, tokenizer_class="HostileTokenizer"),
        False,
    ),
    "code of a tokenizer elsewhere": (
        lambda folder: _edit(
            folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["some/repo--hostile.T", None]}
        ),
        True,
    ),
    "a kernel": (lambda folder: _edit(folder, "config.json", attn_implementation="some/kernel"), False),
    "generation": (lambda folder: _edit(folder, "generation_config.json", custom_generate="."), True),
    "a template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        True,
    ),
    "an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "some/other", "peft_type": "LORA"})
        ),
        False,
    ),
}


@pytest.fixture
def model(place: Path) -> Path:
    """The folder of a model that was trained to think, with code of its own wherever Hugging Face looks for some."""
    folder = place / "model"
    thinker = make_thinker("llama")
    thinker.config.thoughts = ThoughtSettings(thinker.config.thoughts["latent_id"], num_thoughts=1).to_json()
    thinker.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    trap = f"open({str(place / 'SENTINEL')!r}, 'w')\n"
    for name in ("hostile.py", "modeling_llama.py", "custom_generate/generate.py", "__init__.py", "setup.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(trap)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", CODE)
def test_code_of_a_model_folder_never_runs(
    code: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In load, ask, eval, probe and export: no file of the folder is run, the terminal is not read, nothing hangs."""
    change, still_loads = CODE[code]
    change(model)
    terminal = _Yes()
    monkeypatch.setattr(sys, "stdin", terminal)
    question = "1 2 ; ? 2 1 1"
    small = ["--mode", "balanced", "--rendering", "symbolic", "--layers", "2", "--width", "2", "-n", "2"]
    commands = [
        ["ask", str(model), question, "--max-new-tokens", "2"],
        ["eval", str(model), *small, "--out", str(place / "e.jsonl"), "--max-new-tokens", "2"],
        ["probe", str(model), *small, "--out", str(place / "search"), "--max-new-tokens", "2"],
        ["export", str(model), str(place / "exported")],
        ["export", str(model), str(place / "embeds"), "--embeds", *small],
    ]
    for command in commands:
        assert main(command) == (0 if still_loads else 2)
        _, err = capsys.readouterr()
        if not still_loads:
            assert "cocot: cannot load a model" in err
            assert err.count("\n") == 1, err
    if still_loads:
        cocot.load(model)
    else:
        with pytest.raises(ModelError):
            cocot.load(model)
    assert not (place / "SENTINEL").exists()
    assert not terminal.was_read


class _Yes(io.StringIO):
    """A terminal at which somebody says yes to everything."""

    was_read = False

    def readline(self, *args: Any) -> str:
        self.was_read = True
        return "y\n"


def test_trust_cannot_be_given(model: Path) -> None:
    """`cocot.load` takes what Hugging Face takes, but never runs code."""
    with pytest.raises(ModelError, match="never runs the code"):
        cocot.load(model, trust_remote_code=True)
