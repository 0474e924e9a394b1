"""Tests of LoRA: gradients of the definition, nothing else moves, and the result is a plain model."""

from __future__ import annotations

import json
import subprocess
import time
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import reference
import torch
from conftest import LATENT_ID, TOKENIZER, make_model, make_thinker
from runs_support import Finish, interrupted_in, tiny_config, weights, write_recipe
from safetensors.torch import load_file
from test_run import save_model, start_two

import cocot
from cocot.bench.measure import live_bytes
from cocot.data.collator import collate
from cocot.data.examples import Example
from cocot.errors import ConfigError, RunError
from cocot.methods.tokens import PAUSE
from cocot.modeling.config import LoraSettings, ModelConfig
from cocot.modeling.special_tokens import add_tokens
from cocot.training.checkpoints import complete_checkpoints
from cocot.training.config import RunConfig, TrainConfig
from cocot.training.problems import prepare_data
from cocot.training.run import train
from cocot.training.run_folder import RunFolder

pytest.importorskip("peft", reason="peft is not installed: pip install 'cocot[lora]'")

from cocot.modeling.lora import in_four_bits, merged, with_adapter

# Largest relative difference allowed in float32. Measured: gradients 2.2e-6, the worst of three models.
TOLERANCE = 1e-5
NAMES = ["llama", "gpt2", "qwen3"]  # a head of its own; tied, and Conv1D; tied
LORA = LoraSettings(rank=4, alpha=8.0)
ROWS = [([9, 10, 11, LATENT_ID, LATENT_ID, 12, 13], 5), ([14, LATENT_ID, 15, 16], 2), ([17, 18, 19], 1)]


