"""The KAN layer in plain torch: the oracle of every test, the path of ONNX. Other bases: reference_*.py.

Readable beside the paper (arXiv 2404.19756, section 2.2) and de Boor, "A Practical Guide to Splines", IX-X.
Everything here is differentiable by plain autograd, to any order, in reverse and in forward mode.
Nothing is fused: the dense basis (B, in, R) is materialised.
"""

import math

import torch
from torch import Tensor

from ..._core.bases import BASE_CODES, BASIS_CODES
from .chebyshev import chebyshev_basis
from .fourier import fourier_basis
from .rbf import rbf_basis

NAME = "reference"
NAMESPACE = None  # plain functions, no ops
DIFFERENTIABLE = True  # plain autograd differentiates these functions; no autograd.Function is needed


def can_run(case) -> str | None:
    """None, always: any device, any floating dtype, any order."""
    return None


def why(case) -> str:
    """What speaks for this backend where it is the first that can run."""
    return "plain torch runs everywhere"


def bspline_basis(x: Tensor, grid: Tensor, spline_order: int, derivative: int = 0) -> Tensor:
    """The m-th derivative of every B-spline at x, by the Cox-de Boor recursion.

    Args:
        x: (..., in), the dtype to compute in (float32 or float64).
        grid: (in, G+2k+1) non-decreasing knots of the same dtype.
        spline_order: k >= 0.
        derivative: m >= 0.

    Returns:
        (..., in, G+k) in x's dtype. Cells are half-open [t_c, t_c+1), the last knot belongs to none, 0/0 = 0,
        the spline is zero outside the grid and at +-inf, and NaN gives NaN even where m > k.
    """
    if derivative > spline_order:
        basis = x.new_zeros(*x.shape, grid.shape[1] - spline_order - 1)
    else:
        # B^(m) of order k is a combination of the plain bases of order k-m.
        basis = _cox_de_boor(x, grid, spline_order - derivative)
        for p in range(spline_order - derivative + 1, spline_order + 1):
            scaled = basis * _inverse_span(grid, p)
            basis = p * (scaled[..., :-1] - scaled[..., 1:])
    # exp is NaN at NaN together with all its derivatives, so gradients of any order see the NaN too.
    is_nan = torch.isnan(x)
    nan = torch.exp(torch.where(is_nan, x, 0.0))
    return torch.where(is_nan.unsqueeze(-1), nan.unsqueeze(-1), basis)


def _cox_de_boor(x: Tensor, grid: Tensor, order: int) -> Tensor:
    """All B-splines of one order on `grid`: (..., in, knots - order - 1). x at NaN or +-inf gives 0."""
    x = x.unsqueeze(-1)
    basis = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
    x = torch.where(torch.isfinite(x), x, 0.0)  # keeps inf * 0 out of the products and of their gradients
    for p in range(1, order + 1):
        inverse = _inverse_span(grid, p)
        rising = (x - grid[:, : -p - 1]) * inverse[:, :-1]
        falling = (grid[:, p + 1 :] - x) * inverse[:, 1:]
        basis = rising * basis[..., :-1] + falling * basis[..., 1:]
    return basis


def _inverse_span(grid: Tensor, p: int) -> Tensor:
    """1 / (t[j+p] - t[j]) for every j, and 0 where the span is empty: the 0/0 = 0 of the recursion."""
    span = grid[:, p:] - grid[:, :-p]
    empty = span == 0
    return torch.where(empty, 0.0, 1.0 / torch.where(empty, 1.0, span))


def base_activation(x: Tensor, base: int, derivative: int = 0) -> Tensor:
    """The m-th derivative of the base activation, like x: silu^(m) = x sigma^(m) + m sigma^(m-1)."""
    if base == BASE_CODES["identity"]:
        if derivative == 0:
            return x
        return torch.where(torch.isnan(x), x, 1.0 if derivative == 1 else 0.0)
    if derivative == 0:
        return x * torch.sigmoid(x)  # F.silu has no forward-over-reverse derivative in torch
    sigma = _sigmoid_derivatives(x, derivative)
    return x * sigma[derivative] + derivative * sigma[derivative - 1]


