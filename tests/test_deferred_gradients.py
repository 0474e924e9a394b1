"""Tests of `deferred`: products and layers as they are without it, every gradient counted exactly once."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cocot.modeling.deferred_gradients import DeferredMatrix, DeferredWeights

# Largest difference allowed in float64, relative to the largest entry. Measured, worst of this file: 3.0e-16.
TOLERANCE = 1e-12
# The same under bfloat16 autocast, against plain autocast: that rounds the gradient of a weight once a call, and not
# once in all. bfloat16 has 8 bits. Measured, worst: 0.0072.
AUTOCAST_TOLERANCE = 2**-6

INNER, OUTER = 5, 3
SHAPES = {"one": (INNER, OUTER), "batch": (3, INNER, OUTER), "batch of heads": (2, 4, INNER, OUTER)}
LAYERS = {
    "linear": lambda: nn.Linear(INNER, OUTER),
    "linear without bias": lambda: nn.Linear(INNER, OUTER, bias=False),
    "Conv1D": lambda: Conv1D(OUTER, INNER),
}


def draw(*shape, seed=0):
    """Random numbers in float64 that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def make_matrix(shape, is_transposed):
    """A leaf, and the matrix of `shape` that is a view of it."""
    if not is_transposed:
        leaf = draw(*shape)
        return leaf, leaf
    leaf = draw(*shape[:-2], shape[-1], shape[-2])
    return leaf, leaf.transpose(-1, -2)


def error(got, expected):
    """Largest difference, relative to the largest entry expected."""
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def loss_of(product, weigh=1.0):
    """Some number that depends on every entry in a way of its own."""
    place = torch.arange(product.numel(), dtype=product.dtype).view(product.shape)
    return weigh * (product * (1 + place).sin()).sum() + product.pow(2).sum()


# Matrices


