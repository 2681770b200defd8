"""The shapes that every op returns, for torch.compile and torch.export; by the op's name."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .bases import BY_CODE
from .products import by_layer

Tensors = tuple[Tensor, ...]


def functions_together(weight: Tensor) -> bool:
    """Return whether weights (in, R, out) lie as (out, in, R) or (in, out, R); as in csrc/ops/checks.h."""
    if weight.dim() != 3:
        return False
    features, functions, out = weight.shape
    if weight.element_size() < 4 or weight.is_contiguous():
        return False
    places = (functions, 1, features * functions), (out * functions, 1, functions)
    return weight.stride() in places


def kan_linear(x: Tensor, row_scale: Tensor | None, spline_weight: Tensor, *_: Any) -> Tensor:
    # a stack of networks has one more dimension in front, but for what they share
    return spline_weight.new_empty(*spline_weight.shape[:-3], x.shape[-2], spline_weight.shape[-1])


def kan_linear_grad_input(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, g: Tensor, *_: Any
) -> Tensor:
    return x.new_empty(*g.shape[:-2], *x.shape[-2:])


def kan_linear_grad_weight(
    x: Tensor, row_scale: Tensor | None, g: Tensor, grid: Tensor, functions: int, order: int, base: int,
    derivative: int, basis: int, like: Tensor | None = None,
) -> Tensors:  # fmt: skip
    shape = (*g.shape[:-2], x.shape[-1], functions, g.shape[-1])
    d_base = g.new_empty((*g.shape[:-2], x.shape[-1], g.shape[-1]) if base else (*g.shape[:-2], 0))
    if g.dim() == 2 and not BY_CODE[basis].local and like is not None and functions_together(like):
        return g.new_empty_strided(shape, like.stride()), d_base
    return g.new_empty(shape), d_base


def kan_linear_backward(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, g: Tensor, grid: Tensor, functions: int,
    order: int, base: int, derivative: int, basis: int,
) -> Tensors:  # fmt: skip
    numbers = functions, order, base, derivative, basis
    dx = x.new_empty(*g.shape[:-2], *x.shape[-2:])
    return dx, *kan_linear_grad_weight(x, None, g, grid, *numbers, spline_weight)


def kan_activation(x: Tensor, row_scale: Tensor | None, spline_weight: Tensor, *_: Any) -> Tensor:
    batch, features = x.shape
    return spline_weight.new_empty(batch, spline_weight.shape[2], features).transpose(1, 2)


def kan_activation_grad_input(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def kan_activation_grad_weight(
    x: Tensor, row_scale: Tensor | None, g: Tensor, grid: Tensor, functions: int, order: int, base: int,
    *_: Any,
) -> Tensors:  # fmt: skip
    features, heads = g.shape[1:]
    return g.new_empty(features, functions, heads), g.new_empty((features, heads) if base else (0,))


def kan_activation_backward(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, g: Tensor, grid: Tensor, functions: int,
    order: int, base: int, *_: Any,
) -> Tensors:  # fmt: skip
    return x.new_empty(x.shape), *kan_activation_grad_weight(x, None, g, grid, functions, order, base)


def edge_gram(x: Tensor, w: Tensor | None, grid: Tensor, order: int, base: int) -> Tensors:
    n, rows = grid.shape[1] - order - 1, 1 + bool(base)
    return grid.new_empty(x.shape[1], n, order + 1), grid.new_empty(x.shape[1], rows, n + rows)


def edge_gram_grad_input(x: Tensor, w: Tensor | None, grid: Tensor, *_: Any) -> Tensor:
    return grid.new_empty(x.shape)


def edge_cross_gram(
    x: Tensor, w: Tensor | None, grid: Tensor, order: int, other_grid: Tensor, other_order: int
) -> Tensor:
    n, other_n = grid.shape[1] - order - 1, other_grid.shape[1] - other_order - 1
    return grid.new_empty(x.shape[1], n, other_n)


def edge_moments(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, grid: Tensor, *_: Any
) -> Tensors:
    features, functions, out = spline_weight.shape
    rows = functions + (base_weight is not None)
    edges = features, out
    return tuple(map(grid.new_empty, (edges, edges, (features, rows, out), (features, 1, rows))))


def edge_moments_backward(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, grid: Tensor, order: int, base: int,
    correction: int, d_mean: Tensor | None, d_std: Tensor | None, std: Tensor, spread: Tensor, first: Tensor,
    need_x: bool, need_weight: bool,
) -> Tensors:  # fmt: skip
    return (
        grid.new_empty(x.shape if need_x else (0,)),
        spline_weight.new_empty(spline_weight.shape if need_weight else (0,)),
        spline_weight.new_empty(std.shape if need_weight and base else (0,)),
    )


def edge_l1(x: Tensor, spline_weight: Tensor, *_: Any) -> Tensor:
    return spline_weight.new_empty(x.shape[1], spline_weight.shape[2])


def edge_l1_backward(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, g: Tensor, grid: Tensor, order: int,
    base: int, need_x: bool, need_weight: bool,
) -> Tensors:  # fmt: skip
    return (
        x.new_empty(x.shape if need_x else (0,)),
        g.new_empty(spline_weight.shape if need_weight else (0,)),
        g.new_empty(g.shape if need_weight and base else (0,)),
    )


def layer_norm_rbf(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, spline_weight: Tensor, *_: Any
) -> Tensor:
    return x.new_empty(x.shape[0], spline_weight.shape[0])


def layer_norm_rbf_backward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, spline_weight: Tensor, base_weight: Tensor | None,
    g: Tensor, grid: Tensor, epsilon: float, base: int, need_x: bool,
) -> Tensors:  # fmt: skip
    features, out = x.shape[1], spline_weight.shape[0]
    shapes = (features,), (features,), spline_weight.shape, (out, features) if base else (0,), (out,)
    return x.new_empty(x.shape if need_x else (0,)), *(x.new_empty(shape) for shape in shapes)


def kan_conv(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, bias: Tensor | None, grid: Tensor,
    order: int, base: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, last: bool,
) -> Tensor:  # fmt: skip
    out = [
        (size + sum(padding[2 * d : 2 * d + 2]) - (taps - 1) * dilation[d] - 1) // stride[d] + 1
        for d, (size, taps) in enumerate(zip(x.shape[2:], spline_weight.shape[2:-1], strict=True))
    ]
    return _images(spline_weight, x.shape[0], spline_weight.shape[-1] * groups, out, last)


def kan_conv_backward(
    x: Tensor, spline_weight: Tensor, base_weight: Tensor | None, g: Tensor, grid: Tensor, order: int,
    base: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    last: bool, need_x: bool, need_weight: bool,
) -> Tensors:  # fmt: skip
    dx = _images(x, x.shape[0], x.shape[1], x.shape[2:], last) if need_x else x.new_empty(0)
    base_shape = base_weight.shape if need_weight and base and base_weight is not None else (0,)
    return dx, g.new_empty(spline_weight.shape if need_weight else (0,)), g.new_empty(base_shape)


def kan_network(
    x: Tensor, tensors: Sequence[Tensor], layers: int, order: int, base: int, products: Sequence[int]
) -> Tensors:
    groups = by_layer(products, layers)
    between = sum(weight.shape[0] for weight in tensors[1:layers])
    between += sum(sums + sum(arities) for sums, arities in groups if arities)
    sums, arities = groups[-1]
    nodes = sums + len(arities) if arities else tensors[layers - 1].shape[2]
    first = tensors[0]
    return x.new_empty(x.shape[0], nodes, dtype=first.dtype), first.new_empty(x.shape[0] * between)


def kan_network_backward(
    x: Tensor, hidden: Tensor, tensors: Sequence[Tensor], layers: int, g: Tensor, order: int, base: int,
    need_x: bool, need_weight: bool, products: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    dx = x.new_empty(x.shape if need_x else (0,))
    return [dx, *(t.new_empty(t.shape) for t in tensors[: len(tensors) - layers] if need_weight)]


def kan_network_error(x: Tensor, target: Tensor, tensors: Sequence[Tensor], layers: int, *_: Any) -> Tensors:
    first = tensors[0]
    error, penalty = first.new_empty(()), first.new_empty(())
    return error, penalty, first.new_empty(sum(t.numel() for t in tensors[:-layers]))


def _images(like: Tensor, batch: int, channels: int, size: Sequence[int], last: bool) -> Tensor:
    if last:
        return like.new_empty((batch, *size, channels)).movedim(-1, 1)
    return like.new_empty((batch, channels, *size))


_Fakes = dict[str, Callable[..., Any]]
LINEAR: _Fakes = {
    f.__name__: f for f in (kan_linear, kan_linear_grad_input, kan_linear_grad_weight, kan_linear_backward)
}
"""Of the ops that every fused backend has."""

ACTIVATION: _Fakes = {f.__name__: f for f in (
    kan_activation, kan_activation_grad_input, kan_activation_grad_weight, kan_activation_backward,
)}  # fmt: skip
"""Of the same four of a layer without a sum over its features."""

TENSORS = {
    **dict(zip(LINEAR, (6, 5, 4, 5), strict=True)),
    **dict(zip(ACTIVATION, (5, 5, 4, 5), strict=True)),
}
"""How many tensors stand before the numbers of their schemas."""

OTHERS: _Fakes = {f.__name__: f for f in (
    edge_gram, edge_gram_grad_input, edge_cross_gram, edge_moments, edge_moments_backward, edge_l1,
    edge_l1_backward, kan_conv, kan_conv_backward,
    layer_norm_rbf, layer_norm_rbf_backward, kan_network, kan_network_backward, kan_network_error,
)}  # fmt: skip
"""Of the ops that the library alone has."""
