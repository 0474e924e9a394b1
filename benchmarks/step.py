"""How a training step with thoughts compares with ordinary fine-tuning on as many tokens.

Prints a table and, as its last line, one JSON document of ratios. Pairs in alternation, medians.

    python benchmarks/step.py
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from random import Random
from statistics import median

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocot.batching import collate
from cocot.config import InitConfig
from cocot.curriculum import CurriculumConfig, Encoder, schedule, tokenize
from cocot.model import give_thoughts
from cocot.scratch import build_model, build_tokenizer
from cocot.tasks import get

ROUNDS = 7
BATCH = 8
THOUGHTS = 3


def prepare() -> tuple[dict[str, torch.Tensor], PreTrainedModel, PreTrainedModel]:
    """A batch of ProsQA-like problems in words with thoughts; a model that thinks, and its bare twin."""
    problems = get("prosqa").generate(BATCH, seed=0, mode="released")
    tokenizer = build_tokenizer(problems)
    init = InitConfig(architecture="gpt2", layers=4, width=256, heads=4, settings={"n_positions": 512})
    torch.manual_seed(0)
    bare = build_model(init, tokenizer)
    thinking = AutoModelForCausalLM.from_config(bare.config)
    thinking.load_state_dict(bare.state_dict())
    give_thoughts(thinking, tokenizer)
    config = CurriculumConfig(method="coconut", max_stage=THOUGHTS, epochs_per_stage=1)
    encoder, stage = Encoder(config, tokenizer), schedule(config)[-1]
    examples = [encoder(tokenize(problem, tokenizer), stage, Random(0)) for problem in problems]
    return collate(examples, tokenizer.pad_token_id), thinking, bare


def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    model.train()
    model.zero_grad()
    began = time.perf_counter()
    model(**batch).loss.backward()
    return time.perf_counter() - began


def alternate(*steps: Callable[[], float]) -> list[float]:
    """The median seconds of each, measured in turn so that noise falls on all alike."""
    for run in steps:
        run()
    rounds = [[run() for run in steps] for _ in range(ROUNDS)]
    return [median(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    """Measure and print."""
    batch, thinking, bare = prepare()
    thoughts, sft = alternate(lambda: step(thinking, batch), lambda: step(bare, batch))
    print(f"batch {BATCH}, {batch['input_ids'].shape[1]} columns, {THOUGHTS} thoughts, GPT-2 of 4 layers, width 256")
    print(f"training step with thoughts            {1000 * thoughts:8.1f} ms")
    print(f"ordinary fine-tuning, full logits      {1000 * sft:8.1f} ms")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(json.dumps({"ratios": {"step/sft": round(thoughts / sft, 3)}, "machine": machine}))


if __name__ == "__main__":
    main()
