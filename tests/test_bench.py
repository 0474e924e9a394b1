"""Tests of `bench`: what is counted is what is there, and the command prints a table and one JSON document."""

import gc
import json

import pytest
import torch

from cocot.bench import workload
from cocot.bench.measure import LiveBytes, alternate, live_bytes
from cocot.bench.ratios import Bench, measure
from cocot.cli import main
from cocot.methods import METHODS
from cocot.training.operations import operations

CPU = torch.device("cpu")
TINY = {"n_layer": 2, "n_embd": 64, "n_head": 2}


def test_runs_alternate():
    """Pairs in alternation after one round that does not count."""
    order = []
    taken = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert taken.keys() == {"a", "b"}


def test_live_bytes_are_those_of_new_storages():
    """What lives is counted once, views not at all; what dies is taken off; the peak stays."""
    old = torch.ones(100)
    with LiveBytes() as live:
        kept = old + 1
        view = kept.view(10, 10)[2:]
        assert live.now == 400
        passing = kept * 2
        assert live.now == 800
        del passing
        gc.collect()
        assert (live.now, live.peak) == (400, 800)
        kept.add_(1)
        assert live.now == 400
        del kept
        gc.collect()
        assert live.now == 400, "a view keeps its storage"
        del view
        gc.collect()
        assert live.now == 0


def test_bytes_kept_for_backward_are_what_autograd_saves():
    """A chain of squares keeps every input of a square, computed analytically."""
    start = torch.ones(1000, requires_grad=True)

    def forward():
        value = start
        for _ in range(5):
            value = value**2
        return value.sum()

    kept, peak = live_bytes(forward)
    assert kept == 4 * 1000 * 4 + 4
    assert peak > kept


@pytest.mark.parametrize("thoughts", [0, 3])
def test_operations_are_those_of_the_formula(thoughts):
    """6 a weight and token, 14 a pair of positions and width, the head where a label is; thoughts save masked pairs."""
    rows, length = [workload.Lengths(240 - thoughts, thoughts, 8)] * 2, 248
    _, model = workload.models(TINY, CPU)
    batch = workload.tensors(rows, CPU)
    decoder = sum(weight.numel() for name, weight in model.named_parameters() if ".h." in name)
    attention = 14 * TINY["n_layer"] * TINY["n_embd"] * length**2 * 2
    head = 6 * TINY["n_embd"] * workload.VOCABULARY * 8 * 2
    counted = operations(lambda: model(**batch).loss.backward())
    assert counted == pytest.approx(6 * decoder * length * 2 + attention + head, rel=0.05)  # thoughts: 2 % less
    assert attention > 0.1 * counted, "else nobody would notice that it is missing"


@pytest.mark.parametrize("text", workload.TEXTS)
def test_texts_are_as_long_as_the_real_ones(text, monkeypatch):
    """Question and thoughts as in the real data sets; later stages have less text."""
    rows = workload.lengths(text, 500)
    mean = sum(row.question for row in rows) / len(rows)
    assert mean == pytest.approx({"prosqa": 360, "gsm8k": 58}[text], rel=0.05)
    assert {row.thoughts for row in rows} == {6}
    texts = [sum(row.text for row in workload.lengths(text, 500, stage)) for stage in range(4)]
    assert texts == sorted(texts, reverse=True)
    monkeypatch.setattr(workload, "NUM_PROBLEMS", 1000)
    bucketed, shuffled = (workload.padding(workload.epoch(text, 32, by_length=by)) for by in (True, False))
    assert 1 <= bucketed < 1.15 < shuffled


def test_the_command_prints_a_table_and_one_document(monkeypatch, capsys):
    """Every ratio on a line with its goal, then JSON with all of them and the machine."""
    monkeypatch.setattr(workload, "SHAPES", {"tiny": TINY, "small": TINY})
    monkeypatch.setattr(workload, "NUM_PROBLEMS", 256)
    assert main(["bench", "--shapes", "tiny", "--rounds", "1", "--batch-size", "2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document.keys() == {"ratios", "machine"}
    assert [line.split("  ")[0].strip() for line in table] == list(document["ratios"])
    for name in ("step/sft", "step/floor", "memory step/sft", "memory checkpointed/sft", "bf16/step"):
        assert document["ratios"][f"{name}/tiny/prosqa"] > 0
    for name in (
        "padding/prosqa",
        "padding/gsm8k",
        "help",
        "probing shared/separate/tiny",
        "answers/generate/tiny/gsm8k",
    ):
        assert document["ratios"][name] > 0


def test_trainer_and_methods_are_measured_on_the_small_shape(monkeypatch):
    """A real stage runs, in a folder that is gone afterwards; every method's step has a ratio to Coconut's."""
    monkeypatch.setattr(workload, "SHAPES", {"small": TINY})
    monkeypatch.setattr(workload, "NUM_PROBLEMS", 256)
    ratios = measure(Bench(CPU, 1, ("small",), 2))
    found = [next(ratios) for _ in range(4 + len(METHODS))]
    assert found[3].name == "trainer/step"
    assert [ratio.name for ratio in found[4:]] == [f"step {name}/coconut/small" for name in METHODS]
    assert all(ratio.value > 0 for ratio in found)
    assert found[4 + list(METHODS).index("coconut")].value == 1.0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--shapes", "giant"], "'giant'; choose one of"),
        (["--rounds", "0"], "at least 1"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, what, capsys, monkeypatch):
    """One line, exit code 2."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *arguments]) == 2
    assert what in capsys.readouterr().err