def adapted(model: Any) -> Any:
    """The model with an adapter that is not zero anywhere."""
    found = with_adapter(model, TOKENIZER, LORA, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_definitions(name: str) -> None:
    """Of the adapter's matrices and of the new tokens' rows, thoughts and padding included; no other weight has any."""
    model, oracle = adapted(make_thinker(name)).train(), adapted(plain(name))
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    examples = [Example(ids, [*[-100] * start, *ids[start:]], start, ids.count(LATENT_ID)) for ids, start in ROWS]
    batch = collate(examples, TOKENIZER.pad_token_id, LATENT_ID)
    loss = model(**batch).loss
    loss.backward()
    rows = [(example.input_ids, example.labels) for example in examples]
    expected, _, grads = reference.batch_results(oracle, rows, LATENT_ID)
    assert abs(float(loss.detach() - expected)) < TOLERANCE * float(expected)
    largest = max(float(grads[key].abs().max()) for key in trained(oracle))
    ours = trained(model)
    assert ours.keys() == trained(oracle).keys()
    assert any("lora_" in key for key in ours)
    assert any("trainable_tokens" in key for key in ours)
    worst = max(float((parameter.grad - grads[key]).abs().max()) for key, parameter in ours.items()) / largest
    assert worst < TOLERANCE, worst
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def plain(name: str) -> Any:
    """The bare Hugging Face model with as many tokens."""
    model = make_model(name)
    model.resize_token_embeddings(len(TOKENIZER))
    model.load_state_dict(make_thinker(name).state_dict())
    return model


@pytest.mark.parametrize("name", NAMES)
def test_merged_is_what_it_was(name: str) -> None:
    """The same class, the same keys, the logits of the adapted model."""
    before = make_thinker(name)
    keys = list(before.state_dict())
    model = adapted(deepcopy(before)).eval()
    ids = torch.tensor([ROWS[0][0]])
    with torch.no_grad():
        logits, bare = model(input_ids=ids).logits, before(input_ids=ids).logits
        after = merged(model)
        assert type(after) is type(before)
        assert list(after.state_dict()) == keys
        assert float((after(input_ids=ids).logits - logits).abs().max()) < TOLERANCE * float(logits.abs().max())
    assert float((bare - logits).abs().max()) > 1000 * TOLERANCE * float(logits.abs().max())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of somebody else, with none of the tokens that thoughts take."""
    folder = tmp_path_factory.mktemp("base") / "model"
    problems = prepare_data(tiny_config()).valid
    save_model(folder, [problem.question + problem.steps[0] for problem in problems])
    return folder


def config_of(base: Path, lora: LoraSettings = LORA) -> RunConfig:
    found = tiny_config(path=str(base), curriculum={"epochs_per_stage": 2})
    return RunConfig(ModelConfig(path=str(base), lora=lora), found.data, found.curriculum, found.train)


class Killed(BaseException):
    """Stands for a kill."""


def test_a_run_trains_the_adapter_alone_and_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are adapters, the result is a plain model; stopped in every stage, it ends bit for bit the same."""
    config = config_of(base)
    whole = train(config, tmp_path / "whole")
    log = RunFolder.log
    stops = [("stage_0", 3), ("stage_1", 5), ("stage_1", 8), ("final", 2)]
    for stage, step in stops:

        def stop(run: RunFolder, entry: dict[str, Any], stage: str = stage, step: int = step) -> None:
            log(run, entry)
            if (entry["stage"], entry["step"]) == (stage, step):
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "log", stop)
            with pytest.raises(Killed):
                train(config, tmp_path / "run")
    run = train(config, tmp_path / "run")
    ours, theirs = weights(run.path), weights(whole.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (checkpoint,) = complete_checkpoints(run.stage("stage_0"))
    assert not (checkpoint / "model.safetensors").exists()
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert all("lora_" in name or name.endswith("trainable_tokens_delta") for name in kept), list(kept)
    before = load_file(base / "model.safetensors")
    moved = {name for name in before if not torch.equal(ours[name][: len(before[name])], before[name])}
    assert {name.split(".")[-2] for name in moved} == {"c_attn", "c_proj", "c_fc"}
    assert all(name.endswith("weight") for name in moved)
    tokenizer = cocot.load(run.path)[1]
    table = ours["transformer.wte.weight"]
    old = before["transformer.wte.weight"]
    assert len(table) == len(old) + 4 == len(tokenizer)
    assert torch.equal(table[: len(old)], old)
    copied = old[tokenizer.encode("<<", add_special_tokens=False)[0]]
    assert any(not torch.equal(row, copied) for row in table[len(old) :])
    config_file = json.loads((run.model / "config.json").read_text())
    assert config_file["thoughts"]["num_thoughts"] == 1
    assert config_file["architectures"] == ["GPT2LMHeadModel"]
    assert cocot.answer(*cocot.load(run.path), ["1 2 ; ? 2 1 1"], max_new_tokens=4)
    assert json.loads((run.path / "run.json").read_text())["versions"]["peft"]
    (run.best / "adapter_model.safetensors").write_bytes(b"")
    (run.model / "model.safetensors").unlink()
    (run.model / "config.json").unlink()
    with pytest.raises(RunError, match="is not what was written there"):
        cocot.load(run.path / "best")


def test_what_does_not_go_together_is_refused(base: Path, tmp_path: Path) -> None:
    """With a model from scratch, with Muon, on modules that are not there: each says so."""
    with pytest.raises(ConfigError, match=r"model\.lora adapts a trained model"):
        ModelConfig(init=tiny_config().model.init, lora=LORA)
    with pytest.raises(ConfigError, match=r"with model\.lora take adamw"):
        RunConfig(ModelConfig(path="x", lora=LORA), train=TrainConfig(optimizer="muon"))
    with pytest.raises(ConfigError, match=r"model\.lora\.rank is 0"):
        LoraSettings(rank=0)
    config = config_of(base)
    wrong = ModelConfig(path=str(base), lora=LoraSettings(modules=["abacus"]))
    with pytest.raises(ConfigError, match=r"model\.lora does not fit this model: .*abacus"):
        train(RunConfig(wrong, config.data, config.curriculum, config.train), tmp_path / "run")


QLORA = replace(LORA, quantize=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose matrices bitsandbytes can hold in 4 bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'cocot[qlora]'")
    folder = tmp_path_factory.mktemp("llama") / "model"
    problems = prepare_data(tiny_config()).valid
    save_model(folder, [problem.question + problem.steps[0] for problem in problems], "llama")
    return folder


def test_gradients_through_four_bits_are_those_of_the_values_they_stand_for(llama: Path) -> None:
    """Also after a call in eval(), as every validation makes: there bitsandbytes alone goes wrong on some CPUs."""
    model, tokenizer = cocot.load(llama, **in_four_bits(torch.float32))
    same, _ = cocot.load(llama, **in_four_bits(torch.float32))
    assert any(parameter.dtype == torch.uint8 for parameter in model.parameters())
    oracle = adapted(cast(Any, same).dequantize())
    ours = adapted(model)
    latent = tokenizer.convert_tokens_to_ids("<|latent|>")
    ids = torch.tensor([[9, 10, 11, latent, latent, 12, 13]])
    labels = torch.where(torch.arange(7) < 5, -100, ids)
    found = []
    for which in (ours, oracle):
        with torch.no_grad():
            logits = which.eval()(input_ids=ids).logits
        which.train()(input_ids=ids, labels=labels).loss.backward()
        found.append((logits, {name: parameter.grad for name, parameter in trained(which).items()}))
    (logits, grads), (true_logits, true_grads) = found
    assert float((logits - true_logits).abs().max()) < TOLERANCE
    assert grads.keys() == true_grads.keys()
    largest = max(float(grad.abs().max()) for grad in true_grads.values())
    assert max(float((grads[name] - true_grads[name]).abs().max()) for name in grads) < TOLERANCE * largest


def test_bitsandbytes_itself_stays_as_it_was(llama: Path) -> None:
    """Layers of a model that cocot loaded are kept as they are stored; those of other models in the process are not."""
    modules, functional = import_module("bitsandbytes.nn.modules"), import_module("bitsandbytes.functional")
    assert modules.has_avx512bf16 is functional.has_avx512bf16
    model, _ = cocot.load(llama, **in_four_bits(torch.float32))
    flags = {part.support_avx512bf16_for_cpu for part in model.modules() if isinstance(part, modules.Linear4bit)}
    assert flags == {False}
    assert modules.has_avx512bf16 is functional.has_avx512bf16
    assert modules.Linear4bit(8, 8).support_avx512bf16_for_cpu == functional.has_avx512bf16()


def test_a_run_on_four_bits_ends_as_the_plain_model_that_was_validated(llama: Path, tmp_path: Path) -> None:
    """Merged into the values that the 4 bits stand for: the same answers as the best adapter's, no trace of 4 bits."""
    run = train(config_of(llama, QLORA), tmp_path / "run")
    config_file = json.loads((run.model / "config.json").read_text())
    assert not any("quant" in key for key in config_file)
    ours, base = weights(run.path), load_file(llama / "model.safetensors")
    assert {weight.dtype for weight in ours.values()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj.weight"
    quantized = cast(Any, cocot.load(llama, **in_four_bits(torch.float32))[0].dequantize()).state_dict()[name]
    sizes = [torch.linalg.svdvals(ours[name] - before) for before in (quantized, base[name])]
    ranks = [int((size > 1e-4 * size[0]).sum()) for size in sizes]
    assert ranks[0] == LORA.rank < ranks[1], "what is added to the values of the 4 bits is the adapter's product"
    model, tokenizer = cocot.load(run.path)
    alone, _ = cocot.load(llama, **in_four_bits(torch.float32))
    add_tokens(alone, tokenizer, (PAUSE,))
    best = with_adapter(alone, tokenizer, QLORA, 0, run.best).eval()
    ids = torch.tensor([[*tokenizer.encode("1 2 ; ? 2 1 1"), tokenizer.convert_tokens_to_ids("<|latent|>")]])
    with torch.no_grad():
        logits, expected = model(input_ids=ids).logits, best(input_ids=ids).logits
    assert float((logits - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


def test_four_bits_where_they_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    """GPT-2's matrices are transposed, and would come back the other way round."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'cocot[qlora]'")
    with pytest.raises(ConfigError, match="GPT-2's transposed layers"):
        train(config_of(base, QLORA), tmp_path / "run")


def test_an_adapter_that_fsdp_cannot_share_out_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bits before the model is looked for; a head that is the embeddings before anything is written."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match=r"model\.lora\.quantize does not go with FSDP"):
        train(config_of(tmp_path / "no such model", QLORA), tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"model\.lora does not go with FSDP for GPT2LMHeadModel with tied embeddings"
    ):
        train(config_of(base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("reads_once", [True, False])
def test_an_adapter_is_shared_out(tmp_path: Path, finish: Finish, reads_once: bool) -> None:
    """FSDP2: one process's weights to float noise, also when either goes on with what the other began."""
    texts = [problem.question for problem in prepare_data(tiny_config()).valid]
    save_model(tmp_path / "llama", texts, "llama")
    train_settings = {"learning_rate": 1e-3, "save_steps": 2, "optimizer_reset": "never"}
    curriculum = {"final_epochs": 0, "epochs_per_stage": 10, "stage_mix": 0.9, "thoughts_per_step": 2}
    found = tiny_config(curriculum=curriculum, train=train_settings)
    config = replace(found, model=ModelConfig(path=str(tmp_path / "llama"), lora=replace(LORA, dropout=0.0)))
    recipe = write_recipe(tmp_path / "mine.yaml", config)
    settings = {"FSDP_CPU_RAM_EFFICIENT_LOADING": str(reads_once).lower()}
    train(config, tmp_path / "one")

    def interrupt(process: subprocess.Popen[str], run: Path) -> None:
        while not complete_checkpoints(run / "stages" / "stage_1"):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.terminate()
        process.communicate(timeout=120)
        assert not (run / "model").exists()

    interrupt(start_two("fsdp", recipe, tmp_path / "first", settings), tmp_path / "first")
    finish(lambda: start_two("fsdp", recipe, tmp_path / "first", settings))
    interrupt(start_two("fsdp", recipe, tmp_path / "second", settings), tmp_path / "second")
    train(config, tmp_path / "second")
    with interrupted_in("stage_1", 5):
        train(config, tmp_path / "third")
    finish(lambda: start_two("fsdp", recipe, tmp_path / "third", settings))
    last = "stages/stage_1/checkpoint-40/adapter_model.safetensors"  # `model/` is the best, which may be an early one
    begun = load_file(tmp_path / "one" / "stages" / "stage_0" / "checkpoint-4" / "adapter_model.safetensors")
    whole = load_file(tmp_path / "one" / last)
    moved = max(float((whole[name] - begun[name]).abs().max()) for name in whole)
    for run in ("first", "second", "third"):
        ours = load_file(tmp_path / run / last)
        assert ours.keys() == whole.keys()
        gap = max(float((ours[name] - whole[name]).abs().max()) for name in whole)
        print("gap", run, gap, "moved", moved)
        assert gap < 1e-3 * moved
        assert weights(tmp_path / run).keys() == weights(tmp_path / "one").keys()
        saved = [file.name for file in (tmp_path / run / "stages").rglob("*.safetensors")]
        assert set(saved) == {"adapter_model.safetensors"}, "checkpoints hold more than the adapter"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_weights_are_cast_once_a_step(name: str) -> None:
    """Under autocast, memory does not grow by a copy of the weights a thought; the numbers stay what they were."""

    def peak(num_thoughts: int) -> int:
        ids = torch.tensor([[9] * (8 - num_thoughts) + [LATENT_ID] * num_thoughts + [10, 11]])
        labels = torch.tensor([[-100] * 8 + [10, 11]])

        def loss() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                found: torch.Tensor = model(input_ids=ids, labels=labels).loss
                return found

        return live_bytes(loss)[1]

    model = adapted(make_thinker(name)).train()
    frozen = sum(part.numel() for part in model.parameters() if not part.requires_grad and part.dim() == 2)
    grows = peak(6) - peak(2)
    assert grows < 2 * frozen, "less than one copy for four thoughts more"
