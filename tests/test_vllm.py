"""Tests of thoughts inside vLLM: its answers are cocot's, whatever else the engine does meanwhile.

They run where vLLM is installed (`make test-vllm`), each engine in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROBLEMS, TOKENIZER, let_a_word_stop, make_model, make_thinker
from runs_support import environment

from cocot import load, tasks
from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.methods import METHODS
from cocot.methods.tokens import PAUSE, SPECIAL_TOKENS
from cocot.modeling.generation import answer
from cocot.modeling.method_modules import add_modules
from cocot.modeling.thought_settings import thought_settings
from cocot.serving import export as module
from cocot.serving.vllm.plugin import ARCHITECTURES
from cocot.training.recipes import read_recipe

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")

QUESTIONS = [problem.question for problem in PROBLEMS]
NUM_THOUGHTS, NEW_TOKENS = 3, 8
# vLLM's attention on a CPU has no heads narrower than 32
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
CLASSES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_head": 2},
    "llama": WIDE,
    "mistral": WIDE,
    "qwen2": {**WIDE, "use_sliding_window": False, "sliding_window": None, "layer_types": None},
    "qwen3": WIDE,
    "gpt_neox": {},
}
ENGINE = {
    "enforce_eager": True,  # compiling takes its time
    "dtype": "float32",  # in which answers are equal
    "block_size": 32,  # a prompt fills several
    "gpu_memory_utilization": 0.1,
    "max_model_len": 128,
}


def thinker(name: str, method: str | None = None, **settings: Any) -> Any:
    """A model of random weights that says it was trained to think, with the modules of a method if that has any."""
    model = make_thinker(name, **CLASSES[name])
    latent_id = model.config.thoughts["latent_id"]
    model.config.thoughts = ThoughtSettings(
        latent_id, num_thoughts=NUM_THOUGHTS, modules_of=method, **settings
    ).to_json()
    torch.manual_seed(0)
    if method is not None:
        add_modules(model, METHODS[method])
    return model


def word_stopper(**settings: Any) -> Any:
    """One whose thoughts are mixtures and end where a word is the likeliest."""
    bare = make_model("llama", attn_implementation="eager", **CLASSES["llama"])
    return let_a_word_stop(thinker("llama", mixes_words=True, **settings), bare, NUM_THOUGHTS)


Request = tuple[str, int]


def outputs(model: Any, requests: list[Request]) -> list[str]:
    """What cocot lets the model write, each question alone."""
    return [answer(model, TOKENIZER, [question], count, NEW_TOKENS)[0].output for question, count in requests]


KINDS: dict[str, Any] = {
    **{name: partial(thinker, name) for name in CLASSES if name != "gpt_neox"},
    "projected": partial(thinker, "llama", "codi"),
    "projected, with renamed weights": partial(thinker, "gpt2", "codi"),
    "mixed": partial(thinker, "llama", mixes_words=True),
    "deciding by a word": word_stopper,
    "deciding by a word, no end marker": partial(word_stopper, end_marker=False),
    "deciding": partial(thinker, "llama", "adaptive"),
    "deciding, no end marker": partial(thinker, "gpt2", "adaptive", end_marker=False),
}
"""Every class that is said to think, every kind of thought."""
OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {"enforce_eager": False},
    "without async scheduling": {"async_scheduling": False},
    "without prefix caching": {"enable_prefix_caching": False},
    "chunks of 16 tokens": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "blocks of 128 tokens": {"block_size": 128},
}
REQUESTS = [(question, count) for question in QUESTIONS for count in (NUM_THOUGHTS, 1, 5, 0)]
"""Every question with as many thoughts as trained, fewer, more and none: they share batches in the engine."""
AT_AN_EDGE = [
    (" ".join(question.split()[:number]) + " ? 1 2 3", count)
    for question in QUESTIONS[:4]
    for number in range(24, 30)
    for count in (3, 5)
] * 4
"""Prompts whose first or later thoughts begin a block of 32 tokens, each four times at once: one finds what another is
about to compute."""
SHIPPED = "prosqa-small"
LONG = {"ignore_eos": True, "max_tokens": 60}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM wrote and counted, for each kind of model and each option; all in one process, importing takes long."""
    place = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        # Hugging Face reads tokenizers of Qwen by rules of its own; prompts are token ids here
        patch.setattr(module, "_check_tokenizer", lambda folder, tokenizer: None)
        folders = {kind: str(module.export(make(), place / kind, TOKENIZER)) for kind, make in KINDS.items()}
    settings = thought_settings(KINDS["llama"]())
    edges = [encode_question(question, count, settings, TOKENIZER) for question, count in AT_AN_EDGE]
    assert {prompt.index(settings.latent_id) % 32 for prompt in edges} >= {0, 31}

    def job(kind: str, times: int = 1, long: bool = False, **engine: Any) -> dict[str, Any]:
        own = thought_settings(KINDS[kind]()) if kind in KINDS else settings
        prompts = [encode_question(question, count, own, TOKENIZER) for question, count in REQUESTS]
        sampling = LONG if long else {"max_tokens": NEW_TOKENS}
        what = {"folder": folders[kind], "prompts": prompts, "times": times, "sampling": sampling}
        return {"engine": ENGINE | engine, **what}

    folders[SHIPPED] = str(module.export(SHIPPED, place / SHIPPED))
    shipped, tokenizer = load(SHIPPED)
    fresh = [encode_question(text, 2, thought_settings(shipped), tokenizer) for text in fresh_questions()]
    # the same weights, of which nobody says that they think: plain vLLM
    shutil.copytree(folders["llama"], place / "plain")
    config = json.loads((place / "plain" / "config.json").read_text())
    (place / "plain" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "thoughts"}))
    folders["plain"] = str(place / "plain")
    greedily = {"sampling": LONG | {"temperature": 0.0}, "prompts": job("llama")["prompts"][3::4]}

    scarce = {"num_gpu_blocks_override": 24, "max_num_seqs": 32, "max_num_batched_tokens": 128}
    jobs = {
        **{kind: job(kind) for kind in KINDS},
        **{option: job("llama", times=2, **engine) for option, engine in OPTIONS.items()},
        **{f"deciding, {option}": job("deciding", times=2, **engine) for option, engine in OPTIONS.items()},
        SHIPPED: job(SHIPPED) | {"prompts": fresh, "sampling": {"max_tokens": 64}},
        "no thoughts": job("llama") | greedily,
        "plain": job("plain") | greedily,
        "at an edge": job("llama", times=2) | {"prompts": edges},
        "long answers": job("llama", long=True),
        "few blocks": job("llama", long=True, **scarce),
        "few blocks, no prefix caching": job("llama", long=True, enable_prefix_caching=False, **scarce),
        "deciding, two tokens at least": job("deciding") | {"sampling": {"max_tokens": NEW_TOKENS, "min_tokens": 2}},
        "deciding, long answers": job("deciding", long=True),
        "deciding, few blocks": job("deciding", long=True, **scarce),
    }
    files = place / "wanted.json", place / "found.json"
    files[0].write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ask_vllm.py")), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(files[1].read_text())
    return answers


