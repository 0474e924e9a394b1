"""Tests of comparisons at equal compute: what a training costs is counted, and problems are scaled by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs_support import environment

from cocot import tasks
from cocot.cli import main
from cocot.errors import ConfigError
from cocot.experiments import equal_compute
from cocot.experiments.equal_compute import EQUAL, with_equal_compute
from cocot.experiments.search import of_the_search
from cocot.experiments.study import METHOD, SEED, Study, Trial, trials
from cocot.experiments.tables import Table, cells
from cocot.methods import METHODS
from cocot.training.config import RunConfig
from cocot.training.operations import operations, training_operations
from cocot.training.recipes import read_recipe
from cocot.training.run import train
from cocot.training.schedule import plan
from cocot.training.trainer import StageTrainer

TINY = ["--model.init.width", "16", "--model.init.layers", "1", "--train.batch_size", "8"]
COSTS = {"cot": 1.01, "coconut": 1.0, "codi": 2.0, "no_thought": 0.9, "pccot": 1e9}


def tiny(method: str, *overrides: str) -> RunConfig:
    """The recipe `demo` with a model of one layer."""
    return read_recipe("demo", [*TINY, f"--{METHOD}", method, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_every_task(method: str, task: str) -> None:
    """The loss of each of its stages, forward and backward, on generated problems of every task that cocot has."""
    settings = ["--data.generate", "{}", "--data.valid_generate", "{}", "--curriculum.phases", "[]"]
    length = ["--model.init.settings.max_position_embeddings", "1024"]
    assert training_operations(tiny(method, "--data.task", task, *settings, *length)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulated"), [("cot", 1), ("coconut", 2), ("codi", 1), ("soft", 1)])
def test_the_count_is_that_of_the_training(
    method: str, accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what every step of a real training takes, gradients accumulated or not."""
    curriculum = ["--curriculum.first_epochs", "1", "--curriculum.epochs_per_stage", "[1, 1]"]
    batches = ["--data.num_train", "64", "--data.num_valid", "1", "--train.device_batch_size", str(8 // accumulated)]
    config = tiny(method, *curriculum, *batches)
    counted = list[int]()
    step = StageTrainer.training_step

    def counting(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = None

        def run() -> None:
            nonlocal loss
            loss = step(self, *args, **kwargs)

        counted.append(operations(run))
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", counting)
    train(config, tmp_path / "run")
    epochs = [item.stage.num_epochs for item in plan(config)]
    assert len(counted) == 8 * accumulated * sum(epochs)
    rel = 1e-6 if set(epochs) == {1} else 0.05  # the problems of a second epoch are others
    assert training_operations(config) == pytest.approx(sum(counted), rel=rel)


def test_twice_the_epochs_or_problems_cost_twice_as_much() -> None:
    """What is counted on a few batches stands for all."""

    def counted(first: int, problems: int = 6400) -> float:
        epochs = ["--curriculum.max_stage", "0", "--curriculum.phases", "[]", "--curriculum.first_epochs", str(first)]
        stages = ["--curriculum.epochs_per_stage", "[]", "--train.stage_learning_rate", "{}"]
        return training_operations(tiny("coconut", *epochs, *stages, "--data.num_train", str(problems)))

    assert counted(3, 12800) == counted(6) == 2 * counted(3)


def planned(monkeypatch: pytest.MonkeyPatch, study: Study, *overrides: str) -> list[Trial]:
    """Its trials at equal problems and at equal compute, with the costs above in the place of counted ones."""
    monkeypatch.setattr(equal_compute, "training_operations", lambda config: COSTS[config.curriculum.method])
    return with_equal_compute(study, trials(study, overrides))


def test_methods_that_cost_more_get_fewer_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as cost the same, in whole batches, at least one; methods that cost about the same are not done twice."""
    study = Study("demo", {METHOD: [*COSTS], SEED: [0, 1]})
    found = planned(monkeypatch, study)
    first = [trial for trial in found if trial.config.seed == 0]
    assert [(trial.group, trial.config.data.num_train) for trial in first] == [
        (("cot", "problems"), 6400),
        (("coconut", "problems"), 6400),
        (("codi", "problems"), 6400),
        (("codi", "compute"), 3200),
        (("no_thought", "problems"), 6400),
        (("no_thought", "compute"), 7104),
        (("pccot", "problems"), 6400),
        (("pccot", "compute"), 32),
    ]
    assert {trial.group: trial.compute for trial in first}["no_thought", "compute"] == pytest.approx(0.999)
    assert len(found) == 2 * len(first) == len({trial.path for trial in found})
    assert all(trial.values.keys() == {"method", EQUAL, SEED} for trial in found)
    # a folder with and one without the option share their runs, and none lies inside another
    plain = {trial.path for trial in trials(study, [])}
    assert plain < {trial.path for trial in found}
    assert not [one for one in found for other in found if one.path in other.path.parents]


def test_a_search_is_done_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at equal compute has as many tries as one at equal problems."""
    study = Study("demo", {METHOD: ["codi"]}).with_search({"train.learning_rate": [1e-3, 3e-3]})
    found = of_the_search(planned(monkeypatch, study))
    assert [trial.group[1] for trial in found] == ["problems", "compute"] * 2
    assert all(trial.config.train.learning_rate == float(trial.settings["learning_rate"]) for trial in found)


def test_problems_of_a_file_are_as_many_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no further ones to train on: refused before anything is trained."""
    with pytest.raises(ConfigError, match=r"set data\.fresh true"):
        planned(monkeypatch, Study("demo", {METHOD: ["cot"]}), "--data.fresh", "false")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_table_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real comparison: the compute of every row, and one at Coconut's for the method that costs more."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    few = ["--data.num_train", "64", "--data.num_valid", "4", "--model.init.width", "16"]
    command = ["compare", "demo", "--methods", "coconut,codi", "--problems", "10", "--equal-compute", "--jobs", "2"]
    assert main([*command, "--out", str(tmp_path), *few]) == 0
    head, *body = cells(Table.read(tmp_path).rows)
    assert head[:2] == ("method", EQUAL)
    assert [line[:2] for line in body] == [("coconut", "problems"), ("codi", "problems"), ("codi", "compute")]
    compute = [float(line[head.index("compute")]) for line in body]
    assert compute[0] == 1 < 1.5 < compute[1]
    trained = [line[head.index("trained on")] for line in body]
    assert trained == ["768", "768", "384"]
