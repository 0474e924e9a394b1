"""Tests of the README and the pages in docs/: what they show runs, from the state that a new user has.

A page's Python and its commands run in the order of the page, in a folder that holds `examples/` alone, with the model
that comes with cocot and no runs. What cannot run here stands below a comment, invisible to readers, `<!-- not run: WHY
-->`: its Python is compiled, its commands and their options are read by the parser. Pages that say what was done once
are not looked at.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cocot.cli import main
from cocot.cli.arguments import build_parser
from cocot.training.recipes import parse_overrides

ROOT = Path(__file__).parents[1]
LOGS = {"results.md"}
"""Commands of earlier commits, with what they gave then."""
PAGES = [ROOT / "README.md", *(path for path in sorted(ROOT.glob("docs/*.md")) if path.name not in LOGS)]
"""Pages in `docs/examples` are what `make examples` wrote when it ran them."""
SHELLS = {"console", "bash", "sh", "shell"}
MOST_NOT_RUN = 12
FENCE = re.compile(r"^```(\w*)\s*$")
NOT_RUN = re.compile(r"^<!-- not run: .+ -->$")


@dataclass(frozen=True)
class Snippet:
    """A block of a page: Python as it stands, or commands, one a line.

    Attributes:
        line: Where it begins, from 1.
        kind: python or commands.
        text: What it says.
        runs: Whether it can run here.
    """

    line: int
    kind: str
    text: str
    runs: bool


def snippets(page: str) -> Iterator[Snippet]:
    """The blocks of a page, fenced or indented."""
    lines = page.splitlines()
    number, runs = 0, True
    while number < len(lines):
        line = lines[number]
        begin, block = number, list[str]()
        if fence := FENCE.match(line):
            number += 1
            while lines[number] != "```":
                block.append(lines[number])
                number += 1
            if fence[1] == "python" or fence[1] in SHELLS:
                kind = "python" if fence[1] == "python" else "commands"
                yield Snippet(begin + 1, kind, "\n".join(block), runs)
        elif line.startswith("    ") and (begin == 0 or not lines[begin - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                block.append(lines[number][4:])
                number += 1
            number -= 1
            yield Snippet(begin + 1, "commands", "\n".join(block), runs)
        if line.strip() or block:
            runs = not NOT_RUN.match(line)
        number += 1


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `cocot` of every command in a block that is one of ours, also by a launcher."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ")
        if re.match(r"(cocot|torchrun|accelerate) ", line):
            words = shlex.split(line, comments=True)
            if words[0] == "cocot":
                yield words[1:]
            elif "cocot" in words:
                yield words[words.index("cocot") + 1 :]


def all_snippets() -> list[tuple[Path, Snippet]]:
    """Every snippet of every page."""
    return [(page, snippet) for page in PAGES for snippet in snippets(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python and its commands, in the order in which a reader tries them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page.read_text(encoding="utf-8")):
        place = f"{page.name}:{snippet.line}"
        if snippet.kind == "python":
            code = compile(snippet.text, place, "exec")
            if snippet.runs:
                exec(code, namespace)
            continue
        for words in commands(snippet.text):
            if snippet.runs:
                assert main(words) == 0, (place, words, capsys.readouterr().err)
            else:
                args, overrides = build_parser().parse_known_args(words)
                assert not overrides or args.takes_overrides, (place, words)
                parse_overrides(overrides)


def test_few_are_not_run() -> None:
    """The exceptions stay the exception; there is something to run of both kinds."""
    found = [snippet for _, snippet in all_snippets() if snippet.kind == "python" or list(commands(snippet.text))]
    assert sum(not snippet.runs for snippet in found) <= MOST_NOT_RUN
    ran = [snippet for snippet in found if snippet.runs]
    assert {snippet.kind for snippet in ran} == {"python", "commands"}


def test_what_is_a_snippet() -> None:
    """Fenced and indented blocks, continued lines, launchers, comments; a mark is for the next block alone."""
    page = """Text
```python
a = 1
```

    cocot env   # a comment
    make demo

<!-- not run: trains for long -->

```console
$ cocot train demo \\
    --seed 1
stage_0: 3 epochs
```
- a list

    torchrun --nproc_per_node 2 -m cocot eval runs/mine
"""
    found = list(snippets(page))
    assert [(snippet.line, snippet.kind, snippet.runs) for snippet in found] == [
        (2, "python", True),
        (6, "commands", True),
        (11, "commands", False),
        (18, "commands", True),
    ]
    assert [list(commands(snippet.text)) for snippet in found[1:]] == [
        [["env"]],
        [["train", "demo", "--seed", "1"]],
        [["eval", "runs/mine"]],
    ]
