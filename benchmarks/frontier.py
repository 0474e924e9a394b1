"""What the thoughts hold: can the frontier of the search be read off thought i by a linear probe?

For each thought and each distance d below the root, a ridge regression from the thought (width numbers) to "is this
symbol d steps below the root" is fitted on 2,000 fresh problems and scored on 500 others: of the n symbols it ranks
first, how many of the n true ones are there (recall at n)? Guessing gives n / number of symbols.

    python benchmarks/frontier.py runs/demo/coconut --layers 2
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from cocot.curriculum import LATENT, encode_question
from cocot.generation import answer
from cocot.model import load, thought_settings
from cocot.tasks import Problem, get

FIT, SCORE = 2000, 500
RIDGE = 1.0


def frontier(problem: Problem, depth: int) -> list[str]:
    """Names of the nodes exactly `depth` steps below the root."""
    graph = problem.graph
    assert graph is not None
    nodes = {graph.root}
    for _ in range(depth):
        nodes = {destination for source, destination in graph.edges if source in nodes}
    return [graph.symbols[index] for index in nodes]


@torch.inference_mode()
def thoughts(model, tokenizer, problems: list[Problem], num_thoughts: int) -> Tensor:
    """The thoughts of each problem, (problems, thoughts, width)."""
    seen: list[Tensor] = []
    # what a latent position reads is the last hidden state one position earlier
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for problem in problems:
        ids = torch.tensor([encode_question(problem.question, num_thoughts, thought_settings(model), tokenizer)])
        latent = (ids[0] == tokenizer.convert_tokens_to_ids(LATENT)).nonzero().flatten()
        model(input_ids=ids)
        seen[-1] = seen[-1][0, latent - 1]
    handle.remove()
    return torch.stack(seen)


def recall(vectors: Tensor, truth: Tensor) -> tuple[float, float]:
    """Recall at n of a ridge probe on the problems that were not fitted, and what guessing would give."""
    inputs = torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1).double()
    fit, score = inputs[:FIT], inputs[FIT:]
    weights = torch.linalg.solve(fit.T @ fit + RIDGE * torch.eye(fit.shape[1]), fit.T @ truth[:FIT].double())
    hits, guesses = [], []
    for row, wanted in zip(score @ weights, truth[FIT:], strict=True):
        count = int(wanted.sum())
        if count:
            hits.append(wanted[row.topk(count).indices].double().mean().item())
            guesses.append(count / len(wanted))
    return sum(hits) / len(hits), sum(guesses) / len(guesses)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, default=2, help="steps of the problems")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    task, layers = get("prosqa"), args.layers
    problems = task.generate(FIT + SCORE, seed=-77, mode="balanced", rendering="symbolic", layers=layers, width=2)
    num_thoughts = thought_settings(model).num_thoughts
    given = answer(model, tokenizer, [problem.question for problem in problems], max_new_tokens=12)
    right = [task.is_correct(problem, text.text) for problem, text in zip(problems, given, strict=True)]
    print(f"{args.model}: accuracy {sum(right) / len(right):.1%} on {len(right)} problems of {layers} steps")
    vectors = thoughts(model, tokenizer, problems, num_thoughts)
    symbols = [str(index) for index in range(len(problems[0].graph.symbols))]
    print("recall of the nodes at distance     " + "".join(f"{depth:>8d}" for depth in range(1, layers + 1)))
    for index in range(num_thoughts):
        cells = []
        for depth in range(1, layers + 1):
            truth = torch.tensor([[symbol in frontier(problem, depth) for symbol in symbols] for problem in problems])
            found, guessed = recall(vectors[:, index], truth)
            cells.append(f"{found:8.3f}")
        print(f"thought {index + 1}".ljust(36) + "".join(cells) + f"   (guessing: {guessed:.3f})")


if __name__ == "__main__":
    main()
