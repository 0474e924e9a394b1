"""Tests of the interface of methods: a method of one's own trains, resumes and leaves as the built-in ones do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from runs_support import NO_DROPOUT_INIT, cocot, environment, interrupted_in, tiny_config, weights, write_recipe
from safetensors.torch import load_file
from test_run import MAX_GAP, gap

from cocot.errors import ConfigError, ModelError
from cocot.methods import METHODS, register
from cocot.methods.base import Method
from cocot.methods.coconut import Coconut
from cocot.modeling.loading import load
from cocot.modeling.method_modules import is_of_method
from cocot.serving.export import export
from cocot.training.config import RunConfig
from cocot.training.run import train
from cocot.training.run_folder import RunFolder
from cocot.training.schedule import num_shared_stages

ROOT = Path(__file__).parent.parent

(SOURCE,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    if "class Countdown" in block
)


@pytest.fixture
def countdown() -> Iterator[type[Any]]:
    """The method that CONTRIBUTING.md shows, registered for one test."""
    module = ModuleType("countdown")
    exec(compile(SOURCE, "countdown.py", "exec"), vars(module))
    yield module.Countdown
    forget_methods("countdown")


def forget_methods(*names: str) -> None:
    """Take methods out of the registry again."""
    for name in names:
        METHODS._known.pop(name, None)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same weights, bit for bit."""
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def config_of(method: str, **settings: Any) -> RunConfig:
    """A small run of a method: two thoughts in the end, words in the first stage."""
    curriculum = {"method": method, "max_stage": 2, "epochs_per_stage": 1, "final_epochs": 1, "stage_mix": 0.0}
    return tiny_config(curriculum=curriculum, **settings)


def terms(run: RunFolder) -> list[float]:
    """What the log says of the method's own term."""
    return [entry["loss_countdown"] for entry in run.read_log() if "loss_countdown" in entry]


def test_a_method_takes_thirty_lines() -> None:
    """The example is as short as the promise."""
    code = [line for line in SOURCE.splitlines() if line.strip()]
    assert len(code) <= 30


def test_an_own_method_trains(countdown: type[Any], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Its term is logged and falls, its module is not in the result, and the result is a plain model."""
    run = train(config_of("countdown", train={"learning_rate": 1e-2}), tmp_path / "run")
    logged = terms(run)
    assert len(logged) == 12  # one a step in three of four stages
    assert logged[-1] < logged[4]  # with two thoughts from stage 2 on: its first and its last step
    assert not any(map(is_of_method, weights(run.path)))
    model, _ = load(run.path)
    assert not hasattr(model, "method_modules")
    assert run.finished_stages()[-1]["name"] == "final"


def test_a_term_of_weight_zero_changes_nothing(countdown: type[Any], tmp_path: Path) -> None:
    """The rest of a method's training is Coconut's, bit for bit; with a weight it is another."""
    countdown.weight = 0.0
    silent, plain = (weights(train(config_of(name), tmp_path / name).path) for name in ("countdown", "coconut"))
    assert_same(silent, plain)
    countdown.weight = 10.0
    loud = weights(train(config_of("countdown"), tmp_path / "loud").path)
    assert any(not torch.equal(loud[name], plain[name]) for name in plain)


def test_a_term_counts_as_much_however_a_batch_is_cut(countdown: type[Any], tmp_path: Path) -> None:
    """Eight rows at once, or twice four: the same weights, up to the order of sums."""
    countdown.weight = 10.0
    for rows in (8, 4):
        train(config_of("countdown", init=NO_DROPOUT_INIT, train={"device_batch_size": rows}), tmp_path / f"{rows}")
    assert gap(tmp_path / "8", tmp_path / "4") < MAX_GAP


def test_modules_are_saved_and_resumed(countdown: type[Any], tmp_path: Path) -> None:
    """Interrupted in a stage and resumed, also with the moments of stages before: the same weights, bit for bit."""
    config = config_of("countdown", train={"optimizer_reset": "never"})
    whole = train(config, tmp_path / "whole")
    with interrupted_in("stage_2", 2):
        train(config, tmp_path / "cut")
    cut = train(config, tmp_path / "cut")
    assert_same(weights(whole.path), weights(cut.path))
    assert terms(whole) == terms(cut)
    ends = [run.path / run.finished_stages()[-1]["checkpoint"] / "model.safetensors" for run in (whole, cut)]
    saved = [{name: weight for name, weight in load_file(end).items() if is_of_method(name)} for end in ends]
    assert saved[0]
    assert_same(*saved)


def test_modules_that_stay(countdown: type[Any], tmp_path: Path) -> None:
    """A method may keep its modules: the result has them, and is refused where the method is not known."""
    countdown.keeps_modules = True
    run = train(config_of("countdown"), tmp_path / "run")
    kept = {name: weight for name, weight in weights(run.path).items() if is_of_method(name)}
    model, _ = load(run.path)
    assert_same({f"method_modules.{name}": weight for name, weight in model.method_modules.state_dict().items()}, kept)
    with pytest.raises(ModelError, match="keeps modules of the method 'countdown', which an exported folder cannot"):
        export(run.path, tmp_path / "exported")
    forget_methods("countdown")
    with pytest.raises(ModelError, match="keeps modules of the method 'countdown', which is not registered here"):
        load(run.path)


def test_modules_of_another_shape_are_refused(countdown: type[Any], tmp_path: Path) -> None:
    """What was saved is loaded whole or not at all."""
    countdown.keeps_modules = True
    run = train(config_of("countdown"), tmp_path / "run")
    countdown.modules = lambda self, model: torch.nn.Linear(model.config.hidden_size, 2)
    with pytest.raises(ModelError, match=r"modules of method 'countdown' in .* do not fit"):
        load(run.path)


def test_an_adapter_trains_modules_whole(countdown: type[Any], tmp_path: Path) -> None:
    """Beside an adapter the method's own modules learn, are saved with it, and are not in the result."""
    path = train(config_of("coconut"), tmp_path / "base").path / "model"
    config = config_of("countdown", path=str(path), train={"learning_rate": 1e-2})
    run = train(replace(config, model=replace(config.model, lora=lora_settings())), tmp_path / "run")
    assert not any(map(is_of_method, weights(run.path)))
    ends = [run.path / stage["checkpoint"] / "adapter_model.safetensors" for stage in run.finished_stages()]
    saved = [{name: part for name, part in load_file(end).items() if "method_modules." in name} for end in ends]
    first, last = saved[1], saved[-1]
    assert first
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)