def texts(written: list[list[int]]) -> list[str]:
    """Tokens as text."""
    return [TOKENIZER.decode(ids, skip_special_tokens=True).strip() for ids in written]


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_thinks_as_with_cocot(kind: str, found: dict[str, Any]) -> None:
    """Every class that is said to think and every kind of thought, questions of all kinds in one batch."""
    expected = outputs(KINDS[kind](), REQUESTS)
    by_count = [expected[first::4] for first in range(4)]
    assert all(by_count[0] != others for others in by_count[1:]), "thoughts must matter, or nothing is tested"
    assert list(map(texts, found[kind]["written"])) == [expected]


def fresh_questions() -> list[str]:
    """1,000 of the kind that the model which comes with cocot was trained on."""
    data = read_recipe("demo").data
    settings = {**data.generate, **data.valid_generate}
    return [problem.question for problem in tasks.get(data.task).generate(1000, seed=10**6, **settings)]


def test_a_thousand_answers_of_the_bundled_model(found: dict[str, Any]) -> None:
    """As many as `cocot.answer` gives, each to the last token."""
    model, tokenizer = load(SHIPPED)
    expected = [given.output for given in answer(model, tokenizer, fresh_questions())]
    assert len(set(expected)) == 10, "each node is some answer"
    (written,) = found[SHIPPED]["written"]
    assert [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written] == expected


