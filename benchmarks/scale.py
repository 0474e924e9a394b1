"""What a training step of a large model takes, on paper: memory and time a device, from 1 to 70 billion weights.

    python benchmarks/scale.py                      # the tables of docs/scale.md
    python benchmarks/scale.py --devices 16 --rows 4 --columns 1024 --thoughts 12
    python benchmarks/scale.py --check              # memory of two small shapes, measured, over what is said here

The weights are counted on models without values; the rest are the formulas of docs/scale.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cocot.bench.measure import live_bytes
from cocot.data.word_tokenizer import build_tokenizer
from cocot.methods.tokens import LATENT
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.shared_passes import enable_checkpointing
from cocot.tasks.problem import Problem

SHAPES = {
    "Llama 3.2 1B": ("llama", 2048, 16, 8192, 32, 8, 128256, True),
    "Qwen 2.5 3B": ("qwen2", 2048, 36, 11008, 16, 2, 151936, True),
    "Llama 3.1 8B": ("llama", 4096, 32, 14336, 32, 8, 128256, False),
    "Qwen 2.5 32B": ("qwen2", 5120, 64, 27648, 40, 8, 152064, False),
    "Llama 3.1 70B": ("llama", 8192, 80, 28672, 64, 8, 128256, False),
}
PEAK = 989e12  # H100, dense bfloat16 operations a second
SHARE = 0.4  # of the peak that wide passes reach
BANDWIDTH = 3.35e12  # bytes a second from its memory
GIB = 2**30


@dataclass
class Model:
    """A model's counts."""

    layers: int
    width: int
    inner: int
    keys: int  # width of keys and of values
    vocabulary: int
    weights: int
    tables: int  # weights of the embeddings and the head


Shape = tuple[str, int, int, int, int, int, int, bool]
"""Kind, width, layers, inner width, heads, heads of keys, vocabulary, whether the head is the embeddings."""

SMALL: tuple[Shape, ...] = (
    ("llama", 256, 4, 1024, 4, 2, 4000, False),
    ("llama", 512, 8, 1792, 8, 2, 16000, False),
)


def make(shape: Shape) -> PreTrainedModel:
    """A model of a shape."""
    kind, width, layers, inner, heads, kv, words, tied = shape
    config = AutoConfig.for_model(
        kind,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=words,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config)


def count(shape: Shape) -> Model:
    """Count the weights of a shape."""
    _, width, layers, inner, heads, kv, words, tied = shape
    with torch.device("meta"):
        model = make(shape)
    weights = sum(weight.numel() for weight in model.parameters())
    return Model(layers, width, inner, width // heads * kv, words, weights, words * width * (1 if tied else 2))


def state_bytes(model: Model, way: str, devices: int) -> float:
    """Weights, gradients and moments on a device."""
    matrices = model.weights - model.tables
    if way == "all weights, FSDP":
        return 16 * model.weights / devices + 2 * (2 * matrices / model.layers + model.tables)
    if way == "LoRA, DDP":
        return 4 * model.weights + 2 * matrices  # and the copies that passes of one thought read
    return 0.56 * matrices + 4 * model.tables  # QLoRA, DDP


def activation_bytes(model: Model, rows: int, columns: int, labels: int) -> float:
    """What a step keeps for its backward pass, with gradient checkpointing."""
    tokens = rows * columns
    kept = 4 * model.width * model.layers  # the input of every layer
    keys = 2 * 2 * model.keys * model.layers
    one_layer = 2 * (8 * model.width + 2 * model.keys + 4 * model.inner)  # computed again, a layer at a time
    return tokens * (kept + keys + one_layer) + rows * labels * model.vocabulary * (2 + 4 + 4)


def seconds(
    model: Model, way: str, rows: int, columns: int, thoughts: int, devices: int, link: float
) -> tuple[float, float, float]:
    """Of a step: wide passes, passes of one thought, and what goes over the links."""
    operations = (8 if "all" in way else 6) * model.weights * rows * columns  # recomputing counts
    thin = thoughts * 2 * 2 * model.weights / BANDWIDTH  # each reads all weights, there and back
    if "FSDP" not in way:
        return operations / (PEAK * SHARE), thin, 0.0
    gathered = 2 * (thoughts + 1) * 2 * model.weights  # forward and backward of every pass
    reduced = 2 * 4 * model.weights  # the first pass's gradients, and all others' at once
    return operations / (PEAK * SHARE), thin, (gathered + reduced) * (devices - 1) / devices / link


def check(rows: int = 4, columns: int = 256, labels: int = 64, thoughts: int = 6) -> None:
    """What lives at once in a step on a CPU, over gradients, bfloat16 copies of the weights and `activation_bytes`."""
    tokenizer = build_tokenizer([Problem("<<", ("a",), "b")])
    for shape in SMALL:
        model = give_thoughts(make(shape), tokenizer).train()
        enable_checkpointing(model)
        ids = torch.randint(len(tokenizer), 4000, (rows, columns))
        ids[:, -labels - thoughts : -labels] = tokenizer.convert_tokens_to_ids(LATENT)
        targets = torch.where(torch.arange(columns) < columns - labels, -100, ids)

        def loss(
            model: PreTrainedModel = model, ids: torch.Tensor = ids, labels: torch.Tensor = targets
        ) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(input_ids=ids, labels=labels).loss

        _, peak = live_bytes(loss)
        counts = count(shape)
        said = 6 * counts.weights + activation_bytes(counts, rows, columns, labels)
        print(f"{counts.weights / 1e6:.0f} M weights: {peak / 2**20:.0f} MiB, {peak / said:.2f} of what is said here")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="problems a device (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=512, help="tokens a problem (default: %(default)s)")
    parser.add_argument("--labels", type=int, default=128, help="of them, with a loss (default: %(default)s)")
    parser.add_argument("--thoughts", type=int, default=6)
    parser.add_argument("--link", type=float, default=450, help="GB/s between devices (default: %(default)s, NVLink)")
    parser.add_argument("--check", action="store_true", help="measure two small shapes on the CPU")
    args = parser.parse_args()
    if args.check:
        check()
        return
    names = "model | weights | way | state, GiB | activations, GiB | sum, GiB | compute, s | thoughts, s | links, s"
    print(f"| {names} |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for name, shape in SHAPES.items():
        model = count(shape)
        for way in ("all weights, FSDP", "LoRA, DDP", "QLoRA, DDP"):
            state = state_bytes(model, way, args.devices) / GIB
            kept = activation_bytes(model, args.rows, args.columns, args.labels) / GIB
            times = seconds(model, way, args.rows, args.columns, args.thoughts, args.devices, args.link * 1e9)
            cells = " | ".join(f"{value:.2f}" for value in times)
            print(
                f"| {name} | {model.weights / 1e9:.2f} B | {way} | {state:.1f} | {kept:.1f} | {state + kept:.1f} "
                f"| {cells} |"
            )


if __name__ == "__main__":
    main()