@pytest.mark.parametrize("is_transposed", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_matrix(shape, is_transposed):
    """Several products of different numbers of rows, and all their gradients, are those of `rows @ matrix`."""
    leaf, matrix = make_matrix(SHAPES[shape], is_transposed)
    batch = SHAPES[shape][:-2]
    rows = [draw(*batch, count, INNER, seed=count) for count in (1, 4, 2)]
    expected = [part @ matrix for part in rows]
    true_grads = torch.autograd.grad(sum(map(loss_of, expected)), [leaf, *rows])
    deferred = DeferredMatrix(matrix)
    got = [deferred.times(part) for part in rows]
    grads = torch.autograd.grad(sum(map(loss_of, got)), [leaf, *rows])
    assert max(map(error, got, expected)) < TOLERANCE
    assert max(map(error, grads, true_grads)) < TOLERANCE
    assert error(grads[0] + 10 * TOLERANCE * grads[0].abs().max(), true_grads[0]) > TOLERANCE


@pytest.mark.parametrize("is_transposed", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gradient_lies_as_its_parameter(shape, is_transposed):
    """The gradient of a parameter has its layout in memory, also where the products see it transposed."""
    leaf, matrix = make_matrix(SHAPES[shape], is_transposed)
    deferred, seen = DeferredMatrix(matrix), []
    leaf.register_hook(lambda grad: seen.append(grad.stride()))  # autograd copies what is laid out otherwise
    loss_of(deferred.times(draw(*SHAPES[shape][:-2], 2, INNER, seed=1))).backward()
    assert seen == [leaf.stride()]


def test_rows_may_have_batch_dimensions_of_their_own():
    """One matrix serves rows of any shape, in one and the same sum."""
    matrix, parts = (
        draw(INNER, OUTER),
        [draw(2, 3, INNER, seed=1), draw(1, 1, 4, INNER, seed=2), draw(7, INNER, seed=3)],
    )
    true_grad = torch.autograd.grad(sum(loss_of(part @ matrix) for part in parts), matrix)[0]
    deferred = DeferredMatrix(matrix)
    products = [deferred.times(part) for part in parts]
    assert [product.shape[:-1] for product in products] == [part.shape[:-1] for part in parts]
    assert error(torch.autograd.grad(sum(map(loss_of, products)), matrix)[0], true_grad) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_products_without_a_gradient_add_nothing(shape):
    """A product that the loss does not depend on leaves the gradient as it would be without it."""
    matrix, batch = draw(*SHAPES[shape]), SHAPES[shape][:-2]
    used, unused = draw(*batch, 2, INNER, seed=1), draw(*batch, 3, INNER, seed=2)
    true_grads = torch.autograd.grad(loss_of(used @ matrix), [matrix, used])
    deferred = DeferredMatrix(matrix)
    kept = deferred.times(unused)
    grads = torch.autograd.grad(loss_of(deferred.times(used)), [matrix, used])
    assert kept.requires_grad
    assert max(map(error, grads, true_grads)) < TOLERANCE


def test_a_matrix_that_no_loss_needs_has_no_gradient():
    """Neither without any product, nor with one that the loss does not depend on, nor with a gradient that is None."""
    matrix, rows = draw(INNER, OUTER), draw(2, INNER, seed=1)
    deferred = DeferredMatrix(matrix)
    deferred.times(rows)
    loss = rows.sum()
    loss.backward(retain_graph=True)
    assert matrix.grad is None
    both = _OnlyFirst.apply(rows, deferred.times(rows))
    both.sum().backward()
    assert matrix.grad is None or not matrix.grad.any()
    assert torch.equal(rows.grad, torch.full_like(rows, 2))


class _OnlyFirst(torch.autograd.Function):
    """The first of two tensors; the second gets None for a gradient."""

    @staticmethod
    def forward(ctx, first, second):
        return first.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_what_is_frozen_stays_so():
    """Only what wants a gradient gets one: rows alone, the matrix alone, neither."""
    for wants in ((True, False), (False, True), (False, False)):
        rows, matrix = draw(2, INNER, seed=1).requires_grad_(wants[0]), draw(INNER, OUTER).requires_grad_(wants[1])
        expected, got = rows @ matrix, DeferredMatrix(matrix).times(rows)
        assert error(got, expected) < TOLERANCE
        assert got.requires_grad == any(wants)
        leaves = [leaf for leaf in (rows, matrix) if leaf.requires_grad]
        if leaves:
            grads, true_grads = (torch.autograd.grad(loss_of(product), leaves) for product in (got, expected))
            assert max(map(error, grads, true_grads)) < TOLERANCE


def test_products_feed_products():
    """The rows of one product may come from another with the same matrix, as thoughts do."""
    matrix, rows = draw(INNER, INNER), draw(1, INNER, seed=1)

    def chain(times):
        state, total = rows, 0
        for _ in range(4):
            state = times(state).tanh()
            total = total + loss_of(state)
        return torch.autograd.grad(total, [matrix, rows])

    assert max(map(error, chain(DeferredMatrix(matrix).times), chain(lambda state: state @ matrix))) < TOLERANCE


# Backward more than once


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_twice_gives_twice_the_gradient(shape):
    """A graph that is retained may be run again: nothing is lost, and nothing of the first run counts again."""
    matrix, batch = draw(*SHAPES[shape]), SHAPES[shape][:-2]
    rows = [draw(*batch, count, INNER, seed=count) for count in (2, 3)]
    true_grads = torch.autograd.grad(sum(loss_of(part @ matrix) for part in rows), [matrix, *rows])
    deferred = DeferredMatrix(matrix)
    loss = sum(loss_of(deferred.times(part)) for part in rows)
    loss.backward(retain_graph=True)
    assert max(map(error, [matrix.grad, *(part.grad for part in rows)], true_grads)) < TOLERANCE
    loss.backward()
    assert max(map(error, [matrix.grad / 2, *(part.grad / 2 for part in rows)], true_grads)) < TOLERANCE


def test_two_losses_may_share_a_matrix():
    """Each backward brings the gradient of its own products."""
    matrix, first, second = draw(INNER, OUTER), draw(2, INNER, seed=1), draw(3, INNER, seed=2)
    expected = [torch.autograd.grad(loss_of(part @ matrix), matrix)[0] for part in (first, second)]
    deferred = DeferredMatrix(matrix)
    losses = [loss_of(deferred.times(part)) for part in (first, second)]
    for loss, true_grad in zip(losses, expected, strict=True):
        matrix.grad = None
        loss.backward(retain_graph=True)
        assert error(matrix.grad, true_grad) < TOLERANCE


def test_a_gradient_of_the_rows_alone_does_not_count_again():
    """Asking for the gradient of the rows first does not change what a full backward brings."""
    matrix, rows = draw(INNER, OUTER), draw(2, INNER, seed=1)
    true_grads = torch.autograd.grad(loss_of(rows @ matrix), [matrix, rows])
    loss = loss_of(DeferredMatrix(matrix).times(rows))
    for _ in range(2):
        assert error(torch.autograd.grad(loss, [rows], retain_graph=True)[0], true_grads[1]) < TOLERANCE
    loss.backward()
    assert max(map(error, (matrix.grad, rows.grad), true_grads)) < TOLERANCE


def test_a_backward_that_fails_does_not_count_again():
    """What a backward pass that raised has left behind is not in the next one's gradient."""
    matrix, rows, fails = draw(INNER, OUTER), draw(2, INNER, seed=1), [True]

    def fail_once(gradient):
        if fails:
            raise RuntimeError(fails.pop())

    true_grad = torch.autograd.grad(loss_of(rows @ matrix), matrix)[0]
    deferred = DeferredMatrix(matrix)
    before = rows * 1
    before.register_hook(fail_once)  # runs after the product's backward, before the matrix's
    loss = loss_of(deferred.times(before))
    with pytest.raises(RuntimeError, match="True"):
        loss.backward(retain_graph=True)
    assert matrix.grad is None
    loss.backward()
    assert error(matrix.grad, true_grad) < TOLERANCE


def test_a_gradient_is_added_to_what_is_there():
    """Steps accumulate into `.grad`, and into the tensor that is there."""
    matrix, parts = draw(INNER, OUTER), [draw(count, INNER, seed=count) for count in (2, 3)]
    true_grad = torch.autograd.grad(sum(loss_of(part @ matrix) for part in parts), matrix)[0]
    matrix.grad = torch.ones_like(matrix)
    there = matrix.grad
    for part in parts:
        loss_of(DeferredMatrix(matrix).times(part)).backward()
    assert matrix.grad is there
    assert error(matrix.grad, true_grad + 1) < TOLERANCE


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_nothing_is_remembered_after_backward(is_frozen):
    """Rows live as long as the graph does, and no longer, though the matrix and the products live on."""
    deferred = DeferredMatrix(draw(INNER, OUTER).requires_grad_(not is_frozen))
    rows = draw(2, INNER, seed=1) * 1
    product = deferred.times(rows)
    loss, seen = loss_of(product), []
    product.register_hook(lambda gradient: seen.append(weakref.ref(gradient)))
    storage = weakref.ref(rows.untyped_storage())
    del rows
    assert storage() is not None
    loss.backward()
    del loss
    gc.collect()
    assert storage() is None
    assert [ref() for ref in seen] == [None]


def test_a_second_derivative_is_refused():
    """It would lack the part that goes through the matrix: an error, not a wrong number."""
    matrix, rows = draw(INNER, OUTER), draw(2, INNER, seed=1)
    grads = torch.autograd.grad(DeferredMatrix(matrix).times(rows).pow(3).sum(), [matrix, rows], create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
            grad.sum().backward(retain_graph=True)


# Weights


def run(layers, calls, pass_context, dtype=None):
    """Outputs of `calls` of all layers, each in what `pass_context(number)` gives, and the gradients of their loss.

    With a `dtype`, the forward pass runs under autocast to it.
    """
    outputs = []
    for number, rows in enumerate(calls):
        with torch.autocast("cpu", dtype, enabled=dtype is not None), pass_context(number):
            outputs += [layer(rows) for layer in layers]
    parameters = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    sum(loss_of(output, 1.0 + number) for number, output in enumerate(outputs)).backward()
    grads = [parameter.grad for parameter in parameters] + [rows.grad for rows in calls if rows.requires_grad]
    for tensor in (*parameters, *calls):
        tensor.grad = None
    return [output.detach() for output in outputs], grads


class _Plain:
    """Surroundings that change nothing; may be entered again and again."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def make_layers(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [make().to(dtype) for make in LAYERS.values()]
    for layer in layers:
        nn.init.normal_(layer.weight)
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return layers


@pytest.mark.parametrize("inside", [(0, 1, 2, 3), (1, 3)], ids=["always", "now and then"])
def test_layers_are_what_they_were(inside):
    """Linear layers of all kinds give the same outputs and gradients, mixed with use outside of the mode."""
    layers, weights, plain = make_layers(), DeferredWeights(), _Plain()
    calls = [draw(2, count, INNER, seed=count) for count in (1, 3, 1, 2)]
    expected = run(layers, calls, lambda number: plain)
    got = run(layers, calls, lambda number: weights if number in inside else plain)
    for values, true_values in zip(got, expected, strict=True):
        assert max(map(error, values, true_values)) < TOLERANCE


def count_products(layers, calls, pass_context):
    """How many matrix products make the gradients of the layers' weights in `run`."""
    counted = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default:
                counted.append(tuple(output.shape))
            return output

    with Count():
        run(layers, calls, pass_context)
    return sum(set(shape) == {INNER, OUTER} for shape in counted)


def test_a_weight_gets_its_gradient_in_one_product():
    """However often the mode is entered: one product a weight, where without it there is one a call."""
    layers, weights, plain = make_layers(), DeferredWeights(), _Plain()
    calls = [draw(7, INNER, seed=seed) for seed in range(4)]  # 7 rows: no other product has the shape of a weight
    assert count_products(layers, calls, lambda number: plain) == len(layers) * len(calls)
    assert count_products(layers, calls, lambda number: weights) == len(layers)


def test_a_mode_is_for_one_step_and_another_for_the_next():
    """A new mode over the same weights, changed in between, sees them as they are now."""
    layers, plain = make_layers(), _Plain()
    calls = [draw(2, INNER, seed=seed) for seed in (1, 2)]
    for _ in range(2):
        weights = DeferredWeights()
        expected = run(layers, calls, lambda number: plain)
        got = run(layers, calls, lambda number, weights=weights: weights)
        assert (
            max(error(*pair) for kind in zip(got, expected, strict=True) for pair in zip(*kind, strict=True))
            < TOLERANCE
        )
        with torch.no_grad():
            for layer in layers:
                layer.weight.mul_(0.5)


def test_frozen_weights_pass_untouched():
    """A frozen weight gets no gradient, its bias and its rows do, and it is the very call without the mode."""
    layers = make_layers()
    for layer in layers:
        layer.weight.requires_grad_(False)
    calls, weights = [draw(2, INNER, seed=seed) for seed in (1, 2)], DeferredWeights()
    expected, got = run(layers, calls, lambda number: _Plain()), run(layers, calls, lambda number: weights)
    assert all(torch.equal(*pair) for kind in zip(got, expected, strict=True) for pair in zip(*kind, strict=True))
    assert all(layer.weight.grad is None for layer in layers)


def test_other_calls_pass_untouched():
    """What is no layer with a trainable weight is the call that it was."""
    rows, leaf = draw(2, INNER, seed=1), draw(OUTER, INNER)
    with DeferredWeights():
        got = [
            torch.addmm(torch.ones(OUTER, dtype=torch.float64), rows, leaf.t(), beta=2, alpha=3),
            rows @ leaf.t(),
            nn.functional.layer_norm(rows, (INNER,)),
        ]
    expected = [
        2 + 3 * (rows @ leaf.t()),
        rows @ leaf.t(),
        nn.functional.layer_norm(rows, (INNER,)),
    ]
    assert max(map(error, got, expected)) < TOLERANCE
    grads, true_grads = (
        torch.autograd.grad(sum(map(loss_of, parts)), [leaf, rows], retain_graph=True) for parts in (got, expected)
    )
    assert max(map(error, grads, true_grads)) < TOLERANCE


def test_a_computed_weight_is_computed_each_time():
    """A weight that is made for one call is not taken for another, though it may lie where the last one did."""
    leaf, rows = (tensor.detach().float().requires_grad_() for tensor in (draw(OUTER, INNER), draw(2, INNER, seed=1)))
    results = []
    for pass_context in (_Plain(), DeferredWeights()):
        with torch.autocast("cpu", torch.bfloat16), pass_context:
            products = [nn.functional.linear(rows, leaf * factor) for factor in range(1, 6)]
        results.append([*products, *torch.autograd.grad(sum(map(loss_of, products)), [leaf, rows])])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("call", ["linear", "linear bias", "addmm"])
def test_operands_may_have_names(call):
    """A layer that names its operands works, whether its gradient is deferred or not."""
    rows, weight, bias = draw(2, INNER, seed=1), draw(OUTER, INNER), draw(OUTER, seed=2)
    call = {
        "linear": partial(nn.functional.linear, input=rows, weight=weight, bias=bias),
        "linear bias": partial(nn.functional.linear, rows, weight, bias=bias),
        "addmm": partial(torch.addmm, input=bias, mat1=rows, mat2=weight.t()),
    }[call]
    with DeferredWeights():
        got = call()
    assert error(got, rows @ weight.t() + bias) < TOLERANCE


def test_autocast_is_within_its_noise():
    """Under bfloat16 autocast outputs are bfloat16's, gradients differ by its rounding, and parameters' are float32."""
    layers, weights, plain = make_layers(torch.float32), DeferredWeights(), _Plain()
    calls = [draw(4, count, INNER, seed=count).detach().float().requires_grad_() for count in (1, 3, 1, 2)]
    expected = run(layers, calls, lambda number: plain, torch.bfloat16)
    got = run(layers, calls, lambda number: weights, torch.bfloat16)
    exact = run(layers, calls, lambda number: plain)
    assert {output.dtype for output in got[0]} == {torch.bfloat16}
    assert {grad.dtype for grad in got[1]} == {torch.float32}
    for values, true_values in zip(got, expected, strict=True):
        assert (
            max(map(error, map(torch.Tensor.float, values), map(torch.Tensor.float, true_values))) < AUTOCAST_TOLERANCE
        )
    assert min(map(error, got[1], exact[1])) > 1e-4, "nothing was computed in bfloat16"


@pytest.mark.parametrize("name", LAYERS)
def test_weights_changed_before_backward_are_noticed(name):
    """A weight changed in place between forward and backward is an error, as it is without the mode."""
    torch.manual_seed(0)
    layer, rows = LAYERS[name]().double(), draw(2, INNER)
    for pass_context in (_Plain(), DeferredWeights()):
        with pass_context:
            loss = layer(rows).pow(2).sum()
        with torch.no_grad():
            layer.weight.add_(1)
        with pytest.raises(RuntimeError, match=r"modified (by an inplace operation|inplace)"):
            loss.backward()
