"""Tests of the class for lm-evaluation-harness: its numbers are ours, through its own command, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKENIZER, make_thinker
from runs_support import environment
from test_export import NUM_THOUGHTS, QUESTIONS, outputs, saved, trained_thinker

os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'cocot[lm-eval]'")

from lm_eval.api.instance import Instance

from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, DataError
from cocot.interpret.likelihood import continuation_log_probs
from cocot.serving.lm_eval import CocotLM

# Largest difference allowed to a log-probability. Measured, worst of this file: 9.5e-7; with a thought fewer: 0.29.
TOLERANCE = 1e-5
CHOICES = ["### 1", "### 2 3", "4 2 ;"]


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """What the harness hands to a model."""
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def ours(model: Any, num_thoughts: int) -> list[float]:
    """The log-probabilities of every choice after every question, by `probing`."""
    settings = ThoughtSettings(**model.config.thoughts)
    prompts = [encode_question(question, num_thoughts, settings, TOKENIZER) for question in QUESTIONS]
    texts = [[TOKENIZER.encode(choice, add_special_tokens=False) for choice in CHOICES] for _ in QUESTIONS]
    return [float(value) for row in continuation_log_probs(model, prompts, texts) for value in row]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_log_likelihoods_are_ours(name: str) -> None:
    """With as many thoughts as trained and with fewer, in ragged batches; whether a choice is the likeliest, too."""
    model = trained_thinker(name)
    pairs = [(question, choice) for question in QUESTIONS for choice in CHOICES]
    for count in (None, 1):
        wrapped = CocotLM(model, TOKENIZER, num_thoughts=count, batch_size=4)
        found = wrapped.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
        expected = ours(model, NUM_THOUGHTS if count is None else count)
        assert [value for value, _ in found] == pytest.approx(expected, abs=TOLERANCE)
    fewer = ours(model, NUM_THOUGHTS - 1)
    assert max(abs(a - b) for a, b in zip(ours(model, NUM_THOUGHTS), fewer, strict=True)) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generations_are_ours(name: str) -> None:
    """Batched, with questions of several lengths."""
    model = trained_thinker(name)
    wrapped = CocotLM(model, TOKENIZER, batch_size=3)
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    found = wrapped.generate_until(requests("generate_until", [(text, settings) for text in QUESTIONS]), True)
    assert [text.strip() for text in found] == outputs(model, QUESTIONS)


def test_what_does_not_fit_is_refused() -> None:
    """No question is cut in silence; the number of thoughts must be known."""
    wrapped = CocotLM(trained_thinker("llama"), TOKENIZER)
    settings = {"until": [], "max_gen_toks": 100, "do_sample": False}
    with pytest.raises(DataError, match="lower max_gen_toks"):
        wrapped.generate_until(requests("generate_until", [(QUESTIONS[0], settings)]), True)
    too_long = " ".join([QUESTIONS[0]] * 9)
    with pytest.raises(DataError, match=r"takes \d+ tokens, and the model reads 128"):
        wrapped.loglikelihood(requests("loglikelihood", [(too_long, CHOICES[0])]), True)
    with pytest.raises(DataError, match="nothing to think about"):
        wrapped.loglikelihood(requests("loglikelihood", [("", CHOICES[0])]), True)
    with pytest.raises(DataError, match="has no question to think about"):
        wrapped.loglikelihood_rolling(requests("loglikelihood_rolling", [(QUESTIONS[0],)]), True)
    with pytest.raises(ConfigError, match="say num_thoughts=k"):
        CocotLM(make_thinker("llama"), TOKENIZER)


@pytest.mark.slow
def test_the_harness_runs_a_task(tmp_path: Path) -> None:
    """By its own command, in a process of its own, on a task in a file, without a network."""
    model = trained_thinker("llama")
    folder = saved(model, tmp_path / "model")
    rows = [{"question": question, "choices": CHOICES, "gold": 1} for question in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    command = [sys.executable, "-m", "cocot.serving.lm_eval", "run", "--model", "cocot", "--tasks", "mine"]
    command += ["--include_path", str(tmp_path / "tasks"), "--model_args", f"pretrained={folder}"]
    command += ["--output_path", str(tmp_path / "out"), "--device", "cpu"]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment() | home)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results*.json")
    scores = ours(model, NUM_THOUGHTS)
    best = [max(range(3), key=lambda choice: scores[3 * row + choice]) for row in range(len(QUESTIONS))]
    assert json.loads(results.read_text())["results"]["mine"]["acc,none"] == best.count(1) / len(QUESTIONS)


def test_a_chat_template_is_refused() -> None:
    """An exported model's template writes the thoughts that this class adds: together they would be twice as many."""
    with pytest.raises(ConfigError, match="leave --apply_chat_template out"):
        CocotLM(trained_thinker("llama"), TOKENIZER).apply_chat_template([{"role": "user", "content": QUESTIONS[0]}])
