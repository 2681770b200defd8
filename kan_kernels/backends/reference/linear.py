"""The KAN layer in plain torch: the oracle of every test, the path of ONNX.

Everything here is differentiable by plain autograd, to any order, in reverse and in forward mode.
Nothing is fused: the dense basis (B, in, R) is materialised.
"""

import math
from importlib import import_module

import torch
from torch import Tensor

from ..._core import checks
from ..._core.bases import BASE_CODES, BY_CODE

_VALUES = tuple(import_module(f"{__package__}.{basis.name}").values for basis in BY_CODE)


def base_activation(x: Tensor, base: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of the base activation, like x: silu^(m) = x sigma^(m) + m sigma^(m-1)."""
    if base == BASE_CODES["identity"]:
        if derivative == 0:
            return x
        return torch.where(torch.isnan(x), x, 1.0 if derivative == 1 else 0.0)
    if derivative == 0:
        return x * torch.sigmoid(x)  # F.silu has no forward-over-reverse derivative in torch
    sigma = _sigmoid_derivatives(x, derivative)
    return x * sigma[derivative] + derivative * sigma[derivative - 1]


def _sigmoid_derivatives(x: Tensor, order: int) -> list[Tensor]:
    """Return [sigma, sigma', ..., sigma^(order)] at x.

    Leibniz's rule on sigma' = sigma (1 - sigma) gives each from those before. Writing the factor of sigma^(n)
    as (1 - sigma) - sigma = -tanh(x/2) keeps full relative accuracy in both tails.
    """
    sigma = torch.sigmoid(x)
    u = [sigma, sigma * torch.sigmoid(-x)]
    tilt = -torch.tanh(0.5 * x)
    for n in range(1, order):
        u.append(tilt * u[n] - sum(math.comb(n, i) * u[i] * u[n - i] for i in range(1, n)))
    return u


def basis_values(
    x: Tensor, grid: Tensor, functions: int, order: int, derivative: int, basis: int = 0
) -> Tensor:
    """Return the m-th derivative of every function of a basis at x (..., in), by its code: (..., in, R)."""
    checks.grid_values(grid, BY_CODE[basis])
    found: Tensor = _VALUES[basis](x, grid, functions, order, derivative)
    return found


def _compute(x: Tensor, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return operands in the dtype to compute in: the widest among them, and at least float32."""
    dtype = torch.float32
    for operand in (x, *operands):
        if operand is not None and operand.dtype == torch.float64:
            dtype = torch.float64
    return tuple(None if operand is None else operand.to(dtype) for operand in (x, *operands))


def kan_linear(
    x, row_scale, spline_weight, base_weight, bias, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return the outputs of a layer.

    y[b,o] = sum_i s[b,i] (base_weight[i,o] base^(m)(x) + sum_r spline_weight[i,r,o] B_r^(m)(x)) + bias[o]

    x and s, the row scale: (B, in), None means 1. spline_weight: (in, R, out), R = G+k for B-splines.
    base_weight: (in, out). bias: (out,). Returns (B, out) in the weights' dtype.
    """
    dtype = spline_weight.dtype
    x, row_scale, spline_weight, base_weight, bias, grid = _compute(
        x, row_scale, spline_weight, base_weight, bias, grid
    )
    values = basis_values(x, grid, functions, order, derivative, basis)
    if row_scale is not None:
        values = values * row_scale.unsqueeze(-1)
    y = values.flatten(1) @ spline_weight.flatten(0, 1)
    if base:
        row = base_activation(x, base, derivative)
        y = y + (row if row_scale is None else row_scale * row) @ base_weight
    if bias is not None:
        y = y + bias
    return y.to(dtype)


def kan_linear_grad_input(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return t[b,i] = sum_o g[b,o] (base_weight[i,o] base^(m)(x) + sum_r spline_weight[i,r,o] B_r^(m)(x)).

    g: (B, out). Returns (B, in) in x's dtype.
    """
    dtype = x.dtype
    x, spline_weight, base_weight, g, grid = _compute(x, spline_weight, base_weight, g, grid)
    values = basis_values(x, grid, functions, order, derivative, basis)
    t = ((g @ spline_weight.flatten(0, 1).t()).view_as(values) * values).sum(-1)
    if base:
        t = t + (g @ base_weight.t()) * base_activation(x, base, derivative)
    return t.to(dtype)


def kan_linear_grad_weight(
    x, row_scale, g, grid, functions, order, base, derivative, basis, like=None
) -> tuple[Tensor, Tensor]:
    """Return (sum_b row_scale g[b,o] B_r^(m)(x[b,i]), sum_b row_scale g[b,o] base^(m)(x[b,i])).

    `like`, weights whose layout in memory the result may take, is not looked at.
    Returns (in, R, out) and (in, out), or an empty (0,) tensor when base is 0, in g's dtype.
    """
    dtype = g.dtype
    x, row_scale, g, grid = _compute(x, row_scale, g, grid)
    values = basis_values(x, grid, functions, order, derivative, basis)
    if row_scale is not None:
        values = values * row_scale.unsqueeze(-1)
    spline = (values.flatten(1).t() @ g).view(*values.shape[1:], g.shape[1])
    if not base:
        return spline.to(dtype), g.new_empty(0, dtype=dtype)
    row = base_activation(x, base, derivative)
    return spline.to(dtype), ((row if row_scale is None else row_scale * row).t() @ g).to(dtype)


def kan_linear_backward(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad_input at order m+1, *grad_weight at order m): all that first-order training asks for."""
    tail = (grid, functions, order, base)
    return (
        kan_linear_grad_input(x, spline_weight, base_weight, g, *tail, derivative + 1, basis),
        *kan_linear_grad_weight(x, None, g, *tail, derivative, basis),
    )
