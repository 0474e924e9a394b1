"""Tests of what was reported about other projects; `docs/field_reports.md` names each report and its test here."""

import json
import logging
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import LATENT_ID, MODELS, PROBLEMS, TOKENIZER, make_model, make_thinker
from runs_support import TINY_INIT, tiny_config, weights
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils.generic import find_labels

import cocot
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import CocotError, ConfigError, DataError, ModelError, RunError
from cocot.evaluation.evaluate import read_predictions
from cocot.modeling.config import LoraSettings
from cocot.modeling.custom_generate import generate
from cocot.serving.export import export
from cocot.system.manifest import write_manifest
from cocot.tasks import get as get_task
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.gsm8k import GSM8k
from cocot.tasks.problem import Problem
from cocot.training.checkpoints import complete_checkpoints, prune_checkpoints
from cocot.training.run import train
from cocot.training.run_folder import RunFolder, write_json


@pytest.fixture
def folder(tmp_path):
    """A saved Llama that was given thoughts, without checksums."""
    return saved(tmp_path / "model")


def saved(place, **settings):
    make_thinker("llama", **settings).save_pretrained(place)
    TOKENIZER.save_pretrained(place)
    return place


def change_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def complaint(folder):
    """The message of the error that `load` raises, if it is one of ours; empty if the folder loads."""
    try:
        cocot.load(folder)
    except CocotError as error:
        return str(error)
    return ""


def own_messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "cocot"]


# Model folders


@pytest.mark.parametrize("target", ["../other/model.safetensors", "{other}/model.safetensors", "..\\other", "C:\\x"])
def test_an_index_that_names_files_outside_of_the_folder_is_refused(folder, target):
    """Weights are read from the model's folder alone, whatever its index says: no `..`, no absolute path."""
    other = saved(folder.with_name("other"), seed=1)
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target.format(other=other))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside of the folder"):
        cocot.load(folder)


def test_a_sharded_model_loads(tmp_path):
    """The index that Hugging Face writes for several files of weights is no attack."""
    model = make_thinker("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    TOKENIZER.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = cocot.load(tmp_path)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "paged|kernels-community/flash-attn"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"experts_implementation": "someone/kernel"},
        {"text_config": {"attn_implementation": {"": "someone/kernel"}}},
    ],
)
def test_a_config_that_asks_for_code_from_the_hub_is_refused(folder, settings):
    """No entry of config.json makes a program be downloaded and run, at whatever depth it stands."""
    change_json(folder / "config.json", **settings)
    with pytest.raises(ModelError, match="asks for code from elsewhere"):
        cocot.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, name, value):
    """One damaged number anywhere in the weights is an error that names its weight, not a wrong accuracy."""
    change_weights(folder, lambda weights: weights[name][-1, -1:].fill_(value))
    with pytest.raises(ModelError, match=f"its weight {name} holds values that are not finite"):
        cocot.load(folder)


def test_weights_without_a_place_in_the_model_are_reported(folder, caplog):
    """A config with fewer layers than the file has weights for is noticed; an intact folder gives no warning."""
    with caplog.at_level(logging.WARNING, "cocot"):
        cocot.load(folder)
        assert not own_messages(caplog)
        change_json(folder / "config.json", num_hidden_layers=1, layer_types=None)
        cocot.load(folder)
    (message,) = own_messages(caplog)
    assert "9 weights" in message
    assert "model.layers.1.input_layernorm.weight" in message


def test_a_trained_head_is_not_replaced_by_the_embeddings(tmp_path):
    """Where the file has a head of its own, it is used, even if config.json still calls it tied."""
    make_thinker("qwen3").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    head = torch.randn(len(TOKENIZER), 32)
    change_weights(tmp_path, lambda weights: weights.update({"lm_head.weight": head}))
    assert torch.equal(cocot.load(tmp_path)[0].get_output_embeddings().weight, head)


_THOUGHTS = {
    "latent_id": LATENT_ID,
    "filler": "<|latent|>",
    "num_thoughts": 2,
    "start_marker": True,
    "end_marker": True,
}