def test_requests_without_thoughts_get_what_plain_vllm_gives(found: dict[str, Any]) -> None:
    """Token for token, from the same weights in vLLM's own class and scheduler, 60 tokens each."""
    placeholders = {token for name, token in TOKENIZER.get_vocab().items() if name in (*SPECIAL_TOKENS, PAUSE)}
    (plain,), (ours,) = found["plain"]["written"], found["no thoughts"]["written"]
    same = [ours[row] == ids for row, ids in enumerate(plain) if not placeholders & {*ids}]  # which cocot never writes
    assert len(same) > len(plain) / 2
    assert all(same)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("deciding")])
def test_a_model_that_decides_takes_the_thoughts_that_it_wants(kind: str, found: dict[str, Any]) -> None:
    """Fewer than it may or all of them, and a client sees none of them among the tokens of its answer."""
    model = KINDS[kind]()
    taken = [answer(model, TOKENIZER, [question], 5, NEW_TOKENS)[0].num_thoughts for question in QUESTIONS]
    assert len(set(taken)) > 1
    unseen = {*TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS))}
    (written,) = found[kind]["written"]
    assert all(not unseen & {*ids} and 0 < len(ids) <= NEW_TOKENS for ids in written)


def test_a_model_that_decides_refuses_what_its_thoughts_would_change(found: dict[str, Any]) -> None:
    """A least number of tokens would count thoughts: an error; without thoughts it is as ever."""
    (written,) = found["deciding, two tokens at least"]["written"]
    assert [bool(ids) for ids in written] == [count == 0 for _, count in REQUESTS]


@pytest.mark.parametrize("kind", ["llama", "deciding"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_engine_change_no_answer(option: str, kind: str, found: dict[str, Any]) -> None:
    """Asked twice, so that the second time prefixes are found in the cache where there is one."""
    job = found[option if kind == "llama" else f"{kind}, {option}"]
    assert list(map(texts, job["written"])) == [outputs(KINDS[kind](), REQUESTS)] * 2
    assert (job["hits"] > 0) == (option not in ("without prefix caching", "blocks of 128 tokens"))


def test_a_thought_waits_for_the_hidden_state_of_a_shared_prefix(found: dict[str, Any]) -> None:
    """Prompts that are equal up to a thought at the edge of a block, all in one step: each thinks by itself."""
    expected = outputs(KINDS["llama"](), AT_AN_EDGE)
    assert len(set(expected)) > 3
    assert list(map(texts, found["at an edge"]["written"])) == [expected] * 2
    assert found["at an edge"]["hits"] > 0


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("few blocks", "long answers"),
        ("few blocks, no prefix caching", "long answers"),
        ("deciding, few blocks", "deciding, long answers"),
    ],
)
def test_preempted_requests_think_again(name: str, whole: str, found: dict[str, Any]) -> None:
    """With too few blocks for the batch vLLM drops what a request has read, and reads it again later."""
    assert found[whole]["preemptions"] == 0 < found[name]["preemptions"]
    assert found[name]["written"] == found[whole]["written"]


def test_every_class_that_is_said_to_think_is_tested() -> None:
    """A class that is added to the list is swept by the tests above."""
    assert {type(make()).__name__ for make in KINDS.values()} == set(ARCHITECTURES)


