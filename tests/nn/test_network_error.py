"""The mean squared error of a KAN and its gradient in one call: those of the op of all layers."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import KAN
from kan_kernels.backends import native
from kan_kernels.nn.network import gather
from kan_kernels.regularization import regularization

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
pytestmark = pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")

CASES: list[dict[str, Any]] = [
    {"widths": [2, 5, 1], "batch": 300},
    {"widths": [2, 5, 1], "batch": 300, "dtype": F64, "bias": True},
    {"widths": [3, 1], "batch": 1, "dtype": F64, "base": None},
    {"widths": [64, 64, 64], "batch": 300, "grid_size": 3, "dtype": F64},
    {"widths": [7, 20, 2], "batch": 33, "dtype": BF16, "bias": True},
    {"widths": [3, (2, 2), (0, 1), (1, 2)], "mult_arity": [[], [2, 3], 4, 2], "batch": 70, "bias": True},
    {"widths": [2, (0, 3), 1], "mult_arity": 3, "batch": 33, "dtype": F64, "base": None},
]


def make(case: dict[str, Any]) -> tuple[KAN, Tensor, Tensor]:
    """A KAN, x with points outside of the knots, and a target with strides of its own."""
    options = dict(case)
    batch, dtype = options.pop("batch"), options.get("dtype", F32)
    torch.manual_seed(batch)
    net = KAN(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    x = (torch.randn(batch, net.layers[0].in_features) * 1.2).to(dtype)
    with torch.no_grad():
        return net, x, torch.randn(net(x).shape[1], batch).to(dtype).t()


NO_PENALTY = 0.0, 0.0, 0.0


def call(
    net: KAN, x: Tensor, y: Tensor, penalty: tuple[float, float, float] = NO_PENALTY, **changed: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[int]]:
    """The error, the penalty, the gradient of both in one vector, and the places of the tensors' parts in it:
    the last tensor's is first.
    """
    layers = gather(net)
    assert not isinstance(layers, str)
    parameters = layers.tensors[: -layers.count]
    starts = list(accumulate((t.numel() for t in reversed(parameters)), initial=0))[:-1]
    places: list[int] = changed.pop("places", starts[::-1])
    with torch.no_grad():
        made = native.kan_network_error(x, y, layers.tensors, *layers.numbers, places, *penalty)
    return *made, parameters, places


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['widths']} {case.get('dtype', F32)}")
def test_error_and_gradient(case: dict[str, Any]) -> None:
    """Those of torch's loss and autograd, to rounding, in the places that were asked for."""
    net, x, y = make(case)
    value, penalty, vector, parameters, places = call(net, x, y)
    assert not penalty
    loss = torch.nn.functional.mse_loss(net(x).double(), y.double())
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(value.double(), loss, rtol=16 * eps, atol=0)
    assert vector.shape == (sum(p.numel() for p in parameters),) and vector.dtype == x.dtype
    wanted = torch.autograd.grad(loss, parameters)
    largest = max(float(g.abs().max()) for g in wanted)
    for parameter, place, g in zip(parameters, places, wanted, strict=True):
        found = vector[place : place + parameter.numel()].view(parameter.shape)
        torch.testing.assert_close(found, g, rtol=16 * eps, atol=16 * eps * largest)


PENALTIES = (0.3, 0.7, 1.5), (0.3, 1.0, 0.0), (2.0, 0.0, 1.0)
# layers that have the sizes of their edges from their own pass, others, and both in one network
SIZES: list[dict[str, Any]] = [
    *[c for c in CASES if c.get("dtype") != BF16 and "mult_arity" not in c],
    {"widths": [3, 4, 2], "batch": 97, "dtype": F64, "base": None, "spline_order": 1},
    {"widths": [40, 6, 8], "batch": 150, "dtype": F64, "base": "identity", "bias": True},
    {"widths": [9, 70, 3, 3], "batch": 130, "dtype": F64, "spline_order": 2, "grid_size": 9},
    {"widths": [2, 4, 1], "batch": 100, "spline_order": 5},
    {"widths": [2, 1], "batch": 100, "spline_order": 0},
]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("case", SIZES, ids=lambda c: f"{c['widths']} {c.get('dtype', F32)}")
def test_penalty(case: dict[str, Any], penalty: tuple[float, float, float]) -> None:
    """That of `regularization`, of edges of size 0 too, and its gradient beside the error's."""
    net, x, y = make(case)
    lamb, l1, entropy = penalty
    with torch.no_grad():
        for parameter in net.layers[0].parameters():
            parameter[0] = 0.0
    value, found, vector, parameters, places = call(net, x, y, penalty)
    wanted = regularization(net, x, lamb_l1=l1, lamb_entropy=entropy)
    loss = torch.nn.functional.mse_loss(net(x), y)
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close((value, found), (loss, wanted), rtol=32 * eps, atol=32 * eps)
    gradients = torch.autograd.grad(loss + lamb * wanted, parameters)
    largest = max(float(g.abs().max()) for g in gradients)
    for parameter, place, g in zip(parameters, places, gradients, strict=True):
        part = vector[place : place + parameter.numel()].view(parameter.shape)
        torch.testing.assert_close(part, g, rtol=100 * eps, atol=100 * eps * largest)


