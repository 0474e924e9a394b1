"""Tests of every method with a loss of its own, in whole runs: cut, resumed, shared out, and with an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_support import NO_DROPOUT_INIT, Finish, interrupted_in, tiny_config, weights, write_recipe
from safetensors.torch import load_file
from test_run import MAX_GAP, gap, save_model, start_two

from cocot.errors import ConfigError
from cocot.methods import METHODS, Method, Phase
from cocot.modeling.config import LoraSettings
from cocot.modeling.early_stop import decides
from cocot.modeling.generation import answer
from cocot.modeling.loading import load
from cocot.modeling.method_modules import is_of_method
from cocot.training.checkpoints import complete_checkpoints
from cocot.training.config import RunConfig
from cocot.training.run import prepare_data, train
from cocot.training.run_folder import RunFolder

WITH_A_LOSS = [name for name, method in METHODS.items() if method.terms]


def config_of(method: str, **settings: Any) -> RunConfig:
    """A small run of problems of one length, so that a mean over a part of a batch weighs as much as one over all."""
    curriculum = {"method": method, "max_stage": 2, "epochs_per_stage": 1, "final_epochs": 1, "stage_mix": 0.0}
    return tiny_config(**{"curriculum": curriculum, "init": NO_DROPOUT_INIT, **settings})


def terms(run: RunFolder, method: str) -> dict[str, list[float]]:
    """What the log says of each term."""
    names = [f"loss_{term}" for term in METHODS[method].terms]
    return {name: [entry[name] for entry in run.read_log() if name in entry] for name in names}


@pytest.mark.parametrize("method", WITH_A_LOSS)
def test_an_interrupted_run_ends_as_the_other(method: str, tmp_path: Path) -> None:
    """Every term is logged; stopped inside the last stage and resumed, weights and log are the same bit for bit."""
    config = config_of(method, train={"optimizer_reset": "never"})
    whole = train(config, tmp_path / "whole")
    logged = terms(whole, method)
    assert all(len(values) >= 4 for values in logged.values())
    with interrupted_in("final", 2):
        train(config, tmp_path / "cut")
    cut = train(config, tmp_path / "cut")
    ours, theirs = weights(whole.path), weights(cut.path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert terms(cut, method) == logged


@pytest.mark.parametrize("method", METHODS)
def test_a_phase_has_the_loss_of_its_method_or_is_refused(method: str, tmp_path: Path) -> None:
    """A phase of a Coconut run logs every term of the method that it names, if that one feeds thoughts as Coconut."""
    chosen = METHODS[method]
    alike = chosen.filler == METHODS["coconut"].filler and method != "pccot" and not chosen.mixes_words
    phases = [Phase("other", {"final": 1.0}, method=method)]
    curriculum = {"method": "coconut", "max_stage": 2, "epochs_per_stage": 1, "phases": phases}
    if not alike or type(chosen).modules is not Method.modules:
        with pytest.raises(ConfigError, match="does not think as 'coconut' does"):
            tiny_config(curriculum=curriculum)
        return
    run = train(tiny_config(curriculum=curriculum), tmp_path)
    for name, values in terms(run, method).items():
        assert values, name
        assert {entry["stage"] for entry in run.read_log() if name in entry} == {"other"}


@pytest.mark.parametrize("method", WITH_A_LOSS)
def test_terms_count_as_much_however_a_batch_is_cut(method: str, tmp_path: Path) -> None:
    """Eight rows at once, or twice four, with the terms weighed: the same weights, up to the order of sums."""
    for rows in (8, 4):
        weights_of_terms = dict.fromkeys(METHODS[method].terms, 3.0)
        settings = {"device_batch_size": rows, "loss_weights": weights_of_terms, "learning_rate": 3e-4}
        train(config_of(method, train=settings), tmp_path / f"{rows}")
    print("gap of", method, gap(tmp_path / "8", tmp_path / "4"))
    assert gap(tmp_path / "8", tmp_path / "4") < MAX_GAP


@pytest.mark.parametrize("method", WITH_A_LOSS)
def test_a_term_of_weight_zero_is_not_learned(method: str, tmp_path: Path) -> None:
    """`train.loss_weights` reaches every term: without them all the run is another one."""
    silent = train(config_of(method, train={"loss_weights": dict.fromkeys(METHODS[method].terms, 0.0)}), tmp_path / "0")
    loud = train(config_of(method), tmp_path / "1")
    assert all(not any(values) for values in terms(silent, method).values())
    assert all(all(values) for values in terms(loud, method).values())
    assert gap(silent.path, loud.path) > MAX_GAP


@pytest.mark.distributed
@pytest.mark.parametrize("method", WITH_A_LOSS)
def test_two_processes_are_one(method: str, tmp_path: Path, finish: Finish) -> None:
    """Under DDP two processes reach one process's weights to float noise."""
    config = config_of(method, train={"learning_rate": 3e-4})
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    train(config, tmp_path / "one")
    finish(lambda: start_two("ddp", recipe, tmp_path / "two"))
    print("gap of", method, gap(tmp_path / "one", tmp_path / "two"))
    assert gap(tmp_path / "one", tmp_path / "two") < MAX_GAP


@pytest.mark.parametrize("method", WITH_A_LOSS)
def test_an_adapter_learns_it(method: str, tmp_path: Path) -> None:
    """With model.lora the result is a model that answers, with all that the method keeps, trained."""
    pytest.importorskip("peft")
    problems = prepare_data(tiny_config()).valid
    save_model(tmp_path / "llama", [problem.question + problem.steps[0] for problem in problems], "llama")
    config = config_of(method, init=None, path=str(tmp_path / "llama"))
    config = replace(config, model=replace(config.model, lora=LoraSettings(rank=2)))
    run = train(config, tmp_path / "run")
    assert all(values and values[-1] > 0 for values in terms(run, method).values())
    model, tokenizer = load(run.path)
    (given,) = answer(model, tokenizer, [problems[0].question], max_new_tokens=4)
    assert given.num_thoughts == 2 or decides(model)
    kept = {name: weight for name, weight in weights(run.path).items() if is_of_method(name)}
    assert bool(kept) == METHODS[method].keeps_modules
    (first, *_) = complete_checkpoints(run.stage(run.finished_stages()[0]["name"]))
    saved = load_file(first / "adapter_model.safetensors")
    trained = [name for name in saved if "method_modules" in name]
    assert bool(trained) == (type(METHODS[method]).modules is not Method.modules)
    assert not kept or len(trained) == len(kept)
    if kept:
        still = train(replace(config, train=replace(config.train, learning_rate=1e-12)), tmp_path / "still")
        begun = weights(still.path)
        assert all(float((begun[name] - weight).abs().max()) > 1e-4 for name, weight in kept.items())