REFUSED: dict[str, dict[str, Any]] = {
    "speculative decoding": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "pipeline parallelism": {"pipeline_parallel_size": 2},
    "context parallelism": {"prefill_context_parallel_size": 2},
    "batches cut in parts (--enable-dbo, --ubatch-size)": {"enable_dbo": True},
    "a model class of transformers (--model-impl)": {"model_impl": "transformers"},
    "key-value connectors and offloading": {"kv_offloading_size": 1.0},
    "a scheduler of your own": {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"},
    "prompts as embeddings (--enable-prompt-embeds)": {"enable_prompt_embeds": True},
    "anything but writing text (--runner)": {"runner": "pooling"},
}
CONFIGURE = """
import json, os, sys
from types import SimpleNamespace
from vllm.engine.arg_utils import EngineArgs
found = {}
for name, (folder, engine) in json.load(open(sys.argv[1])).items():
    try:
        config = EngineArgs(folder, **engine).create_engine_config()
        model, scheduler = config.model_config, config.scheduler_config
        found[name] = [model.hf_config.architectures, scheduler.scheduler_cls, model.override_generation_config]
    except Exception as error:
        found[name] = str(error)
for variable, name in ("VLLM_USE_BREAKABLE_CUDAGRAPH", "thinks"), ("VLLM_USE_V2_MODEL_RUNNER", "decides"):
    os.environ[variable] = "1"
    try:
        folder, engine = json.load(open(sys.argv[1]))[name]
        EngineArgs(folder, **engine).create_engine_config()
    except Exception as error:
        found[variable] = str(error)
    del os.environ[variable]
from cocot.serving.vllm.models import _check_backends
backend = SimpleNamespace(get_name=lambda: "FLASHINFER")
layers = {"layer": SimpleNamespace(get_attn_backend=lambda: backend)}
try:
    _check_backends(SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=layers)))
except ValueError as error:
    found["backend"] = str(error)
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of configurations of engines, before any weight is read."""
    place = tmp_path_factory.mktemp("configured")
    folders = {
        "thinks": thinker("llama"),
        "refined": thinker("llama", iterations=2),
        "decides": thinker("llama", "adaptive"),
        "pauses": thinker("llama", filler=PAUSE),
        "other class": thinker("gpt_neox"),
    }
    paths = {name: str(module.export(model, place / name, TOKENIZER)) for name, model in folders.items()}
    wanted = {name: [path, ENGINE] for name, path in paths.items()}
    wanted |= {name: [paths["thinks"], ENGINE | engine] for name, engine in REFUSED.items()}
    wanted["plain with embeddings"] = [paths["pauses"], ENGINE | {"enable_prompt_embeds": True}]
    files = place / "wanted.json", place / "found.json"
    files[0].write_text(json.dumps(wanted))
    subprocess.run([sys.executable, "-c", CONFIGURE, *map(str, files)], check=True, env=environment(), timeout=300)
    found: dict[str, Any] = json.loads(files[1].read_text())
    return found


@pytest.mark.parametrize("feature", [*REFUSED, "VLLM_USE_BREAKABLE_CUDAGRAPH"])
def test_what_does_not_go_with_thoughts_is_refused_in_one_line(feature: str, configured: dict[str, Any]) -> None:
    """Every feature of the list, by its name, before the server begins."""
    lines = [line for line in configured[feature].splitlines() if "cocot: " in line]
    assert len(lines) == 1
    assert f"do not go with {feature}." in lines[0]


def test_other_kinds_of_attention_are_refused(configured: dict[str, Any]) -> None:
    """Those that say otherwise where the tokens of a step stand."""
    assert "do not go with the attention backend FLASHINFER; choose another" in configured["backend"]


@pytest.mark.parametrize(("name", "reason"), [("refined", "`pccot`"), ("other class", "GPTNeoXForCausalLM")])
def test_models_that_cannot_think_inside_vllm_are_refused(name: str, reason: str, configured: dict[str, Any]) -> None:
    """They are not served with their placeholders as words."""
    assert reason in configured[name]


def test_a_model_that_decides_needs_the_model_runner_that_was_tested(configured: dict[str, Any]) -> None:
    """The other one takes its most thoughts in another way; vLLM prefers it on a GPU."""
    (line,) = (line for line in configured["VLLM_USE_V2_MODEL_RUNNER"].splitlines() if "cocot: " in line)
    assert "do not go with vLLM's model runner V2" in line
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in line
    assert configured["decides"][0] == ["ThinkingLlamaForCausalLM"]


def test_only_folders_that_think_are_changed(configured: dict[str, Any]) -> None:
    """A model that thinks in pause tokens is served by vLLM's own class and scheduler."""
    assert configured["thinks"] == [
        ["ThinkingLlamaForCausalLM"],
        "cocot.serving.vllm.scheduler.ThoughtScheduler",
        {"temperature": 0.0},
    ]
    assert configured["pauses"] == configured["plain with embeddings"] == [["LlamaForCausalLM"], None, {}]