@pytest.mark.parametrize(
    "settings",
    [
        "x",
        3,
        {"num_thoughts": 2},
        {**_THOUGHTS, "of_a_newer_version": 1},
        *({**_THOUGHTS, "latent_id": value} for value in (None, "a", -1, True, LATENT_ID + 1, 10**9)),
        *({**_THOUGHTS, "filler": value} for value in ("", "<|thought|>", 3, ["<|latent|>"])),
        *({**_THOUGHTS, "num_thoughts": value} for value in (-1, 1.5, "2", True, [2])),
        *({**_THOUGHTS, "start_marker": value} for value in (None, 1, "no")),
        *({**_THOUGHTS, "end_marker": value} for value in (None, 1, "no")),
    ],
)
def test_thought_settings_that_cannot_be_used_are_refused(folder, settings):
    """A config whose `thoughts` are corrupted or another version's gives one line: no answer lacks its thoughts."""
    change_json(folder / "config.json", thoughts=settings)
    message = complaint(folder)
    assert message
    assert "\n" not in message


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """Tokens that the model has no embedding for are refused by number, but for those that cocot adds itself."""
    other = build_tokenizer(get_task("prosqa").generate(50, seed=0))
    make_model("llama").save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{len(other) - len(TOKENIZER)} tokens without an embedding"):
        cocot.load(tmp_path)
    model = make_model("llama")
    model.resize_token_embeddings(len(other), mean_resizing=False)
    cocot.give_thoughts(model, other)


_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "checksums.json",
)
_CONTENTS = {
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"x"',
    "number": b"3",
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "nan": b'{"vocab_size": NaN}',
}


@pytest.mark.parametrize("name", _FILES)
def test_a_damaged_file_of_a_model_is_one_line(tmp_path, name):
    """Any file of a model folder may hold anything: the folder still loads, or the error is ours and one line."""
    for content in _CONTENTS.values():
        folder = saved(tmp_path / "model")
        if name == "model.safetensors.index.json":
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
        assert "\n" not in complaint(folder)
        shutil.rmtree(folder)


