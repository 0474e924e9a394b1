"""Tests of `layer_states`: of every class that thinks, the states of its layers are its own, or it is refused."""

from __future__ import annotations

import pytest
import torch
from every_model import make_tokenizer
from runs_support import tiny_config
from test_every_model import QUICK
from test_run import SHAPES, save_model
from tiny_models import MODEL_TYPES, tiny_model
from transformers import OpenAIGPTConfig

from cocot.errors import ModelError
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.layer_states import layer_states
from cocot.training.run import prepare_data, train

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
MAX_DIFFERENCE = 1e-5  # float32 noise: the same numbers, kept by a hook


def check(model_type):
    try:
        model = tiny_model(model_type).eval()
    except Exception as error:
        pytest.skip(f"transformers does not build it: {error}")
    try:
        give_thoughts(model, make_tokenizer())
    except ModelError as error:
        pytest.skip(f"it does not think: {error}")
    try:
        with layer_states(model) as states, torch.no_grad():
            expected = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    except ModelError as error:
        pytest.skip(f"it is refused: {error}")
    assert len(states.by_layer) == len(expected) - 1
    found = [states.by_layer[number] for number in sorted(states.by_layer)]
    assert len(found) > 1  # the last one is not compared: Hugging Face returns it behind the final norm
    gaps = [
        max(
            (float((ours - theirs).abs().max()) for ours, theirs in zip(found[:-1], expected[start:], strict=False)),
            default=0,
        )
        for start in (0, 1)  # Mamba's classes leave the embeddings out
    ]
    assert min(gaps) < MAX_DIFFERENCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", QUICK)
def test_states_are_those_of_the_class(model_type):
    """One class of every kind: what each layer but the last gives is what Hugging Face returns as hidden states."""
    check(model_type)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [kind for kind in MODEL_TYPES if kind not in QUICK])
def test_states_of_every_class_are_its_own(model_type):
    """No class that thinks has other states than its own, or more or fewer of them."""
    check(model_type)


@pytest.mark.parametrize("method", ["codi", "codi_without_projection", "codi_sim_cot", "pccot"])
def test_a_class_whose_layers_are_not_found_is_refused_before_the_run(tmp_path, method, monkeypatch):
    """In one line and before a folder is made."""
    shape = OpenAIGPTConfig(n_embd=16, n_layer=2, n_head=2, n_positions=128)
    monkeypatch.setitem(SHAPES, "openai-gpt", shape)
    problems = prepare_data(tiny_config()).valid
    save_model(tmp_path / "model", [problem.question for problem in problems], "openai-gpt")
    config = tiny_config(init=None, path=str(tmp_path / "model"), curriculum={"method": method, "max_stage": 2})
    with pytest.raises(ModelError, match=r"the layers of OpenAIGPTLMHeadModel are not found.*read\.$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
