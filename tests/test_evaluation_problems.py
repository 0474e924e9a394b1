"""Tests of `eval`: one model, one number, and a line that says what decided it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from runs_support import tiny_config

from cocot import tasks
from cocot.assets import locate
from cocot.cli import main
from cocot.errors import ConfigError, DataError, RunError
from cocot.modeling.loading import saved_settings
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.problem import Problem
from cocot.training.evaluation_problems import select_problems
from cocot.training.problems import prepare_data
from cocot.training.run import train
from cocot.training.schedule import plan, problems_of_files, steps_per_epoch

PROBLEMS = [
    Problem(f"{number} + 1 ?", (f"<<{number}+1={number + 1}>>",), f"{number + 1}") for number in range(30) for _ in "ab"
]
STAGE = {"max_stage": 1, "first_epochs": 1, "epochs_per_stage": 1, "final_epochs": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned gsm8k from a file of its own; read it, do not change it."""
    folder = tmp_path_factory.mktemp("selection")
    write_problems(folder / "mine.jsonl", PROBLEMS)
    train(config_of(folder), folder / "run")
    return folder / "run"


def config_of(folder: Path, **data: object):  # type: ignore[no-untyped-def]
    """The config of that run."""
    own = {
        "task": "gsm8k",
        "train": str(folder / "mine.jsonl"),
        "fresh": False,
        "generate": {},
        "num_valid": 200,
        **data,
    }
    return tiny_config(curriculum=STAGE, data=own)


def places(run: Path) -> list[Path]:
    """Every folder that holds the run's model."""
    return [run, run / "model", run / "best"]


def test_a_run_is_asked_the_problems_that_were_set_aside(trained: Path, tmp_path: Path) -> None:
    """Without `--data`, whichever of its folders is named: the same problems, none of which was trained on."""
    copied = shutil.copytree(trained / "model", tmp_path / "copy")
    chosen = [select_problems(str(place)) for place in places(trained)]
    for other in chosen:
        assert other.problems == chosen[0].problems
        assert other.source == f"the 6 of {trained.parent}/mine.jsonl that were set aside from training"
    aside = {problem.question for problem in chosen[0].problems}
    assert len(aside) == 3, "a tenth of 30 questions, each of which stands twice"
    assert select_problems(str(copied)).source == "1,000 generated with seed 1000000"
    known = json.loads((trained / "run.json").read_text())
    assert known["data_fingerprint"]


def test_what_was_set_aside_is_not_known_of_another_file(trained: Path, tmp_path: Path) -> None:
    """A file that was changed after the training is refused: its held-out problems may have been trained on."""
    folder = shutil.copytree(trained.parent, tmp_path / "moved")
    config = (folder / "run" / "config.yaml").read_text().replace(str(trained.parent), str(folder))
    (folder / "run" / "config.yaml").write_text(config)
    assert select_problems(str(folder / "run")).problems == select_problems(str(trained)).problems
    write_problems(folder / "mine.jsonl", PROBLEMS[2:])
    with pytest.raises(RunError, match=r"mine\.jsonl was changed after .* was trained on it"):
        select_problems(str(folder / "run"))


def test_the_runs_validation_file_is_asked(tmp_path: Path) -> None:
    """`data.valid` of a run is what `eval` asks when nothing else is said; a file or a task named wins."""
    write_problems(tmp_path / "mine.jsonl", PROBLEMS)
    write_problems(tmp_path / "valid.jsonl", PROBLEMS[:4])
    train(config_of(tmp_path, valid=str(tmp_path / "valid.jsonl")), tmp_path / "run")
    run = str(tmp_path / "run")
    assert select_problems(run).problems == PROBLEMS[:4]
    assert select_problems(run).source == f"the run's validation file, 4 of {tmp_path / 'valid.jsonl'}"
    assert select_problems(run, data=tmp_path / "mine.jsonl").problems == PROBLEMS
    assert select_problems(run, count=5, steps=[2]).problems == tasks.get("gsm8k").generate(
        5, seed=1_000_000, steps=[2]
    )
    assert select_problems(run, task="prosqa", count=5).problems == tasks.get("prosqa").generate(5, seed=1_000_000)


