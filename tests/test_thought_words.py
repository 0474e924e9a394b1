"""Tests of `read_thoughts`: what a model writes behind its thoughts alone, as by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from runs_support import tiny_config, twins

import cocot
from cocot import tasks
from cocot.cli import main
from cocot.data.encoding import decode, encode_question
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import ConfigError, ModelError
from cocot.methods.tokens import SPECIAL_TOKENS
from cocot.modeling.thought_settings import thought_settings
from cocot.training.run import prepare_data

PROBLEMS = tasks.get("prosqa").generate(5, seed=3, mode="balanced", rendering="symbolic", layers=[1, 2, 3], width=2)
QUESTIONS = [problem.question for problem in PROBLEMS]
TOKENIZER = build_tokenizer(PROBLEMS)
LATENT_ID = TOKENIZER.convert_tokens_to_ids("<|latent|>")
PLACEHOLDERS = TOKENIZER.convert_tokens_to_ids([*SPECIAL_TOKENS])


def by_definition(model: Any, prompt: list[int], thoughts_per_step: int, most: int) -> list[str]:
    """One thought after the other, one token after the other, everything read again each time."""
    embedded = reference.embeddings(model, prompt, LATENT_ID)
    thoughts = [embedded[place] for place, token in enumerate(prompt) if token == LATENT_ID]
    texts = []
    for start in range(0, len(thoughts), thoughts_per_step):
        read, written = thoughts[start : start + thoughts_per_step], list[int]()
        while len(written) < most and TOKENIZER.eos_token_id not in written:
            logits = model(inputs_embeds=torch.stack(read)[None], use_cache=False).logits[0, -1]
            logits[PLACEHOLDERS] = float("-inf")
            written.append(int(logits.argmax()))
            read.append(model.get_input_embeddings()(torch.tensor(written[-1])))
        texts.append(decode(written, TOKENIZER))
    return texts


@pytest.mark.parametrize("thoughts_per_step", [1, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_text_is_that_of_the_definition(architecture: str, thoughts_per_step: int) -> None:
    """In batches, questions of unlike lengths: each thought is read alone, and nothing of its question."""
    model, plain = twins(architecture, TOKENIZER)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=draw))
    plain.load_state_dict(model.state_dict())
    asked = {"num_thoughts": 4, "thoughts_per_step": thoughts_per_step, "max_new_tokens": 5}
    texts = cocot.read_thoughts(model, TOKENIZER, QUESTIONS, batch_size=2, **asked)
    prompts = [encode_question(text, 4, thought_settings(model), TOKENIZER) for text in QUESTIONS]
    with torch.no_grad():
        assert texts == [by_definition(plain.eval(), prompt, thoughts_per_step, 5) for prompt in prompts]
    assert len({text for own in texts for text in own}) > 1  # negative control: thoughts do not all say the same


def test_what_cannot_be_read_is_refused() -> None:
    """Thoughts that the step's number does not divide, numbers that are none; no thoughts say nothing."""
    model, _ = twins("llama", TOKENIZER)
    with pytest.raises(ConfigError, match="3 thoughts cannot be read 2 at a time"):
        cocot.read_thoughts(model, TOKENIZER, QUESTIONS, num_thoughts=3, thoughts_per_step=2)
    with pytest.raises(ConfigError, match="thoughts_per_step"):
        cocot.read_thoughts(model, TOKENIZER, QUESTIONS, num_thoughts=3, thoughts_per_step=0)
    with pytest.raises(ModelError, match="number of thoughts is unknown"):
        cocot.read_thoughts(model, TOKENIZER, QUESTIONS)
    assert cocot.read_thoughts(model, TOKENIZER, QUESTIONS, num_thoughts=0) == [[]] * len(QUESTIONS)


def test_the_command_line_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cocot ask --read-thoughts` prints a line for each step of a trained model."""
    curriculum = {"method": "sim_cot", "max_stage": 2, "epochs_per_stage": 1, "stage_mix": 0.0}
    run = cocot.train(tiny_config(curriculum=curriculum), tmp_path / "run")
    question = prepare_data(tiny_config()).valid[0].question
    assert main(["ask", str(run.path), question, "--read-thoughts", "--max-new-tokens", "4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1 in thoughts", "step 2 in thoughts"]
    assert main(["ask", str(run.path), question, "--read-thoughts", "--text-steps"]) == 2
    assert "leave --read-thoughts out" in capsys.readouterr().err