def _sigmoid_derivatives(x: Tensor, order: int) -> list[Tensor]:
    """[sigma, sigma', ..., sigma^(order)] at x.

    Leibniz's rule on sigma' = sigma (1 - sigma) gives each from those before. Writing the factor of sigma^(n)
    as (1 - sigma) - sigma = -tanh(x/2) keeps full relative accuracy in both tails.
    """
    sigma = torch.sigmoid(x)
    u = [sigma, sigma * torch.sigmoid(-x)]
    tilt = -torch.tanh(0.5 * x)
    for n in range(1, order):
        u.append(tilt * u[n] - sum(math.comb(n, i) * u[i] * u[n - i] for i in range(1, n)))
    return u


def basis_values(x: Tensor, grid: Tensor, spline_order: int, derivative: int, basis: int = 0) -> Tensor:
    """The m-th derivative of every function of a basis at x (..., in), by its code: (..., in, R)."""
    if basis == BASIS_CODES["rbf"]:
        return rbf_basis(x, grid, derivative)
    if basis == BASIS_CODES["chebyshev"]:
        return chebyshev_basis(x, spline_order, derivative)
    if basis == BASIS_CODES["fourier"]:
        return fourier_basis(x, spline_order, derivative)
    return bspline_basis(x, grid, spline_order, derivative)


def _compute(x: Tensor, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """Operands in the dtype to compute in: the widest among them, and at least float32."""
    dtype = torch.float32
    for operand in (x, *operands):
        if operand is not None and operand.dtype == torch.float64:
            dtype = torch.float64
    return tuple(None if operand is None else operand.to(dtype) for operand in (x, *operands))


def forward(x, s, spline_weight, base_weight, bias, grid, spline_order, base, derivative, basis=0) -> Tensor:
    """y[b,o] = sum_i s[b,i] (base_weight[i,o] base^(m)(x) + sum_r spline_weight[i,r,o] B_r^(m)(x)) + bias[o].

    x, s: (B, in), s None means 1. spline_weight: (in, R, out), R = G+k for B-splines. base_weight: (in, out).
    bias: (out,). Returns (B, out) in the weights' dtype.
    """
    dtype = spline_weight.dtype
    x, s, spline_weight, base_weight, bias, grid = _compute(x, s, spline_weight, base_weight, bias, grid)
    values = basis_values(x, grid, spline_order, derivative, basis)
    if s is not None:
        values = values * s.unsqueeze(-1)
    y = values.flatten(1) @ spline_weight.flatten(0, 1)
    if base:
        row = base_activation(x, base, derivative)
        y = y + (row if s is None else s * row) @ base_weight
    if bias is not None:
        y = y + bias
    return y.to(dtype)


def input(x, spline_weight, base_weight, g, grid, spline_order, base, derivative, basis=0) -> Tensor:
    """t[b,i] = sum_o g[b,o] (base_weight[i,o] base^(m)(x) + sum_r spline_weight[i,r,o] B_r^(m)(x)).

    g: (B, out). Returns (B, in) in x's dtype.
    """
    dtype = x.dtype
    x, spline_weight, base_weight, g, grid = _compute(x, spline_weight, base_weight, g, grid)
    values = basis_values(x, grid, spline_order, derivative, basis)
    t = ((g @ spline_weight.flatten(0, 1).t()).view_as(values) * values).sum(-1)
    if base:
        t = t + (g @ base_weight.t()) * base_activation(x, base, derivative)
    return t.to(dtype)


def weight(x, s, g, grid, spline_order, base, derivative, basis=0, like=None) -> tuple[Tensor, Tensor]:
    """(sum_b s g[b,o] B_r^(m)(x[b,i]), sum_b s g[b,o] base^(m)(x[b,i])).

    `like`, weights whose layout in memory the result may take, is not looked at.
    Returns (in, R, out) and (in, out), or an empty (0,) tensor when base is 0, in g's dtype.
    """
    dtype = g.dtype
    x, s, g, grid = _compute(x, s, g, grid)
    values = basis_values(x, grid, spline_order, derivative, basis)
    if s is not None:
        values = values * s.unsqueeze(-1)
    spline = (values.flatten(1).t() @ g).view(*values.shape[1:], g.shape[1])
    if not base:
        return spline.to(dtype), g.new_empty(0, dtype=dtype)
    row = base_activation(x, base, derivative)
    return spline.to(dtype), ((row if s is None else s * row).t() @ g).to(dtype)


def backward(x, spline_weight, base_weight, g, grid, spline_order, base, derivative, basis=0):
    """(input at order m+1, *weight at order m): all that first-order training asks for."""
    return (
        input(x, spline_weight, base_weight, g, grid, spline_order, base, derivative + 1, basis),
        *weight(x, None, g, grid, spline_order, base, derivative, basis),
    )