def lora_settings() -> Any:
    """An adapter of rank 2."""
    pytest.importorskip("peft")
    from cocot.modeling.config import LoraSettings

    return LoraSettings(rank=2)


def test_stages_are_shared_by_those_who_say_so(countdown: type[Any]) -> None:
    """A method that changes a loss or a step shares no stage, even as a subclass of one that does."""
    coconut, own = (config_of(name) for name in ("coconut", "countdown"))
    assert num_shared_stages(coconut, config_of("pause_as_thought")) == 1
    assert num_shared_stages(coconut, own) == num_shared_stages(own, coconut) == 0
    register(type("Shorter", (Coconut,), {"name": "shorter", "steps_left": lambda self, steps, *rest: []}))
    try:
        assert num_shared_stages(coconut, config_of("shorter")) == 0
    finally:
        forget_methods("shorter")


def test_names_are_taken_once(countdown: type[Any]) -> None:
    """Two methods of one name are refused; the same class, defined again, replaces itself; no name is refused."""
    again = type("Countdown", (countdown,), {"__module__": countdown.__module__})
    assert isinstance(METHODS[register(again).name], again)
    with pytest.raises(ConfigError, match=r"'countdown' is countdown\.Countdown already; give .*Other another"):
        register(type("Other", (Method,), {"name": "countdown"}))
    with pytest.raises(ConfigError, match="the method Nameless has no name"):
        register(type("Nameless", (Method,), {}))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a package that was installed there, which has the method as an entry point."""
    place = tmp_path / "site"
    about = place / "countdown_method-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: countdown-method\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cocot.methods]\ncountdown = countdown_method:Countdown\n")
    (place / "countdown_method.py").write_text(SOURCE)
    return place


def test_installed_packages_add_methods(package: Path, tmp_path: Path) -> None:
    """`cocot train` knows a method that an installed package names, and says which there are."""
    assert not any(point.name == "countdown" for point in entry_points(group="cocot.methods"))
    recipe = write_recipe(tmp_path / "own.yaml", config_of("coconut"))
    command = ["train", str(recipe), "--curriculum.method", "countdown", "--dry-run"]
    unknown = cocot(*command)
    assert unknown.returncode == 2
    assert "unknown method 'countdown'; choose one of: cot," in unknown.stderr
    known = subprocess.run(
        [sys.executable, "-m", "cocot", *command],
        env=with_package(package),
        capture_output=True,
        text=True,
        check=False,
    )
    assert known.returncode == 0, known.stderr
    assert "Coconut whose thoughts also say" in known.stdout


def with_package(package: Path) -> dict[str, str]:
    """The environment of a child process in which the package is installed."""
    return {**environment(), "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_modules_as_one_does(package: Path, tmp_path: Path) -> None:
    """Under DDP too, where the first stage has no thoughts, so that no batch uses the modules."""
    recipe = write_recipe(tmp_path / "own.yaml", config_of("coconut", init=NO_DROPOUT_INIT))
    command = [str(recipe), "--curriculum.method", "countdown", "--train.device_batch_size", "4", "--out"]
    alone = [sys.executable, "-m", "cocot", "train", *command, str(tmp_path / "one")]
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both += ["-m", "cocot", "train", *command, str(tmp_path / "two")]
    for launch in (alone, both):
        done = subprocess.run(launch, env=with_package(package), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert gap(tmp_path / "one", tmp_path / "two") < MAX_GAP
    means = [terms(RunFolder(tmp_path / name)) for name in ("one", "two")]
    assert means[0] == pytest.approx(means[1], rel=1e-4)
