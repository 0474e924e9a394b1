"""Optimizers by name: AdamW, or Muon for the decoder's weight matrices with AdamW for the rest.

In: a model and a `TrainConfig`. Out: one `torch.optim.Optimizer`, which any scheduler and checkpoint can handle.
Read next: `training/run.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate.utils.operations import recursively_apply  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Muon, Optimizer

from cocot.training.config import TrainConfig

_ADAM_BETA1 = 0.9


def build_optimizer(model: nn.Module, config: TrainConfig, factor: float = 1.0) -> Optimizer:
    """The recipe's optimizer, with its learning rates multiplied by `factor`."""
    betas = (_ADAM_BETA1, config.adam_beta2)
    rate, decay = config.learning_rate * factor, config.weight_decay
    if config.optimizer == "adamw":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return AdamW(trained, lr=rate, betas=betas, weight_decay=decay, fused=True)
    matrices = _block_matrices(model)
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = Float32Muon(matrices, lr=config.muon_learning_rate * factor, weight_decay=decay)
    return CombinedOptimizer(muon, AdamW(rest, lr=rate, betas=betas, weight_decay=decay, fused=True))


def _block_matrices(model: Any) -> list[Tensor]:
    """The two-dimensional weights inside the decoder's blocks: neither embeddings nor the head."""
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    tables.update(id(module.weight) for module in embeddings)
    return [parameter for parameter in model.parameters() if parameter.dim() == 2 and id(parameter) not in tables]


class Float32Muon(Muon):
    """`torch.optim.Muon`, which on a CPU computes in the type of the weights, and elsewhere in bfloat16 as ever.

    PyTorch casts every update to bfloat16 for the sake of tensor cores. Many CPUs have no instructions for it: there a
    step of this optimizer took longer than the forward and backward pass of a small model together.
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every matrix that has a gradient."""
        if any(parameter.device.type != "cpu" for group in self.param_groups for parameter in group["params"]):
            return cast(Any, super()).step(closure)  # type: ignore[no-any-return]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_matrix(parameter, parameter.grad, group)
        return loss

    def _step_matrix(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rate, momentum = float(group["lr"]), group["momentum"]
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(state["momentum_buffer"], momentum)
        direction = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = matrix.shape
        matrix.mul_(1 - rate * group["weight_decay"])
        matrix.add_(direction, alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """A matrix with the same singular vectors, and singular values near one: Newton-Schulz iterations.

    Args:
        matrix: rows x columns.
        coefficients: Of x, x³ and x⁵ in the polynomial that each iteration applies to the singular values.
        num_steps: Iterations.
        eps: The least norm that the matrix is divided by.
    """
    a, b, c = coefficients
    found = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = found / found.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if matrix.shape[0] > matrix.shape[1] else found


class CombinedOptimizer(Optimizer):
    """Several optimizers as one: their groups side by side, each stepped by its own."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        # the very groups of the parts: what a scheduler writes here, they read
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The parts' states, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore every part; its groups keep their identity here."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def whole_state(state: dict[str, Any], keeps: bool) -> dict[str, Any]:
    """A `state_dict` as if one process had it all: what processes share (FSDP) is gathered.

    Args:
        state: What every process has of it; every process must ask.
        keeps: Whether this process keeps what it gathers, on the CPU; in the others it is of no use.
    """

    def gathered(moment: Any) -> Tensor | None:
        whole: Tensor = moment.detach().full_tensor()
        return whole.cpu() if keeps else None

    found: dict[str, Any] = recursively_apply(gathered, state, test_type=lambda value: isinstance(value, DTensor))
    return found


def load_whole_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore what `whole_state` gave; each process keeps its share of it."""
    parts = getattr(optimizer, "parts", [optimizer])
    for part, saved in zip(parts, state.get("parts", [state]), strict=True):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        for index, moments in saved["state"].items():
            saved["state"][index] = {name: _shared(value, parameters[index]) for name, value in moments.items()}
    optimizer.load_state_dict(state)


def _shared(value: Any, parameter: Tensor) -> Any:
    """A moment of a parameter, shared out as the parameter is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def reset_moments(optimizer: Optimizer) -> None:
    """Drop every moment; rates stay."""
    for part in getattr(optimizer, "parts", [optimizer]):
        part.state.clear()


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments of an earlier stage's optimizer; the rates stay those of `optimizer`."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    load_whole_state(optimizer, state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.pop("initial_lr", None)  # else the stage's schedule would start from the old stage's rate
        group.update(settings)