def test_given_problems_are_written_as_asked(tmp_path: Path) -> None:
    """A file of ProsQA is asked in symbols with the same graphs, a record each; the file itself stays as it is."""
    task = tasks.get("prosqa")
    problems = task.generate(5, seed=3, mode="balanced")
    write_problems(tmp_path / "mine.jsonl", problems)
    chosen = select_problems(task="prosqa", data=tmp_path / "mine.jsonl", rendering="symbolic")
    for old, new in zip(problems, chosen.problems, strict=True):
        assert old.graph is not None
        assert new.graph is not None
        assert new.graph.edges == old.graph.edges
        assert len(new.steps) == len(old.steps)
        assert new.question.count(" ; ") == len(new.graph.edges)
    assert chosen.source.endswith("mine.jsonl, written as symbolic with seed 1000000")
    again = select_problems(task="prosqa", data=problems, rendering="symbolic", seed=7)
    assert again.problems != chosen.problems
    assert select_problems(task="prosqa", data=problems).problems == problems


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("prosqa", {"mode": "balanced"}, "mode: for generated problems alone, and these are given; leave it out"),
        ("prosqa", {"rendering": "verse"}, "unknown ProsQA rendering 'verse'"),
        ("gsm8k", {"rendering": "symbolic"}, "the problems of gsm8k cannot be written in a rendering"),
    ],
)
def test_what_given_problems_cannot_take_is_refused(task: str, settings: dict[str, str], message: str) -> None:
    """A setting of the generator is not dropped in silence where nothing is generated."""
    with pytest.raises(ConfigError, match=message):
        select_problems(task=task, data=tasks.get(task).generate(2, seed=0), **settings)


def test_the_model_knows_its_grader(trained: Path, tmp_path: Path) -> None:
    """Training writes the task into config.json, and a copy of the folder is graded as the run is."""
    copied = shutil.copytree(trained / "model", tmp_path / "copy")
    for place in [*places(trained), copied]:
        assert saved_settings(place)["task"] == "gsm8k"
        assert select_problems(str(place), count=2).grader == "gsm8k (the model's config.json)"
    assert select_problems(str(trained), task="prosqa", count=2).grader == "prosqa (as asked)"
    for checkpoint in (trained / "stages").glob("*/checkpoint-*"):
        assert select_problems(str(checkpoint)).task.name == "gsm8k"


def test_a_model_of_before_is_graded_as_its_run_says(trained: Path, tmp_path: Path) -> None:
    """Folders without the field load: the run's config.yaml names the task, and else the line says it is a default."""
    old = shutil.copytree(trained, tmp_path / "old")
    config = json.loads((old / "model" / "config.json").read_text())
    del config["thoughts"]["task"]
    (old / "model" / "config.json").write_text(json.dumps(config))
    for place in (old, old / "model"):
        assert select_problems(str(place)).grader == "gsm8k (the run's config.yaml)"
    alone = shutil.copytree(old / "model", tmp_path / "alone")
    assert select_problems(str(alone), count=1).grader.startswith("prosqa (the default, as nothing names another")
    assert select_problems(locate("prosqa-small"), count=1).grader == "prosqa (the run's config.yaml)"


def test_one_model_one_number(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot eval` of the run, of its model, and of a copy: the same records; the line says what decided them."""
    write_problems(tmp_path / "test.jsonl", PROBLEMS[:8])
    copied = shutil.copytree(trained / "model", tmp_path / "copy")
    records = []
    for place in (trained, trained / "model", copied):
        command = ["eval", str(place), "--data", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "e.jsonl")]
        assert main(command) == 0
        records.append([{**json.loads(line), "seconds": 0} for line in (tmp_path / "e.jsonl").read_text().splitlines()])
        line = capsys.readouterr().out.splitlines()[-2]
        assert line == (
            "graded as: gsm8k (the model's config.json); thoughts: 1; decoding: greedy; longest answer: 256 tokens, "
            f"if the context has room; problems: 8 of {tmp_path / 'test.jsonl'}"
        )
    assert records[0] == records[1] == records[2]
    assert main([*command, "--use-generation-config", "--max-new-tokens", "3", "--thoughts", "0"]) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert "thoughts: 0; decoding: as generation_config.json says; longest answer: 3 tokens;" in line


def test_training_never_sees_what_was_set_aside(
    trained: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One line says how many; the run's data are the rest; a file of one question has none to spare."""
    config = config_of(trained.parent)
    data, (rest, aside) = prepare_data(config), problems_of_files(config)
    assert data.train(plan(config)[0], 0)[0].problems == rest
    assert data.valid == aside
    assert steps_per_epoch(config) == 54 // 8
    assert data.note.startswith(f"6 of the 60 problems in {trained.parent}/mine.jsonl are set aside for validation")
    with caplog.at_level(logging.INFO, logger="cocot"):
        train(config, tmp_path / "run")
    assert data.note in caplog.messages
    write_problems(trained.parent / "one.jsonl", PROBLEMS[:2])
    with pytest.raises(DataError, match=r"one\.jsonl holds one question alone, and none can be set aside"):
        prepare_data(config_of(trained.parent, train=str(trained.parent / "one.jsonl")))
    assert read_problems(trained.parent / "mine.jsonl") == PROBLEMS
