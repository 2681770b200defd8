"""B-splines in plain torch, by the recursion of Cox and de Boor.

Readable beside the paper (arXiv 2404.19756, section 2.2) and de Boor, "A Practical Guide to Splines", IX-X.
"""

import torch
from torch import Tensor


def values(x: Tensor, grid: Tensor, functions: int, order: int, derivative: int = 0) -> Tensor:
    """Return `bspline_basis`: the functions of every basis are found under this name and these arguments."""
    return bspline_basis(x, grid, order, derivative)


def bspline_basis(x: Tensor, grid: Tensor, spline_order: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of every B-spline at x, by the Cox-de Boor recursion.

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
    """Return all B-splines of one order on `grid`: (..., in, knots - order - 1). 0 at NaN, +-inf."""
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
    """Return 1 / (t[j+p] - t[j]) for every j, and 0 where the span is empty: the 0/0 = 0 of the recursion."""
    span = grid[:, p:] - grid[:, :-p]
    empty = span == 0
    return torch.where(empty, 0.0, 1.0 / torch.where(empty, 1.0, span))
