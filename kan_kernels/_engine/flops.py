"""What our ops cost, for torch.utils.flop_counter: two a multiply-add with a coefficient, as for a GEMM.

Of B-splines the k+1 functions of a cell count, which is what the kernels do, and not the G+k that a dense
evaluation multiplies by. Evaluating the functions is left out, as torch leaves out activations.
"""

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch

from .._core import fakes
from .._core.bases import BY_CODE
from .._core.on_import import after_import
from ..backends import with_op

Shape = Sequence[int]


def _layer(x: Shape, outputs: int, functions: int, order: int, base: int, basis: int) -> int:
    active = order + 1 if BY_CODE[basis].local else functions
    return 2 * prod(x) * outputs * (active + bool(base))


def kan_linear(
    x: Shape, row_scale: Any, weight: Shape, base_weight: Any, bias: Any, grid: Any, functions: int,
    order: int, base: int, derivative: int, basis: int, **_: Any,
) -> int:  # fmt: skip
    return _layer(x, weight[-1], functions, order, base, basis)


def kan_linear_grad_input(
    x: Shape, weight: Shape, base_weight: Any, g: Any, grid: Any, functions: int, order: int, base: int,
    derivative: int, basis: int, **_: Any,
) -> int:  # fmt: skip
    return _layer(x, weight[-1], functions, order, base, basis)


