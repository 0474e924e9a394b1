"""Tests of what was reported about other projects; `docs/field_reports.md` names each report and its test here."""

import json
import logging
import shutil

import pytest
import torch
from conftest import TOKENIZER, make_thinker
from safetensors.torch import load_file, save_file

import cocot
from cocot.errors import CocotError, ModelError


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