@pytest.mark.parametrize("dtype", (F32, F64))
def test_values_that_are_not_finite(dtype: torch.dtype) -> None:
    """A NaN or an infinity in x or in the target is one in the error; no rows have the error NaN."""
    net, x, y = make({"widths": [2, 3, 1], "batch": 20, "dtype": dtype})
    for of in (x, y):
        for bad in (math.nan, math.inf):
            kept, of[3, 0] = of[3, 0].clone(), bad
            value, _, vector, *_ = call(net, x, y)
            with torch.no_grad():
                loss = torch.nn.functional.mse_loss(net(x), y)
            assert not value.isfinite() and bool(value.isnan()) == bool(loss.isnan())
            assert not vector.isfinite().all()
            of[3, 0] = kept
    value, _, vector, *_ = call(net, x[:0], y[:0])
    assert value.isnan() and not vector.any()


def test_bad_arguments() -> None:
    """Targets and places that do not fit are errors before any kernel runs."""
    net, x, y = make({"widths": [2, 3, 1], "batch": 20, "dtype": F64, "bias": True})
    for target, places, message in (
        (y[:, 0], None, r"target has shape \(20\), expected \(20, 1\)"),
        (y[:3], None, r"target has shape \(3, 1\), expected \(20, 1\)"),
        (y.float(), None, "target must have the weights' dtype"),
        (y, [0, 1], "places: got 2, expected one for each of 6 tensors"),
        (y, [0, 48, 72, 78, 81, 85], "places: got 85, where the parts before it end at 84"),
        (y, [-1, 48, 72, 78, 81, 84], "places: got -1, where the parts before it end at 0"),
        (y, [0, 48, 48, 72, 78, 81], "places: got 48, where the parts before it end at"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(net, x, target, **({} if places is None else {"places": places}))


@pytest.mark.parametrize(
    "case",
    (
        {"widths": [64, 5, 1], "batch": 300},
        {"widths": [2, 20, 1], "batch": 2000, "dtype": F64},
        {"widths": [9, 4, 4], "batch": 4001, "dtype": F64, "bias": True},
        {"widths": [1, 2, 1], "batch": 20000},
    ),
    ids=lambda c: f"{c['widths']}",
)
def test_the_same_bits_on_any_number_of_threads(case: dict[str, Any]) -> None:
    """Error, penalty and gradient are sums of the same parts."""
    net, x, y = make(case)
    threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 4, 1):
            torch.set_num_threads(n)
            made.append(call(net, x, y, PENALTIES[0])[:3])
    finally:
        torch.set_num_threads(threads)
    for found in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, made[0], strict=True))


@pytest.mark.parametrize("batch", (10, 200))
def test_sizes_that_vanish_beside_others(batch: int) -> None:
    """An edge whose share of the layer is rounded to 0 adds 0 to the entropy."""
    net, x, y = make({"widths": [2, 3, 1], "batch": batch, "dtype": F64, "base": None})
    with torch.no_grad():
        net.layers[0].spline_weight[:, :, 0] = 1e-310
        net.layers[0].spline_weight[:, :, 1] = 1e20
    _, found, vector, *_ = call(net, x, y, PENALTIES[0])
    wanted = regularization(net, x, lamb_l1=0.7, lamb_entropy=1.5)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert vector.isfinite().all()


def test_penalties_of_other_layers() -> None:
    """Sizes of edges are of float32 and float64, and of layers without products."""
    for case, message in (
        ({"widths": [2, 3, 1], "batch": 20, "dtype": BF16}, "a penalty needs float32 or float64 weights"),
        ({"widths": [2, (1, 1), 1], "batch": 20}, "a penalty needs layers without products"),
    ):
        net, x, y = make(case)
        with pytest.raises(RuntimeError, match=message):
            call(net, x, y, PENALTIES[0])


@pytest.mark.parametrize("bias", (False, True))
def test_opcheck(bias: bool) -> None:
    """torch's own checks of the op: schema, fake kernel, tracing."""
    net, x, y = make({"widths": [3, 4, 2], "batch": 9, "bias": bias})
    layers = gather(net)
    assert not isinstance(layers, str)
    tensors = [t.detach() for t in layers.tensors]
    places = list(accumulate((t.numel() for t in tensors[:-2]), initial=0))[:-1]
    op = torch.ops.kan_kernels.kan_network_error.default
    torch.library.opcheck(op, (x, y, tensors, *layers.numbers, places, *PENALTIES[0]))
