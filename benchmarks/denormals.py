"""What numbers below 1e-38 cost: a training step from a checkpoint, with and without them, in alternating pairs.

A CPU takes a hundred times as long for such a *denormal* number, and the gradients of an attention that is sure are
full of them. `cocot train` takes them for zero.

    cocot train prontoqa_cpu --curriculum.method no_cot --out runs/no_cot      # stop it after a few epochs of `final`
    python benchmarks/denormals.py runs/no_cot/stages/final
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from cocot.modeling.loading import load
from cocot.training.checkpoints import newest_checkpoint

ROWS, COLUMNS, LABELS = 64, 110, 3


def main() -> None:
    """Time pairs of steps and print their medians and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="folder of a stage with a checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = newest_checkpoint(args.stage)
    assert checkpoint, f"{args.stage} holds no checkpoint"
    model, tokenizer = load(checkpoint)
    model.train()
    torch.manual_seed(0)
    words = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    ids = words[torch.randint(len(words), (ROWS, COLUMNS))]
    labels = torch.full_like(ids, -100)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * (args.rounds + 1)):
        takes_for_zero = number % 2 == 0
        torch.set_flush_denormal(takes_for_zero)
        began = perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        if number > 1:  # the first pair warms up
            seconds[takes_for_zero].append(perf_counter() - began)
    zero, itself = median(seconds[True]), median(seconds[False])
    print(
        f"{checkpoint}: {zero:.3f} s with denormals taken for zero, {itself:.3f} s without: {itself / zero:.2f} times"
    )


if __name__ == "__main__":
    main()
