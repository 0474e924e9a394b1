"""Tests of the version: one place says it, and the command line, the package and saved models repeat it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import make_model
from transformers import AutoConfig

import cocot
from cocot.cli import main
from cocot.data.layout import ThoughtSettings
from cocot.modeling.thought_settings import set_thought_settings, thought_settings

ROOT = Path(__file__).parent.parent


def test_the_command_line_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot --version` prints the version of the package, and nothing else."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"cocot {cocot.__version__}\n"


def test_the_version_is_said_once() -> None:
    """The package is built with the version of the source, and the other files that name one agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cocot.version.__version__"}
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == cocot.__version__  # type: ignore[index]
    assert f"## {cocot.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_saved_model_knows_the_version(tmp_path: Path) -> None:
    """`config.json` names the version that gave the model its thoughts, and still does when the model is loaded."""
    model = make_model("llama")
    set_thought_settings(model, ThoughtSettings(latent_id=1))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["cocot_version"] == cocot.__version__
    assert AutoConfig.from_pretrained(tmp_path).cocot_version == cocot.__version__


def test_a_model_of_before_is_read(tmp_path: Path) -> None:
    """A model whose `config.json` names no version, as the bundled one of 2026, has its thoughts all the same."""
    model = make_model("llama")
    set_thought_settings(model, ThoughtSettings(latent_id=1))
    del model.config.cocot_version
    model.save_pretrained(tmp_path)
    model.config = AutoConfig.from_pretrained(tmp_path)
    assert thought_settings(model).latent_id == 1
