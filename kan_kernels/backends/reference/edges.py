"""Sums over the rows in plain torch: for devices without compiled kernels, and the oracle of their tests.

Everything is differentiable by plain autograd, to any order. Rows are taken in chunks, so that without
autograd no (B, in, n) or (B, in, out) tensor exists.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..._core import checks
from .bspline import bspline_basis
from .linear import base_activation

_CHUNK = 2**20  # elements of the largest tensor of one chunk


def edge_gram(x, w, grid, order, base) -> tuple[Tensor, Tensor]:
    """Return the sums of products of two functions of one input, as the op `edge_gram`.

    The functions f are the n splines, the constant 1 and, where there is one, the base activation.

    x: (B, in), any dtype. w: (B, in) or None, which means 1. grid: (in, G+2k+1) float64. base: its code.

    Returns, in float64:
        band (in, n, k+1): sum_b w B_r B_{r+d}, 0 past the last spline.
        border (in, 1 or 2, n+1 or n+2): sum_b w f_c, then sum_b w base f_c.
    """
    checks.knots(grid)
    n = grid.shape[1] - order - 1

    def functions(x, i):
        columns = [bspline_basis(x, grid[i], order), torch.ones_like(x).unsqueeze(-1)]
        if base:
            columns.append(base_activation(x, base).unsqueeze(-1))
        return torch.cat(columns, -1)

    first = torch.arange(n, device=x.device).unsqueeze(1)
    second = first + torch.arange(order + 1, device=x.device)
    bands, borders = [], []
    for product in _products(x, w, functions, functions, n + 2, n + 2):
        band = product[:, first, second.clamp_max(n - 1)]
        bands.append(torch.where(second < n, band, 0.0))
        borders.append(product[:, n:])
    return torch.cat(bands), torch.cat(borders)


def edge_gram_grad_input(x, w, grid, order, base, d_band, d_border) -> Tensor:
    """Return the gradient of <d_band, band> + <d_border, border> with respect to x: (B, in) float64."""
    results = []
    for rows in _row_slices(x.shape[0], x.shape[1] * (grid.shape[1] + 2)):
        part = x[rows].detach().double().requires_grad_()
        with torch.enable_grad():
            outputs = edge_gram(part, None if w is None else w[rows], grid, order, base)
        results += torch.autograd.grad(outputs, part, (d_band, d_border))
    return torch.cat(results)


def edge_cross_gram(x, w, grid, order, other_grid, other_order) -> Tensor:
    """Return sum_b w B_r(x) B'_q(x) of splines on two grids, as `edge_gram`: (in, n, n') float64."""
    checks.knots(grid)
    checks.knots(other_grid)
    n, other_n = grid.shape[1] - order - 1, other_grid.shape[1] - other_order - 1
    products = _products(
        x,
        w,
        lambda x, i: bspline_basis(x, grid[i], order),
        lambda x, i: bspline_basis(x, other_grid[i], other_order),
        n,
        other_n,
    )
    return torch.cat(list(products))


def edge_l1(x, spline_weight, base_weight, grid, order, base) -> Tensor:
    """Return mean_b |phi[i,o](x[b,i])|: (in, out). All tensors float32, or all float64."""
    checks.knots(grid)
    total = torch.zeros(x.shape[1], spline_weight.shape[2], dtype=torch.float64, device=x.device)
    for rows in _row_slices(x.shape[0], x.shape[1] * max(spline_weight.shape[1:])):
        part = x[rows]
        basis = bspline_basis(part, grid, order)
        phi = torch.bmm(basis.transpose(0, 1), spline_weight)  # (in, rows, out)
        if base:
            phi = phi + base_activation(part, base).t().unsqueeze(2) * base_weight.unsqueeze(1)
        total = total + phi.abs().sum(1, dtype=torch.float64)
    return (total / x.shape[0]).to(x.dtype)


def edge_l1_backward(x, spline_weight, base_weight, g, grid, order, base, need_x, need_weight):
    """Return the gradients of <g, edge_l1>: of x, spline_weight and base_weight, each empty if not needed."""
    weights = [spline_weight, base_weight] if base else [spline_weight]
    weights = [weight.detach().requires_grad_(need_weight) for weight in weights]
    sums = [torch.zeros_like(weight) for weight in weights]
    dx = []
    for rows in _row_slices(x.shape[0], x.shape[1] * max(spline_weight.shape[1:])):
        part = x[rows].detach().requires_grad_(need_x)
        with torch.enable_grad():
            mean = edge_l1(part, weights[0], weights[-1] if base else None, grid, order, base)
        wanted = ([part] if need_x else []) + (weights if need_weight else [])
        grads = list(torch.autograd.grad(mean, wanted, g * (part.shape[0] / x.shape[0])))
        if need_x:
            dx.append(grads.pop(0))
        if need_weight:  # not in place: gradients may be batched
            sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
    empty = x.new_empty(0)
    return (
        torch.cat(dx) if need_x else empty,
        sums[0] if need_weight else empty,
        sums[1] if need_weight and base else empty,
    )


def _products(
    x: Tensor, w: Tensor | None, left: Callable, right: Callable, n_left: int, n_right: int
) -> Iterator[Tensor]:
    """Return sum_b w left_r(x) right_q(x), (features, n_left, n_right) float64, for one slice of features at
    another.

    left, right: (values (rows, features), slice of features) -> (rows, features, n).
    """
    for i in _row_slices(x.shape[1], n_left * n_right):
        columns, weights = x[:, i].double(), None if w is None else w[:, i].double()
        total: Tensor | None = None
        for rows in _row_slices(x.shape[0], columns.shape[1] * max(n_left, n_right)):
            factor = left(columns[rows], i)
            if weights is not None:
                factor = factor * weights[rows].unsqueeze(-1)
            part = torch.bmm(factor.permute(1, 2, 0), right(columns[rows], i).transpose(0, 1))
            total = part if total is None else total + part
        assert total is not None
        yield total


def _row_slices(rows: int, row_size: int) -> Iterator[slice]:
    """Return slices of the rows, of `_CHUNK` elements or so each; one empty slice if there are no rows."""
    step = max(1, _CHUNK // max(1, row_size))
    for start in range(0, max(1, rows), step):
        yield slice(start, start + step)