def test_truncation_written_into_a_tokenizer_file_cuts_nothing(folder):
    """A tokenizer.json that says to cut and pad texts does neither here: questions are read whole or refused."""
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    change_json(
        folder / "tokenizer.json",
        truncation=cut,
        padding={**pad, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"},
    )
    text = "4 2 ; 4 9 ; 1 5 ; 0 6 ;"
    assert cocot.load(folder)[1].encode(text, add_special_tokens=False) == TOKENIZER.encode(
        text, add_special_tokens=False
    )


# Adapters


@pytest.mark.parametrize("name", ["gptj", "phi", "codegen"])
def test_an_adapter_that_changes_the_model_before_training_is_refused(name):
    """peft leaves out the bias of a head whose rows are trained, so what trains is not what is merged and saved."""
    pytest.importorskip("peft", reason="peft is not installed: pip install 'cocot[lora]'")
    from cocot.modeling.lora import with_adapter

    model = make_biased(name)
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_()
    with pytest.raises(ConfigError, match=f"already changes what {type(model).__name__} computes"):
        with_adapter(model, TOKENIZER, LoraSettings(rank=2, alpha=4), seed=0)


_BIASED = {
    "gptj": {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8},
    "codegen": {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 8},
    "phi": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def make_biased(name):
    """A model whose head has a bias."""
    ids = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": 0, "bos_token_id": 0}
    config = AutoConfig.for_model(name, vocab_size=len(TOKENIZER), **ids, **_BIASED[name])
    return cocot.give_thoughts(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "gemma3_text"])
def test_a_merged_adapter_is_what_was_trained_after_it_was_saved(tmp_path, name):
    """Rows of new tokens that were trained with an adapter survive merging, saving and loading, tied head or not."""
    pytest.importorskip("peft", reason="peft is not installed: pip install 'cocot[lora]'")
    from cocot.modeling.lora import merged, with_adapter

    adapted = with_adapter(make_thinker(name), TOKENIZER, LoraSettings(rank=2, alpha=4), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        ids = torch.tensor([[9, 10, LATENT_ID, LATENT_ID, 12]])
        expected, untrained = adapted(input_ids=ids).logits, make_thinker(name)(input_ids=ids).logits
        merged(adapted).save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
        found = cocot.load(tmp_path)[0](input_ids=ids).logits
    assert (found - expected).abs().max() < 1e-4  # measured: 4e-6
    assert (untrained - expected).abs().max() > 0.1


# Run folders


@pytest.mark.parametrize(
    "name", ["checkpoint-best", "checkpoint-4-good", "checkpoint-4 (1)", "checkpoint-", "checkpoint-²"]
)
def test_a_checkpoint_that_the_user_copied_is_neither_read_nor_removed(tmp_path, name):
    """Only folders named as training names them count as checkpoints of a stage; others stay where they are."""
    for folder in ("checkpoint-4", "checkpoint-8", "checkpoint-12", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"x")
        write_manifest(tmp_path / folder)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    prune_checkpoints(tmp_path / "checkpoint-12", keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-12", name}


@pytest.mark.parametrize("checkpoint", ["../other/checkpoint-4", "/tmp/checkpoint-4"])
def test_a_state_that_names_a_checkpoint_of_another_run_is_refused(tmp_path, checkpoint):
    """A run goes on from its own checkpoints alone, whatever its state.json says."""
    (tmp_path / "state.json").write_text(json.dumps({"finished_stages": [{"name": "a", "checkpoint": checkpoint}]}))
    with pytest.raises(RunError, match="lies outside the run folder"):
        RunFolder(tmp_path).finished_stages()


def test_a_run_folder_that_was_moved_goes_on_bit_for_bit(tmp_path):
    """No file of a run depends on where its folder lies: moved between two stages, it ends with the same weights."""
    config = tiny_config()
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "elsewhere" / "moved")
    moved = tmp_path / "elsewhere" / "moved"
    state = json.loads((moved / "state.json").read_text())
    write_json(moved / "state.json", {"finished_stages": state["finished_stages"][:1]})
    for part in ("model", "best", "stages/stage_1", "stages/final"):
        shutil.rmtree(moved / part)
    train(config, moved)
    assert all(torch.equal(weights(moved)[name], value) for name, value in weights(tmp_path / "whole").items())


# Numbers


@pytest.mark.parametrize(
    ("expected", "text", "is_correct"),
    [
        ("72", "72 clips, altogether", True),
        ("29", "$29.00", True),
        ("29", "29.", True),
        ("1000", "1,000", True),
        ("1234567.5", "1,234,567.50 dollars", True),
        ("1234", "1,234, in all", True),
        ("1234", "It is 1,234.", True),
        ("-1234", "-1,234", True),
        ("15", "1,5", False),
        ("123", "1,2,3", False),
        ("10", "1,0", False),
        ("100", "1,00", False),
        ("1234567", "1,234,56,7", False),
        ("12345", "12345,", True),
        ("34", "3,4", False),
        ("3.5", "3,5", False),
    ],
)
def test_a_comma_in_a_number_parts_thousands_or_numbers(expected, text, is_correct):
    """Only commas before three digits are part of a number: a list of numbers is never taken for one that was asked."""
    assert GSM8k().is_correct(Problem("q", (), expected), text) is is_correct


# Exported models and other engines


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_exported_model_refuses_padding_on_the_right(name):
    """A batch that is padded on the right would go on from its padding; it is an error, and the left side is none."""
    model = make_thinker(name)
    ids, pad = [9, LATENT_ID, 10, 11], TOKENIZER.pad_token_id
    left = {"input_ids": torch.tensor([ids, [pad, *ids[:3]]]), "attention_mask": torch.tensor([[1] * 4, [0, 1, 1, 1]])}
    right = {"input_ids": torch.tensor([ids, [*ids[:3], pad]]), "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]])}
    assert generate(**left, model=model, max_new_tokens=2, min_new_tokens=2).shape == (2, 6)
    with pytest.raises(ValueError, match="pad on the left"):
        generate(**right, model=model, max_new_tokens=2)


# A user's own Trainer


@pytest.mark.parametrize("name", MODELS)
def test_a_trainer_finds_the_labels(name):
    """`Trainer` gives an `eval_loss` only if it gets a value for every argument that has "label" in its name."""
    assert find_labels(type(make_thinker(name))) == ["labels"]


def test_a_trainer_reports_the_loss_of_an_evaluation(tmp_path):
    """A user's own `Trainer` gives `eval_loss`, and it is the model's loss on the same rows."""
    ids = torch.tensor([[9, 10, LATENT_ID, 11, 12], [13, LATENT_ID, LATENT_ID, 14, 15]])
    labels = ids.where(ids != LATENT_ID, -100)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    model = make_thinker("llama")
    metrics = Trainer(model=model, args=arguments, eval_dataset=rows).evaluate()
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)


# Questions that do not fit

_SMALL = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": TOKENIZER.eos_token_id}
_CONTEXTS = {
    "gpt2": {"n_positions": 24, "n_embd": 32, "n_layer": 1, "n_head": 2},
    "gpt_neo": {"max_position_embeddings": 24, "hidden_size": 32, "num_layers": 1, "attention_types": [[["global"], 1]]}
    | {"num_heads": 2},
    "mpt": {"max_seq_len": 24, "d_model": 32, "n_heads": 2, "n_layers": 1},
    "llama": {"max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    | {"num_attention_heads": 2},
}


@pytest.mark.parametrize("name", _CONTEXTS)
def test_a_question_that_does_not_fit_is_refused_by_every_name_of_the_limit(name):
    """Configs call the length of the context differently; a longer question is our error, never one of an index."""
    config = AutoConfig.for_model(name, **_SMALL, **_CONTEXTS[name])
    model = cocot.give_thoughts(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)
    question = PROBLEMS[0].question
    with pytest.raises(DataError, match="but the model reads 24"):
        cocot.answer(model, TOKENIZER, [question], num_thoughts=2, max_new_tokens=4)
    short = " ".join(question.split()[:6])
    assert len(cocot.answer(model, TOKENIZER, [short], num_thoughts=2, max_new_tokens=4)) == 1


_GGUF = b"GGUF" + struct.pack("<I", 3)
_HOSTILE_GGUF = {
    "metadata without end": _GGUF + struct.pack("<QQ", 0, 2**63),
    "tensors without end": _GGUF + struct.pack("<QQ", 2**63, 0),
    "text without end": _GGUF + struct.pack("<QQQ", 0, 1, 2**63),
    "array without end": _GGUF + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"a", 9, 8, 2**63),
    "arrays in arrays": _GGUF + struct.pack("<QQQ1sI", 0, 1, 1, b"a", 9) + struct.pack("<IQ", 9, 2**62) * 3,
    "dimensions without end": _GGUF + struct.pack("<QQQ1sI", 1, 0, 1, b"t", 2**32 - 1),
}


@pytest.mark.parametrize("content", _HOSTILE_GGUF)
def test_a_gguf_file_that_claims_to_be_endless_is_one_line(tmp_path, content):
    """Lengths in a GGUF file that go beyond its end are an error of ours, at once, and not memory that runs full."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'cocot[smollm]'")
    (tmp_path / "model.gguf").write_bytes(_HOSTILE_GGUF[content])
    with pytest.raises(ModelError) as caught:
        cocot.load(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


# Data


def test_validation_problems_that_are_trained_on_are_counted(tmp_path, caplog):
    """A file for validation that shares questions with the training file is reported with their number, once a call."""
    write_problems(tmp_path / "train.jsonl", PROBLEMS[:16])
    write_problems(tmp_path / "valid.jsonl", PROBLEMS[13:20])
    files = {"train": str(tmp_path / "train.jsonl"), "valid": str(tmp_path / "valid.jsonl"), "fresh": False}
    init = replace(TINY_INIT, settings={"n_positions": 128})
    config = tiny_config(data=files, init=init, curriculum={"method": "no_cot", "max_stage": 0, "final_epochs": 0})
    with caplog.at_level(logging.WARNING, "cocot"):
        train(config, tmp_path / "run")
    (message,) = own_messages(caplog)
    assert "3 of the 7 problems for validation are in the training file" in message


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "a", "answer": "1", "answer": "2"}',
        '[{"question": "a", "steps": [], "answer": "1", "question": "b"}]',
        '{"question": "a", "answer": "1", "graph": {"root": 0, "root": 1}}',
    ],
)
def test_a_field_that_is_given_twice_is_refused(tmp_path, text):
    """No value is dropped because its field stands in an object twice, in a line, a list or a graph."""
    (tmp_path / "problems.json").write_text(text)
    with pytest.raises(DataError, match="is given more than once"):
        read_problems(tmp_path / "problems.json")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "3", '{"question": 1}'])
def test_damaged_records_are_one_line(tmp_path, content):
    """A file of answers that holds anything else is named, whatever it holds."""
    (tmp_path / "eval.jsonl").write_text(content)
    with pytest.raises(RunError, match="does not hold records"):
        read_predictions(tmp_path / "eval.jsonl")


# Embeddings beside token ids


@pytest.mark.parametrize("has_thoughts", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_token_ids_and_embeddings_together_are_refused(has_thoughts, is_training):
    """Of two inputs none is left out without a word, with thoughts and without, in training and after it."""
    ids = torch.tensor([[9, 10, LATENT_ID if has_thoughts else 11, 12]])
    model = make_thinker("llama").train(is_training)
    with pytest.raises((ModelError, ValueError)):
        model(input_ids=ids, inputs_embeds=torch.zeros(1, 4, 32), labels=ids)


# What was right already


def padded_rows():
    """Two rows, the shorter one padded on the left by more columns than it holds."""
    ids = torch.tensor([[9, 10, LATENT_ID, 11, LATENT_ID, 12, 13, 14], [0, 0, 0, 0, 0, 15, LATENT_ID, 16]])
    return ids, torch.tensor([[1] * 8, [0] * 5 + [1] * 3])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.uint8, torch.int32])
@pytest.mark.parametrize("name", MODELS)
def test_a_mask_of_any_type_is_the_same_mask(name, kind):
    """Logits do not depend on whether a mask holds truth values, whole numbers or fractions."""
    ids, mask = padded_rows()
    for attention in ("sdpa", "eager"):
        model = make_thinker(name, attn_implementation=attention)
        with torch.no_grad():
            expected, found = (model(input_ids=ids, attention_mask=one).logits for one in (mask, mask.to(kind)))
        assert torch.equal(found[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_row_holds_numbers_in_half_precision(name, kind):
    """Columns of padding that see nothing do not turn the tokens of their row into nan."""
    ids, mask = padded_rows()
    for attention in ("sdpa", "eager"):
        model = make_thinker(name, attn_implementation=attention, dtype=kind)
        with torch.no_grad():
            assert model(input_ids=ids, attention_mask=mask).logits[mask.bool()].isfinite().all()


def test_answers_from_several_threads_are_those_of_one():
    """Threads that ask one model at a time share no state: no answer depends on what the others ask."""
    model, questions = make_thinker("llama"), [problem.question for problem in PROBLEMS[:8]]

    def ask(question):
        return cocot.answer(model, TOKENIZER, [question], num_thoughts=2, max_new_tokens=4)[0].output

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, questions)) == [ask(question) for question in questions]


def test_a_template_of_a_model_folder_is_never_run(tmp_path):
    """Neither the chat template of a folder nor a name in braces is run as a program when a model card is written."""
    model = make_thinker("llama")
    model.config.thoughts["num_thoughts"] = 2
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    export(tmp_path / "model", tmp_path / "{{ 6 * 7 }}")
    card = (tmp_path / "{{ 6 * 7 }}" / "README.md").read_text()
    assert "# {{ 6 * 7 }}" in card
    assert "1 / 0" not in (tmp_path / "{{ 6 * 7 }}" / "chat_template.jinja").read_text()
