"""Tests of `self_test`: every class of transformers' causal-LM mapping is equal to the definition, or refused."""

import re
from pathlib import Path

import every_model
import pytest
import torch
import transformers
from tiny_models import MODEL_TYPES

from cocot.errors import ModelError
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.self_test import find_passes

PAGE = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
DOCUMENTED = dict(re.findall(r"^\| (\S+) \| \S+ \| (\w+) \|", PAGE, flags=re.M))
QUICK = (
    "llama",
    "gpt2",
    "gemma2",
    "cohere",
    "granite",
    "llama4_text",
    "qwen3_5_text",
    "mamba",
    "lfm2",
    "bamba",
    "bart",
)


def check(model_type):
    try:
        verdict = every_model.check(model_type)
    except every_model.NotBuilt as error:
        pytest.skip(str(error))
    assert verdict.word in ("equal", "refused"), verdict
    assert "\n" not in verdict.reason
    assert verdict.name in (verdict.reason or verdict.name)
    if f"transformers {transformers.__version__};" in PAGE:
        assert verdict.word == DOCUMENTED[model_type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", QUICK)
def test_equal_or_refused(model_type):
    """One class of every kind has the definition's numbers, or a ModelError of one line that names it."""
    check(model_type)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [kind for kind in MODEL_TYPES if kind not in QUICK])
def test_every_class_is_equal_or_refused(model_type):
    """No class gives wrong numbers, and none a foreign error."""
    check(model_type)


def test_the_page_has_every_class():
    """`docs/models.md` speaks of each type, and enough of them are equal."""
    assert all(f"| {kind} |" in PAGE or f"- {kind}:" in PAGE for kind in MODEL_TYPES) or (
        f"transformers {transformers.__version__};" not in PAGE
    )
    assert list(DOCUMENTED.values()).count("equal") >= 105
    assert "wrong" not in DOCUMENTED.values()


def test_a_wrong_recurrence_is_seen(monkeypatch):
    """The check would notice a thought whose entries are off by a hundredth."""
    import cocot.modeling.forward_call

    def shifted(*args, thought_hook=None, **kwargs):
        keep = thought_hook or (lambda number, thought: thought)
        return think(*args, thought_hook=lambda number, thought: keep(number, thought + 0.01), **kwargs)

    think = cocot.modeling.forward_call.think
    monkeypatch.setattr(cocot.modeling.forward_call, "think", shifted)
    assert every_model.check("llama").word == "wrong"


FAULTS = {
    "no mask": lambda forward: lambda self, *args, attention_mask=None, **kwargs: forward(self, *args, **kwargs),
    "no positions": lambda forward: lambda self, *args, position_ids=None, **kwargs: forward(self, *args, **kwargs),
    "sees later ones": lambda forward: lambda self, *args, **kwargs: _leak(forward(self, *args, **kwargs)),
    "no numbers": lambda forward: lambda self, *args, **kwargs: _times(forward(self, *args, **kwargs), torch.nan),
}


def _leak(output):
    return _times(output, output.last_hidden_state.mean(dim=1, keepdim=True))


def _times(output, factor):
    output.last_hidden_state = output.last_hidden_state * factor
    return output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_decoder_is_refused(fault, monkeypatch):
    """A class that drops its mask or positions, looks ahead or gives no numbers is refused, and left as it was."""
    model = every_model.tiny_model("gpt2")
    kind, before = type(model), model.config.to_dict()
    monkeypatch.setattr(type(model.transformer), "forward", FAULTS[fault](type(model.transformer).forward))
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be given thoughts"):
        give_thoughts(model, every_model.make_tokenizer())
    assert (type(model), model.config.to_dict()) == (kind, before)


def test_the_self_test_leaves_no_trace():
    """Random state, mode and generation settings are as before it."""
    model = every_model.tiny_model("gpt2").train()
    state, generation = torch.get_rng_state(), model.generation_config
    find_passes(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.generation_config is generation
