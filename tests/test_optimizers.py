"""Tests of the optimizers: several as one step like each alone, and carry over what a new stage should inherit."""

from __future__ import annotations

import copy

import pytest
import torch
from runs_support import TINY_INIT
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cocot.data.word_tokenizer import build_tokenizer
from cocot.modeling.from_scratch import build_model
from cocot.tasks.prosqa import ProsQA
from cocot.training.config import TrainConfig
from cocot.training.optimizers import CombinedOptimizer, Float32Muon, build_optimizer, load_moments, reset_moments

MATRIX = torch.arange(12.0).reshape(3, 4) / 10
VECTOR = torch.arange(4.0)
MUON = TrainConfig(optimizer="muon", learning_rate=1e-2, muon_learning_rate=0.03, weight_decay=0.1, adam_beta2=0.9)


def parameters() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """A matrix and a vector to learn."""
    return torch.nn.Parameter(MATRIX.clone()), torch.nn.Parameter(VECTOR.clone())


def step(optimizer: Optimizer, learned: tuple[torch.nn.Parameter, ...], number: int) -> None:
    """One step with gradients that depend on the step's number alone."""
    for index, parameter in enumerate(learned):
        generator = torch.Generator().manual_seed(100 * number + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def together(learned: tuple[torch.nn.Parameter, torch.nn.Parameter], rate: float = 0.1) -> CombinedOptimizer:
    """Muon for the matrix, AdamW for the vector."""
    return CombinedOptimizer(Muon([learned[0]], lr=rate), AdamW([learned[1]], lr=rate / 10))


def test_together_steps_like_its_parts() -> None:
    """One step of both is one step of each, under one schedule that reaches both rates."""
    ours, theirs = parameters(), parameters()
    joint = together(ours)
    parts: list[Optimizer] = [Muon([theirs[0]], lr=0.1), AdamW([theirs[1]], lr=0.01)]
    schedules = [LambdaLR(optimizer, lambda number: 1 / (1 + number)) for optimizer in (joint, *parts)]
    for number in range(4):
        step(joint, ours, number)
        step(parts[0], theirs[:1], number)
        for index, parameter in enumerate(theirs):
            parameter.grad = ours[index].grad
        parts[1].step()
        for schedule in schedules:
            schedule.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert joint.param_groups[0]["lr"] == pytest.approx(0.1 / 5)
    assert joint.param_groups[1]["lr"] == pytest.approx(0.01 / 5)


def test_together_clears_gradients_and_returns_the_closures_loss() -> None:
    """`zero_grad` and a closure work as in any optimizer."""
    learned = parameters()
    joint = together(learned)

    def closure() -> float:
        joint.zero_grad()
        loss = sum((parameter**2).sum() for parameter in learned)
        loss.backward()
        return float(loss.detach())

    assert joint.step(closure) == pytest.approx(float((MATRIX**2).sum() + (VECTOR**2).sum()))
    assert not torch.equal(learned[0], MATRIX)
    joint.zero_grad()
    assert all(parameter.grad is None for parameter in learned)


def test_a_saved_state_goes_on_as_if_never_saved() -> None:
    """`state_dict` into a fresh optimizer: the next steps are bit for bit the same, and schedules still reach it."""
    ours, theirs = parameters(), parameters()
    joint = together(ours)
    for number in range(3):
        step(joint, ours, number)
    fresh = together(theirs, rate=5.0)
    with torch.no_grad():
        for parameter, other in zip(theirs, ours, strict=True):
            parameter.copy_(other)
    fresh.load_state_dict(copy.deepcopy(joint.state_dict()))
    for optimizer in (joint, fresh):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
    step(joint, ours, 3)
    step(fresh, theirs, 3)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert fresh.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_inherited_moments_come_with_the_heirs_own_rates(kind: str) -> None:
    """A new stage takes the moments over and none of the settings; a schedule begins from the new stage's rate."""
    tokenizer = build_tokenizer(ProsQA().generate(2, seed=0))
    config = TrainConfig(optimizer=kind, learning_rate=1e-2, muon_learning_rate=0.03)  # type: ignore[arg-type]
    model = build_model(TINY_INIT, tokenizer)
    learned = tuple(model.parameters())
    old = build_optimizer(model, config, factor=1.0)
    LambdaLR(old, lambda number: 0.5)
    step(old, learned, 0)
    heir = build_optimizer(model, config, factor=0.1)
    own_rates = [group["lr"] for group in heir.param_groups]
    load_moments(heir, copy.deepcopy(old.state_dict()))
    LambdaLR(heir, lambda number: 1.0)
    assert [group["lr"] for group in heir.param_groups] == own_rates
    pairs = zip(getattr(old, "parts", [old]), getattr(heir, "parts", [heir]), strict=True)
    for before, after in pairs:
        assert len(after.state) == len(before.state) > 0
        for parameter, moments in before.state.items():
            for name, value in moments.items():
                assert torch.equal(torch.as_tensor(after.state[parameter][name]), torch.as_tensor(value))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_forgetting_is_beginning_anew(kind: str) -> None:
    """After `reset_moments` the next step is that of a new optimizer with the same rates."""

    def build(learned: tuple[torch.nn.Parameter, torch.nn.Parameter]) -> Optimizer:
        return together(learned) if kind == "muon" else AdamW(learned, lr=0.1)

    ours = parameters()
    used = build(ours)
    step(used, ours, 0)
    theirs = tuple(torch.nn.Parameter(parameter.detach().clone()) for parameter in ours)
    reset_moments(used)
    step(used, ours, 1)
    step(build(theirs), theirs, 1)  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_muon_on_a_cpu_is_pytorchs_without_its_cast(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit PyTorch's algorithm in float32; with its cast to bfloat16 it is near."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, same, cast = (torch.nn.Parameter(start.clone()) for _ in range(3))
    settings = {"lr": 0.1, "weight_decay": 0.1}
    optimizers = Float32Muon([ours], **settings), Muon([same], **settings), Muon([cast], **settings)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        for parameter in (ours, same, cast):
            parameter.grad = gradient.clone()
        optimizers[0].step()
        optimizers[2].step()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
            optimizers[1].step()
    assert torch.equal(ours, same)
    assert torch.equal(optimizers[0].state[ours]["momentum_buffer"], optimizers[1].state[same]["momentum_buffer"])
    assert 0 < (ours - cast).norm() < 0.02 * (ours - start).norm()  # measured: 0.008 to 0.011


def test_muon_elsewhere_is_pytorchs() -> None:
    """The meta device stands for a GPU: PyTorch's own step is taken."""
    weight = torch.nn.Parameter(torch.empty(3, 4, device="meta"))
    weight.grad = torch.empty(3, 4, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Muon, "step", lambda self, closure=None: 7.0)
        assert Float32Muon([weight], lr=0.1, weight_decay=0.0).step() == 7.0
        assert Float32Muon([torch.nn.Parameter(MATRIX)], lr=0.1, weight_decay=0.0).step() is None


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    """Every weight is learned once: matrices of the blocks by Muon, embeddings, head and vectors by AdamW."""
    model = build_model(TINY_INIT, build_tokenizer(ProsQA().generate(2, seed=0)))
    optimizer = build_optimizer(model, MUON, factor=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = optimizer.param_groups
    by_muon = {names[id(parameter)] for parameter in muon["params"]}
    by_adamw = {names[id(parameter)] for parameter in adamw["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    assert by_muon == {name for name, weight in model.named_parameters() if ".h." in name and weight.dim() == 2}
    assert (muon["lr"], adamw["lr"]) == (0.015, 0.005)
    assert adamw["betas"] == (0.9, 0.9)
    assert muon["weight_decay"] == adamw["weight_decay"] == 0.1


def test_adamw_takes_everything() -> None:
    """`optimizer: adamw` is one AdamW over all weights, at the stage's rate."""
    model = build_model(TINY_INIT, build_tokenizer(ProsQA().generate(2, seed=0)))
    optimizer = build_optimizer(model, TrainConfig(learning_rate=1e-2), factor=0.1)
    assert isinstance(optimizer, AdamW)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["lr"] == pytest.approx(1e-3)