def kan_linear_grad_weight(
    x: Shape, row_scale: Any, g: Shape, grid: Any, functions: int, order: int, base: int, derivative: int,
    basis: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _layer(x, g[-1], functions, order, base, basis)


def kan_linear_backward(*args: Any, **_: Any) -> int:
    return 2 * kan_linear_grad_input(*args)


def kan_activation(
    x: Shape, row_scale: Any, weight: Shape, base_weight: Any, grid: Any, functions: int, order: int,
    base: int, derivative: int, basis: int, **_: Any,
) -> int:  # fmt: skip
    return _layer(x, weight[-1], functions, order, base, basis)


def kan_network(
    x: Shape, tensors: Sequence[Shape], layers: int, order: int, base: int, products: Any, **_: Any
) -> int:
    rows = x[:-1]
    return sum(_layer((*rows, w[0]), w[2], w[1], order, base, 0) for w in tensors[:layers])


def kan_network_backward(
    x: Shape, hidden: Any, tensors: Sequence[Shape], layers: int, g: Any, order: int, base: int, need_x: bool,
    need_weight: bool, products: Any, **_: Any,
) -> int:  # fmt: skip
    every = kan_network(x, tensors, layers, order, base, products)
    first = kan_network(x, tensors[:1], 1, order, base, products)
    return (every if need_x else every - first) + (every if need_weight else 0)


def kan_network_error(
    x: Shape, target: Any, tensors: Sequence[Shape], layers: int, order: int, base: int, products: Any,
    places: Any, lamb: float, *_: Any, **__: Any,
) -> int:  # fmt: skip
    backward = kan_network_backward(x, None, tensors, layers, target, order, base, False, True, products)
    forward = kan_network(x, tensors, layers, order, base, products)
    # with a penalty the sizes of the edges, and their signs beside the gradients
    return 3 * forward + 2 * backward if lamb else forward + backward


def kan_network_lbfgs(*args: Any, out_shape: tuple[Any, ...] = (), **_: Any) -> int:
    evaluations: int = out_shape[5]  # the first of which was made before
    return (evaluations - 1) * kan_network_error(*args)


def _images(y: Shape, weight: Shape, order: int, base: int, groups: int) -> int:
    """Read N, C and O of images. y: (N, O, *out). weight: (C, G+k, *kernel, O / groups)."""
    return _layer((prod(y), weight[0] // groups, *weight[2:-1]), 1, weight[1], order, base, 0)


def kan_conv(
    x: Any, weight: Shape, base_weight: Any, bias: Any, grid: Any, order: int, base: int, stride: Any,
    padding: Any, dilation: Any, groups: int, last: bool, out_shape: Shape = (), **_: Any,
) -> int:  # fmt: skip
    return _images(out_shape, weight, order, base, groups)


def kan_conv_backward(
    x: Any, weight: Shape, base_weight: Any, g: Shape, grid: Any, order: int, base: int, stride: Any,
    padding: Any, dilation: Any, groups: int, last: bool, need_x: bool, need_weight: bool, **_: Any,
) -> int:  # fmt: skip
    return _images(g, weight, order, base, groups) * (need_x + need_weight)


def layer_norm_rbf(
    x: Shape, scale: Any, shift: Any, weight: Shape, base_weight: Any, bias: Any, grid: Shape, epsilon: float,
    base: int, **_: Any,
) -> int:  # fmt: skip
    return 2 * prod(x) * weight[0] * (grid[1] - 1 + bool(base))


def layer_norm_rbf_backward(
    x: Shape, scale: Any, shift: Any, weight: Shape, base_weight: Any, g: Any, grid: Shape, epsilon: float,
    base: int, need_x: bool, **_: Any,
) -> int:  # fmt: skip
    return (1 + need_x) * layer_norm_rbf(x, scale, shift, weight, base_weight, None, grid, epsilon, base)


def edge_gram(x: Shape, w: Any, grid: Any, order: int, base: int, **_: Any) -> int:
    m = order + 1 + bool(base)  # functions of a cell: their pairs, and each beside the constant 1
    return 2 * prod(x) * (m * (m + 1) // 2 + m)


def edge_gram_grad_input(x: Shape, w: Any, grid: Any, order: int, base: int, *_: Any, **__: Any) -> int:
    m = order + 1 + bool(base)
    return 2 * prod(x) * (m * m + m)


def edge_cross_gram(
    x: Shape, w: Any, grid: Any, order: int, other_grid: Any, other_order: int, **_: Any
) -> int:
    return 2 * prod(x) * (order + 1) * (other_order + 1)


def edge_moments(
    x: Shape, weight: Shape, base_weight: Any, grid: Any, order: int, base: int, *_: Any, **__: Any
) -> int:
    features, n, out = weight
    rows = n + bool(base)
    # of every edge the mean, and a quadratic form along the band, with a row and a column of the base
    form = n * (2 * order + 1) - order * (order + 1) + (2 * n + 1) * bool(base) + rows
    return edge_gram(x, None, grid, order, base) + 2 * features * out * (rows + form)


def edge_moments_backward(
    x: Shape, weight: Shape, base_weight: Any, grid: Any, order: int, base: int, correction: Any, d_mean: Any,
    d_std: Any, std: Any, spread: Any, first: Any, need_x: bool, need_weight: bool, **_: Any,
) -> int:  # fmt: skip
    features, n, out = weight
    rows = n + bool(base)
    # of mean and deviation for every coefficient; for x the cotangents of the sums
    sums = 2 * rows + n * (order + 1) - order * (order + 1) // 2 + rows * bool(base)
    edges = 2 * features * out * (need_weight * 2 * rows + need_x * sums)
    return edges + need_x * edge_gram_grad_input(x, None, grid, order, base)


def edge_l1(x: Shape, weight: Shape, base_weight: Any, grid: Any, order: int, base: int, **_: Any) -> int:
    return _layer(x, weight[2], weight[1], order, base, 0)


def edge_l1_backward(
    x: Shape, weight: Shape, base_weight: Any, g: Any, grid: Any, order: int, base: int, need_x: bool,
    need_weight: bool, **_: Any,
) -> int:  # fmt: skip
    # the sign of every edge function first
    return _layer(x, weight[2], weight[1], order, base, 0) * (1 + need_x + need_weight)


_OTHERS = (
    kan_network, kan_network_backward, kan_network_error, kan_conv, kan_conv_backward, layer_norm_rbf,
    layer_norm_rbf_backward, edge_gram, edge_gram_grad_input, edge_cross_gram, edge_moments,
    edge_moments_backward, edge_l1, edge_l1_backward,
)  # fmt: skip
_WITHOUT_FAKES = (kan_network_lbfgs,)  # it returns numbers that only a call tells
_LINEAR = {f.__name__: f for f in (
    kan_linear, kan_linear_grad_input, kan_linear_grad_weight, kan_linear_backward,
)}  # fmt: skip
# without a sum over the features the gradients cost the same
_ACTIVATION = {
    "kan_activation": kan_activation,
    **{name: _LINEAR[name.replace("activation", "linear")] for name in fakes.ACTIVATION if "grad" in name},
    "kan_activation_backward": kan_linear_backward,
}
assert _LINEAR.keys() == fakes.LINEAR.keys() and _ACTIVATION.keys() == fakes.ACTIVATION.keys()
assert {function.__name__ for function in _OTHERS} == fakes.OTHERS.keys()


def _register(counter: ModuleType) -> None:
    formulas = _LINEAR | _ACTIVATION | {f.__name__: f for f in (*_OTHERS, *_WITHOUT_FAKES)}
    for name, function in formulas.items():
        for backend in with_op(name):
            op = getattr(getattr(torch.ops, backend.NAMESPACE), name)
            if op not in counter.flop_registry:
                counter.register_flop_formula(op)(function)


def register() -> None:
    """Tell torch's counter, as soon as somebody imports it: it imports Triton."""
    after_import("torch.utils.flop_counter", _register)
