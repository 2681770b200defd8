"""A function for every feature and head in plain torch: the oracle of the fused kernels.

Differentiable by plain autograd, to any order. The dense basis (B, in, R) is materialised.
"""

from torch import Tensor

from .linear import _compute, base_activation, basis_values


def kan_activation(
    x, row_scale, spline_weight, base_weight, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return the values of all functions.

    v[b,i,h] = s[b,i] (base_weight[i,h] base^(m)(x[b,i]) + sum_r spline_weight[i,r,h] B_r^(m)(x[b,i]))

    x and s, the row scale: (B, in), None means 1. spline_weight: (in, R, heads). base_weight: (in, heads).
    Returns (B, in, heads) in the weights' dtype.
    """
    dtype = spline_weight.dtype
    x, row_scale, spline_weight, base_weight, grid = _compute(x, row_scale, spline_weight, base_weight, grid)
    values = basis_values(x, grid, functions, order, derivative, basis)
    v = (values.transpose(0, 1) @ spline_weight).transpose(0, 1)
    if base:
        v = v + base_activation(x, base, derivative).unsqueeze(-1) * base_weight
    if row_scale is not None:
        v = row_scale.unsqueeze(-1) * v
    return v.to(dtype)


def kan_activation_grad_input(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return t[b,i] = sum_h g[b,i,h] phi[i,h]^(m)(x[b,i]).

    g: (B, in, heads). Returns (B, in) in x's dtype.
    """
    dtype = x.dtype
    x, spline_weight, base_weight, g, grid = _compute(x, spline_weight, base_weight, g, grid)
    values = basis_values(x, grid, functions, order, derivative, basis)
    of_functions = (g.transpose(0, 1) @ spline_weight.transpose(1, 2)).transpose(0, 1)
    t = (of_functions * values).sum(-1)
    if base:
        t = t + (g * base_weight).sum(-1) * base_activation(x, base, derivative)
    return t.to(dtype)


def kan_activation_grad_weight(
    x, row_scale, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor]:
    """Return (sum_b s g[b,i,h] B_r^(m)(x[b,i]), sum_b s g[b,i,h] base^(m)(x[b,i])).

    Returns (in, R, heads) and (in, heads), or an empty (0,) tensor when base is 0, in g's dtype.
    """
    dtype = g.dtype
    x, row_scale, g, grid = _compute(x, row_scale, g, grid)
    values = basis_values(x, grid, functions, order, derivative, basis)
    if row_scale is not None:
        values = values * row_scale.unsqueeze(-1)
    spline = values.permute(1, 2, 0) @ g.transpose(0, 1)
    if not base:
        return spline.to(dtype), g.new_empty(0, dtype=dtype)
    row = base_activation(x, base, derivative)
    row = row if row_scale is None else row_scale * row
    return spline.to(dtype), (row.unsqueeze(-1) * g).sum(0).to(dtype)


def kan_activation_backward(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad_input at order m+1, *grad_weight at order m): all that first-order training asks for."""
    tail = (grid, functions, order, base)
    return (
        kan_activation_grad_input(x, spline_weight, base_weight, g, *tail, derivative + 1, basis),
        *kan_activation_grad_weight(x, None, g, *tail, derivative, basis),
    )
