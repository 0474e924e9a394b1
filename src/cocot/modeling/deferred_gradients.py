"""Many small products with one matrix, and its gradient in one product at the end.

A pass of a single thought multiplies a few rows with every weight matrix. Its gradient is as large as the matrix:
written and added up once a thought, it costs more memory traffic than all else in the pass. Here the products remember
their rows, and one product over all of them makes the gradient: the same sum in another order.

In: matrices that require a gradient. Out: products that behave as `rows @ matrix` does.

    weight = DeferredMatrix(matrix)              # (inner, outer)
    y = weight.times(x1).sum() + weight.times(x2).sum()
    y.backward()                                 # one product fills matrix.grad

Read next: `modeling/shared_passes.py`, which uses this for weights and for the first pass's keys and values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Rows = defaultdict[int, list[tuple[Tensor, Tensor]]]
"""The inputs of products and the gradients of their outputs, by backward run: one that failed, or that did not ask for
the matrix's gradient, leaves rows that no other run may count."""


class DeferredMatrix:
    """A matrix, or a batch of them, whose gradient is computed when all its products have theirs."""

    def __init__(self, matrix: Tensor) -> None:
        """Wrap `matrix`, (..., inner, outer)."""
        self._rows: Rows = defaultdict(list)
        self._matrix: Tensor = _Anchor.apply(matrix, self._rows)  # type: ignore[no-untyped-call]

    def times(self, rows: Tensor) -> Tensor:
        """`rows @ matrix`: (..., rows, inner) to (..., rows, outer), in the matrix's dtype."""
        product: Tensor = _Product.apply(rows.to(self._matrix.dtype), self._matrix, self._rows)  # type: ignore[no-untyped-call]
        return product


class DeferredWeights(TorchFunctionMode):
    """While active, linear layers with trainable weights defer their gradients; it may be entered again and again.

    Frozen weights are cast for autocast once: autocast itself would make, and backward keep, a copy a product.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, DeferredMatrix] = {}
        self._frozen: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take the two calls that Hugging Face's layers make: `linear`, and GPT-2's `addmm`."""
        known: dict[Callable[..., Any], Callable[..., Any]] = {
            functional.linear: self._linear,
            torch.addmm: self._addmm,
        }
        return known.get(func, func)(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _is_trainable(weight):
            return functional.linear(input, self._cast(weight), bias)
        product = self._matrix(weight, is_transposed=True).times(input)
        return product if bias is None else product + bias.to(product.dtype)

    def _addmm(self, input: Tensor, mat1: Tensor, mat2: Tensor, **others: Any) -> Tensor:
        if others or not _is_trainable(mat2):
            return torch.addmm(input, mat1, self._cast(mat2), **others)
        product = self._matrix(mat2, is_transposed=False).times(mat1)
        return product + input.to(product.dtype)

    def _cast(self, weight: Tensor) -> Tensor:
        if not isinstance(weight, nn.Parameter):  # taken out of 4 bits for this product alone
            return weight
        if id(weight) not in self._frozen:
            self._frozen[id(weight)] = in_autocast_dtype(weight)
        return self._frozen[id(weight)]

    def _matrix(self, weight: Tensor, is_transposed: bool) -> DeferredMatrix:
        if id(weight) not in self._known:
            matrix = weight.t() if is_transposed else weight
            self._known[id(weight)] = DeferredMatrix(in_autocast_dtype(matrix))
        return self._known[id(weight)]


def in_autocast_dtype(tensor: Tensor) -> Tensor:
    """What autocast would make of an operand of a product."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _is_trainable(weight: Tensor) -> bool:
    return weight.requires_grad and weight.is_leaf


class _Anchor(torch.autograd.Function):
    """The matrix itself; backward, which runs after all products', sums what they remembered."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rows: Rows) -> Tensor:
        ctx.rows, ctx.is_transposed = rows, not matrix.is_contiguous()
        ctx.set_materialize_grads(False)
        return matrix.view_as(matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_products: None) -> tuple[Tensor | None, None]:
        rows = ctx.rows.pop(_backward_run(), None)
        if rows is None:
            return None, None
        inner, outer = rows[0] if len(rows) == 1 else (torch.cat(parts, dim=-2) for parts in zip(*rows, strict=True))
        if ctx.is_transposed:  # so that the gradient lies in memory as the parameter does
            return (outer.transpose(-1, -2) @ inner).transpose(-1, -2), None
        return inner.transpose(-1, -2) @ outer, None


class _Product(torch.autograd.Function):
    """`rows @ matrix` that leaves the matrix's gradient to its anchor."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, matrix: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(inner, matrix)
        return inner @ matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        inner, matrix = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            rows = (inner, gradient) if matrix.dim() > 2 else (inner.flatten(0, -2), gradient.flatten(0, -2))
            ctx.rows[_backward_run()].append(rows)
        return (gradient @ matrix.transpose(-1, -2) if ctx.needs_input_grad[0] else None), None, None


def _backward_run() -> int:
    """The number of the backward run that we are in; `torch.utils.checkpoint` tells its runs apart by it, too."""
    number: int = torch._C._current_graph_task_id()
    return number
