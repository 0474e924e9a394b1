"""Tests of the command line: every command does its work, every slip is one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runs_support import cocot, environment, tiny_config, write_recipe

from cocot.cli import main
from cocot.interpret.search_tree import SearchTree
from cocot.methods import METHODS
from cocot.modeling.generation import answer
from cocot.modeling.loading import load
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.prosqa import ProsQA
from cocot.training.recipes import field_names, read_recipe, shipped_recipes
from cocot.training.run import train
from cocot.training.schedule import plan

SMALL = ["--mode", "balanced", "--rendering", "symbolic", "--layers", "2", "--width", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; read it, do not change it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    train(tiny_config(data={"num_train": 8}), folder)
    return folder


def run(command: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command here: exit code, stdout, stderr."""
    code = main([str(part) for part in command])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_answers_at_once() -> None:
    """`cocot --help` lists every command, and loads neither torch nor transformers."""
    probe = "import sys; from cocot.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False, env=environment(), timeout=60
    )
    assert done.returncode == 0
    for command in ("train", "compare", "reproduce", "eval", "probe", "ask", "data", "recipes", "env"):
        assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE)
    assert "'argparse'" in done.stdout
    assert "'torch'" not in done.stdout
    assert "'transformers'" not in done.stdout


@pytest.mark.parametrize("command", ["train", "compare", "reproduce", "eval", "probe", "ask", "data", "recipes", "env"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot COMMAND --help` exits with 0 and begins with how to call it."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: cocot {command} ")


def test_env_prints_the_block_for_bug_reports(capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot env` prints JSON with versions and machine."""
    code, out, err = run(["env"], capsys)
    assert (code, err) == (0, "")
    assert {"versions", "python", "platform", "commit"} <= json.loads(out).keys()


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_recipe_takes_every_method(recipe: str) -> None:
    """As `cocot recipes` says: each has stages with epochs, and phases that it can train."""
    for method in METHODS:
        config = read_recipe(recipe, {"curriculum.method": method})
        assert all(planned.stage.num_epochs for planned in plan(config))


def test_recipes_lists_what_is_shipped_and_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot recipes` names each recipe with cost and result, then each method; `--fields` names every setting."""
    code, out, _ = run(["recipes"], capsys)
    assert code == 0
    recipes, methods = out.split("\n\n")
    assert [line for line in recipes.splitlines() if not line.startswith(" ")] == list(shipped_recipes())
    assert [line.split()[0] for line in methods.splitlines()[1:]] == list(METHODS)
    code, out, _ = run(["recipes", "--fields"], capsys)
    assert code == 0
    missing = [
        name
        for name in field_names()
        if f"--{name}" not in out and not any(part in name for part in ("init.", "lora."))
    ]
    assert not missing


def test_data_makes_problems_with_their_shortcut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot data prosqa` writes the generator's problems and prints statistics, the shortcut among them."""
    code, out, err = run(["data", "prosqa", "--out", tmp_path / "p.jsonl", "--count", 7, "--seed", 5, *SMALL], capsys)
    assert (code, err) == (0, "")
    made = ProsQA().generate(7, seed=5, mode="balanced", rendering="symbolic", layers=2, width=1)
    assert read_problems(tmp_path / "p.jsonl") == made
    statistics = dict(line.split() for line in out.splitlines()[:-1])
    assert float(statistics["shortcut"]) == pytest.approx(ProsQA().statistics(made)["shortcut"], abs=1e-3)
    assert out.splitlines()[-1] == f"7 problems: {tmp_path / 'p.jsonl'}"


def test_train_in_a_process_of_its_own(tmp_path: Path) -> None:
    """`cocot train` trains by the recipe and its overrides into runs/RECIPE, prints each stage, and exits with 0."""
    write_recipe(tmp_path / "mine.yaml", tiny_config(data={"num_train": 8}))
    done = cocot("train", "mine.yaml", "--curriculum.method", "cot", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("stage_0: 3 epochs, validation accuracy ")
    assert lines[1:] == ["model: runs/mine/model"]
    assert json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["seed"] == 3
    settings = json.loads((tmp_path / "runs" / "mine" / "model" / "config.json").read_text())
    assert settings["thoughts"]["filler"] is None
    assert "Traceback" not in done.stderr
    assert "model shards" not in done.stderr, "Hugging Face's bars between ours"


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` prints the schedule and one encoded problem, and leaves no folder behind."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config())
    code, out, _ = run(["train", recipe, "--out", tmp_path / "run", "--dry-run", "--curriculum.max_stage=2"], capsys)
    assert code == 0
    assert "stage_2" in out
    assert "<|latent|> <|latent|>" in out
    assert not (tmp_path / "run").exists()


def test_another_batch_than_the_recipes_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An override of the batch size says that results will not compare; of the device batch it says nothing."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config())
    _, _, err = run(["train", recipe, "--dry-run", "--train.batch_size", 4], capsys)
    assert err.startswith("cocot: warning: train.batch_size is 4, the recipe's is 8; results will not compare.")
    _, _, err = run(["train", recipe, "--dry-run", "--train.device_batch_size", 4], capsys)
    assert err == ""


def test_eval_of_a_run_folder(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot eval` on generated problems and on a file: the same table, one record a problem."""
    code, out, _ = run(
        ["eval", trained, "--out", tmp_path / "a.jsonl", "--count", 6, "--seed", 1, "--max-new-tokens", 5, *SMALL],
        capsys,
    )
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["model", "accuracy"]
    assert out.splitlines()[-1] == f"records: {tmp_path / 'a.jsonl'}"
    problems = ProsQA().generate(6, seed=1, mode="balanced", rendering="symbolic", layers=2, width=1)
    write_problems(tmp_path / "p.jsonl", problems)
    command = ["eval", trained, "--data", tmp_path / "p.jsonl", "--max-new-tokens", 5, "--batch-size", 4]
    code, _, _ = run([*command, "--out", tmp_path / "b.jsonl", "--thoughts", 1], capsys)
    assert code == 0
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a.jsonl", "b.jsonl")
    )
    assert [record["question"] for record in ours] == [problem.question for problem in problems]
    assert [{**record, "seconds": 0} for record in ours] == [{**record, "seconds": 0} for record in theirs]
    assert {record["num_thoughts"] for record in ours} == {1}


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {"layers": 2, "width": 1}),
        (["--layers", "1"], {"layers": [1], "width": 1}),
        (["--mode", "balanced", "--rendering", "symbolic", "--layers", "1"], {"layers": [1]}),
    ],
)
def test_a_run_is_asked_its_own_problems(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], settings: dict[str, Any]
) -> None:
    """Problems for a run folder are of the law it was validated on; one setting changes one; a mode begins again."""
    command = ["eval", trained, "--out", tmp_path / "e.jsonl", "--count", 3, "--seed", 1, "--max-new-tokens", 5, *words]
    code, _, _ = run(command, capsys)
    assert code == 0
    asked = [json.loads(line)["question"] for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    problems = ProsQA().generate(3, seed=1, mode="balanced", rendering="symbolic", **settings)
    assert asked == [problem.question for problem in problems]


def test_probe_of_a_run_folder(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot probe` writes a search, prints how the next step is shared out, and draws the tree that is asked for."""
    command = ["probe", trained, "-n", 6, "--seed", 1, "--max-new-tokens", 5, "--out", tmp_path / "search", *SMALL]
    code, out, _ = run([*command, "--show", 5], capsys)
    assert code == 0
    search = SearchTree.read(tmp_path / "search")
    problems = ProsQA().generate(6, seed=1, mode="balanced", rendering="symbolic", layers=2, width=1)
    assert search.problems == problems
    lines = out.splitlines()
    answers, probability_mass, categories = (lines[start : start + 4] for start in (0, 5, 10))
    assert [row.split()[0] for row in answers] == ["Answers", "thoughts", "0", "1"]
    assert float(answers[2].split()[1].rstrip("%")) == pytest.approx(100 * search.correct[0].mean(), abs=0.06)
    assert float(probability_mass[2].split()[1]) == pytest.approx(
        search.probability_mass(0)["frontier"].mean(), abs=1e-3
    )
    assert categories[1].split()[:3] == ["thoughts", "correct", "path"]
    assert sum(float(share.rstrip("%")) for share in categories[2].split()[1:]) == pytest.approx(100, abs=0.5)
    assert f"problem 5: {problems[5].question}"[:60] in out
    assert lines[-1] == f"search: {tmp_path / 'search'}"
    for words, message in (
        (["--show", 6], "--show 6: the problems are 0 to 5"),
        (["-n", 0], "0 is too small"),
        (["--task", "gsm8k"], "unknown GSM8k setting"),
    ):
        code, _, err = run([*command, *words], capsys)
        assert (code, message in err) == (2, True), err


def test_eval_with_ablations(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot eval --ablations`: a row and a file of predictions an ablation, and the shortcut below."""
    command = ["eval", trained, "--ablations", "--count", 4, "--max-new-tokens", 5, *SMALL]
    code, out, _ = run([*command, "--out", tmp_path / "e.jsonl"], capsys)
    assert code == 0
    names = ["as trained", "zeros", "noise", "shuffled", "mean", "k=0"]
    assert [line.split("  ")[0] for line in out.splitlines()[1:7]] == names
    assert out.splitlines()[7].startswith("shortcut: ")
    assert out.splitlines()[-1] == f"records: {tmp_path / 'e.*.jsonl'}"
    assert {path.name for path in tmp_path.iterdir()} == {f"e.{name.replace(' ', '_')}.jsonl" for name in names}
    assert all(len(path.read_text().splitlines()) == 4 for path in tmp_path.iterdir())


def test_ask_streams_the_answer(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot ask` writes the answer alone to stdout, the count of tokens to stderr; `--text-steps`: in words."""
    (problem,) = ProsQA().generate(1, seed=9, mode="balanced", rendering="symbolic", layers=2, width=1)
    code, out, err = run(["ask", trained, problem.question, "--max-new-tokens", 5], capsys)
    assert code == 0
    model, tokenizer = load(trained)
    (expected,) = answer(model, tokenizer, [problem.question], max_new_tokens=5)
    assert expected.output
    assert out.strip() == expected.output
    assert "1 of them thoughts]" in err
    code, out, err = run(["ask", trained, problem.question, "--max-new-tokens", 5, "--text-steps"], capsys)
    (expected,) = answer(model, tokenizer, [problem.question], num_thoughts=0, max_new_tokens=5)
    assert (code, out.strip()) == (0, expected.output)
    assert "0 of them thoughts]" in err


SLIPS: dict[str, tuple[list[str], str]] = {
    "no such recipe": (["train", "dmeo"], "no recipe 'dmeo'"),
    "unknown key": (["train", "{recipe}", "--train.learning_rat", "1"], "did you mean 'train.learning_rate'"),
    "wrong type": (["train", "{recipe}", "--seed", "one"], "seed"),
    "unknown method": (["train", "{recipe}", "--curriculum.method", "magic"], "unknown method 'magic'"),
    "contradiction": (["train", "{recipe}", "--model.path", "gpt2"], "exactly one of model.path"),
    "unknown stage": (["train", "{recipe}", "--train.stage_learning_rate", "{stag: 1}", "--dry-run"], "['stag']"),
    "no such data": (["train", "{recipe}", "--data.fresh=false", "--data.train", "{tmp}/none.jsonl"], "none.jsonl"),
    "bad data": (["train", "{recipe}", "--data.fresh=false", "--data.train", "{bad}"], "bad.jsonl:2: malformed JSON"),
    "no steps": (
        ["train", "{recipe}", "--out", "{tmp}/r", "--data.fresh=false", "--data.train", "{bare}"],
        "learns from written steps",
    ),
    "no such model to train": (
        ["train", "{recipe}", "--out", "{tmp}/m", "--model.init", "null", "--model.path", "{tmp}/none"],
        "cannot load a model",
    ),
    "foreign folder": (["train", "{recipe}", "--out", "{tmp}"], "is not empty and holds no run"),
    "other run": (["train", "{recipe}", "--out", "{trained}", "--seed", "9"], "seed was 0, is now 9"),
    "no room": (
        ["train", "{recipe}", "--out", "{tmp}/c", "--curriculum.thoughts_per_step", "99"],
        "model's context of",
    ),
    "small data": (["train", "{recipe}", "--out", "{tmp}/d", "--data.num_train", "3"], "holds no batch of 8"),
    "unwritable": (["train", "{recipe}", "--out", "{bad}/run"], "bad.jsonl/run"),
    "unwritable data": (["data", "prosqa", "--out", "{bad}/p.jsonl", "--count", "1"], "bad.jsonl"),
    "no such model": (["eval", "{tmp}/none"], "cannot load a model"),
    "no such file": (["eval", "{trained}", "--data", "{tmp}/none.jsonl"], "cannot read problems"),
    "ablations and thoughts": (["eval", "{trained}", "--ablations", "--thoughts", "1"], "leave --thoughts out"),
    "unknown task": (["eval", "{trained}", "--task", "chess"], "unknown task 'chess'"),
    "unknown mode": (["data", "prosqa", "--out", "{tmp}/x.jsonl", "--mode", "relased"], "did you mean 'released'"),
    "unknown word": (["ask", "{trained}", "who knows ?"], "['who', 'knows']"),
    "negative thoughts": (["ask", "{trained}", "1 0", "--thoughts", "-2"], "-2 is too small"),
    "words and thoughts": (["ask", "{trained}", "1 0", "--text-steps", "--thoughts", "2"], "leave --thoughts out"),
    "too long": (["ask", "{trained}", "1 0", "--thoughts", "200"], "the model reads 64"),
    "unknown compared method": (["compare", "{recipe}", "--methods", "cot,magic"], "unknown method 'magic'"),
    "compared on no file": (["compare", "{recipe}", "--data", "{tmp}/none.jsonl"], "cannot read problems"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_one_line_and_exit_code_2(
    slip: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input: one line on stderr that begins with `cocot: ` and says what is wrong; exit code 2, no traceback."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data={"num_train": 8}))
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "a", "steps": ["s"]}\n{oops\n')
    (tmp_path / "bare.jsonl").write_text("".join(f'{{"question": "q{n}", "answer": "a"}}\n' for n in range(10)))
    places = {"{recipe}": recipe, "{tmp}": tmp_path, "{trained}": trained}
    places |= {"{bad}": tmp_path / "bad.jsonl", "{bare}": tmp_path / "bare.jsonl"}
    command, message = SLIPS[slip]
    for name, place in places.items():
        command = [part.replace(name, str(place)) for part in command]
    code, out, err = run(command, capsys)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("cocot: ")
    assert err.count("\n") == 1, err


@pytest.mark.parametrize("command", [["ask", "model", "question", "--thougts", "2"], ["frobnicate"], []])
def test_wrong_usage_is_answered_with_the_right_one(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelled option or command is one line that says where the right usage is, and exits with 2."""
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("cocot: ")
    assert "--help`" in err
    assert err.count("\n") == 1


def test_a_slip_in_a_process_of_its_own() -> None:
    """`python -m cocot` hands the exit code on, and shows no traceback."""
    done = cocot("train", "demo", "--train.learning_rat", "1")
    assert done.returncode == 2
    assert done.stderr == "cocot: unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?\n"


@pytest.mark.distributed
def test_processes_share_the_questions_of_eval(tmp_path: Path) -> None:
    """`torchrun -m cocot eval` writes the records of one process; all may be the first to use a model."""
    words = ["-m", "cocot", "eval", "prosqa-small", "--count", "11", "--seed", "3"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for out, start in (("two", launch), ("one", [])):
        done = subprocess.run(
            [sys.executable, *start, *words, "--out", str(tmp_path / out)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment(),
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("records: ") == 1
        assert "11/11" in done.stderr if out == "one" else "6/6" in done.stderr
    one, two = (
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / out).read_text().splitlines()]
        for out in ("one", "two")
    )
    assert one == two
    assert len(one) == 11
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def as_an_ordinary_user(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`cocot` without root's right to write everywhere."""
    command = [sys.executable, "-m", "cocot", *map(str, arguments)]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv to take that right away")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment(), timeout=60)


@pytest.mark.parametrize(
    ("command", "reads"),
    [
        (["train", "{recipe}", "--out", "locked/new"], False),
        (["train", "{recipe}", "--out", "locked/run"], True),
        (["compare", "{recipe}", "--out", "locked/compared"], False),
        (["eval", "locked/run", "--count", "5"], True),
        (["probe", "locked/run", "--count", "2"], True),
        (["export", "locked/run", "locked/exported"], True),
        (["data", "prosqa", "--count", "2", "--out", "locked/data.jsonl"], False),
    ],
)
def test_a_read_only_folder(trained: Path, tmp_path: Path, command: list[str], reads: bool) -> None:
    """One line that names the place and the way out, before any work; nothing in it has changed."""
    recipe = write_recipe(tmp_path / "mine.yaml", tiny_config(data={"num_train": 8}))
    place = tmp_path / "locked"
    shutil.copytree(trained, place / "run")
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    done = as_an_ordinary_user(*(word.format(recipe=recipe) for word in command), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("cocot: "))
    assert "Permission denied" in line
    assert "locked" in line
    assert "choose another" in line
    assert "question/s" not in done.stderr, "asked before it knew where to write"
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    if reads:
        asked = as_an_ordinary_user("ask", "locked/run", "1 2 ; ? 2 1 1", "--max-new-tokens", "4", cwd=tmp_path)
        assert asked.returncode == 0, asked.stderr
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)
