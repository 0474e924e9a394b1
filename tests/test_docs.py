"""Tests of the documentation: what its pages say of the code, the examples and each other is so."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import cocot
from cocot.cli.arguments import build_parser
from cocot.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "examples"))
import execute  # noqa: E402

EXAMPLES = sorted(file.stem for file in (ROOT / "examples").glob("*.py") if file.stem not in ("execute", "picture"))


def read(path: str) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_extra_is_explained() -> None:
    """The page on installing has a row for each extra, and for no other."""
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    section = read("docs/install.md").partition("## Extras")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set(extras)


def test_every_method_has_a_row() -> None:
    """The page on methods has a row for each that comes with cocot."""
    named = re.findall(r"^\| `(\w+)` \|", read("docs/methods.md").partition("## Settings")[0], re.MULTILINE)
    assert set(named) == {name for name, method in METHODS.items() if type(method).__module__.startswith("cocot.")}


def test_every_command_has_a_row() -> None:
    """The page on the command line names each command."""
    text = read("docs/cli.md")
    (commands,) = (action.choices for action in build_parser()._actions if action.choices)
    assert not [name for name in commands if f"cocot {name}" not in text]


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    """The page of the API has an entry for each public name; the modules among them for what they hold."""
    entries = re.findall(r"^::: cocot\.([\w.]+)$", read("docs/api.md"), re.MULTILINE)
    assert {entry.partition(".")[0] for entry in entries} | {"errors"} == set(cocot.__all__)


def test_every_package_has_a_row() -> None:
    """The page on the structure names each package."""
    packages = [place.name for place in (ROOT / "src" / "cocot").iterdir() if (place / "__init__.py").exists()]
    text = read("docs/structure.md")
    assert not [name for name in packages if f"`{name}/`" not in text]


def test_answers_on_the_structure_are_so() -> None:
    """The files that CONTRIBUTING.md answers with are there."""
    table = read("CONTRIBUTING.md").partition("[start:where]")[2].partition("[end:where]")[0]
    rows = re.findall(r"^\| .*\? \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 10
    for answer in rows:
        folder = re.search(r"`(\w+)/`", answer)
        assert folder
        assert (ROOT / "src" / "cocot" / folder[1]).is_dir()
        assert all((ROOT / "src" / "cocot" / folder[1] / file).exists() for file in re.findall(r"`(\w+\.py)`", answer))


def test_links_of_the_readme_lead_somewhere() -> None:
    """Every relative link and picture of the README is a file; building the site checks those of the pages."""
    links = re.findall(r"(?:\]\(|src=\"|srcset=\")(?!https?:)([^)\"]+)", read("README.md"))
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_pages_are_in_the_navigation() -> None:
    """Every page can be reached from the site's navigation."""
    text = read("mkdocs.yml")
    assert not [page for file in DOCS.rglob("*.md") if (page := file.relative_to(DOCS).as_posix()) not in text]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_of_an_example_is_of_its_code(name: str) -> None:
    """The page shows the text and code of the script as it is now: `make examples` wrote it after the last change."""
    page = read(f"docs/examples/{name}.md")
    for is_text, content in execute.cells(read(f"examples/{name}.py")):
        assert (execute.as_text(content) if is_text else execute.as_code(content)) in page


def test_a_cell_shows_what_it_printed_and_its_value() -> None:
    """What a cell prints and what its last expression is stand on the page; the next cell knows its names."""
    names: dict[str, object] = {}
    assert execute.run("seen = 2\nprint('read')\nseen + 1", names) == "```text\nread\n```\n\n```text\n3\n```"
    assert execute.run("seen", names) == "```text\n2\n```"
    assert execute.run("unseen = seen", names) == ""


def test_the_recipe_of_the_examples_is_one() -> None:
    """The recipe that pages quote can be read, and learns from the file beside it."""
    recipe = yaml.safe_load(read("examples/own_data.yaml"))
    assert len(read(recipe["data"]["train"]).splitlines()) == 20
