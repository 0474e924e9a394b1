"""Shared by all tests: tiny real models built in milliseconds, a tokenizer of the task's own words, the real data.

Nothing here needs the network. Models are Hugging Face's own classes with random weights, so large that outputs depend
on inputs; see `reference.py` for the slow oracle that they are compared with.
"""

import copy
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


import pytest
import reference
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.data.word_tokenizer import build_tokenizer
from cocot.modeling.latent_model import give_thoughts
from cocot.tasks.prosqa import ProsQA

torch.set_num_threads(1)
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # by `nohup` or a script; our children would ignore it as well
        signal.signal(_number, _handler)

_WIDTH = 32
_DECODER = {
    "hidden_size": _WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_WINDOW = 4
"""Columns that a sliding layer sees: fewer than any row of the tests holds."""

CONFIGS = {
    "gpt2": {
        "n_embd": _WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.15,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {**_DECODER, "sliding_window": _WINDOW},
    "qwen2": {  # one layer that slides and one that does not: masks reach it as a dict
        **_DECODER,
        "use_sliding_window": True,
        "sliding_window": _WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text": {  # scales its embeddings, slides, has a tied head
        **_DECODER,
        "head_dim": 8,
        "sliding_window": _WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_size": _WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
    },
}
MODELS = tuple(CONFIGS)
PROBLEMS = tuple(ProsQA().generate(24, seed=0, mode="balanced", rendering="symbolic", layers=2, width=2, nodes=16))
TOKENIZER = build_tokenizer(PROBLEMS)
_THINKERS = {}
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")


def make_model(name, seed=0, attn_implementation="sdpa", dtype=torch.float32, **settings):
    """A bare Hugging Face model of random weights, in `eval()` mode; the same for the same name and seed."""
    ids = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(name, **{"vocab_size": len(TOKENIZER), **ids, **CONFIGS[name], **settings})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=dtype).eval()


def make_thinker(name, seed=0, **settings):
    """`make_model`, given thoughts; a copy of one that is made once, since the self-test takes its time."""
    key = repr((name, seed, sorted(settings.items())))
    if key not in _THINKERS:
        _THINKERS[key] = give_thoughts(make_model(name, seed, **settings), TOKENIZER)
    torch.manual_seed(seed)
    return copy.deepcopy(_THINKERS[key])


def words_behind_thoughts(bare, question, num_thoughts, settings):
    """By the oracle: the likeliest token behind each thought of a question."""
    prompt = encode_question(question, num_thoughts, settings, TOKENIZER)
    with torch.no_grad():
        likeliest = reference.row_logits(bare, prompt, LATENT_ID, mixes_words=settings.mixes_words).argmax(dim=-1)
    return [int(likeliest[place]) for place, token in enumerate(prompt) if token == LATENT_ID]


def let_a_word_stop(model, bare, num_thoughts):
    """Let a model of random weights end its thoughts at that word at which its questions stop most differently."""
    settings = ThoughtSettings(**model.config.thoughts)
    said = [words_behind_thoughts(bare, problem.question, num_thoughts, settings) for problem in PROBLEMS[:8]]
    lengths = {word: {[*row, word].index(word) for row in said} for row in said for word in row}
    model.config.thoughts["stop_id"] = max(sorted(lengths), key=lambda word: len(lengths[word]))
    return model


@pytest.fixture(scope="session")
def tokenizer():
    """One token a word of ProsQA; read it, do not change it."""
    return TOKENIZER


@pytest.fixture
def finish(record_property):
    """What a process that ends well has printed: `finish(start)`.

    Once in some 60 launches on a busy machine a process was aborted before its first step, with a message of a C++
    thread, of which we have none. That message alone gets a second try, which the summary of the tests counts.
    """

    def finished(start):
        record_property("launches", 1)
        process = start()
        out, err = process.communicate(timeout=300)
        if process.returncode != 0 and "terminate called without an active exception" in err:
            record_property("retries", 1)
            process = start()
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out, err

    return finished


def pytest_terminal_summary(terminalreporter):
    """How many launches of several processes were tried twice: a regression shows here before it shows in failures."""
    counts = dict.fromkeys(("launches", "retries"), 0)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                counts[name] = counts.get(name, 0) + value
    if counts["launches"]:
        terminalreporter.write_line(
            f"launches of several processes: {counts['launches']}, tried twice: {counts['retries']}"
        )
