"""The stateless API of a layer: validate, apply the precision policy, pick a backend, call autograd."""

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import with_formulas
from .._engine.layer import call
from ..backends import reference


def kan_linear(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    bias: Tensor | None = None,
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply a layer of learnable univariate functions phi[i,o], one on every edge from input i to output o.

    y[..., o] = sum_i phi[i,o](x[..., i]) + bias[o], where
    phi[i,o](x) = base_weight[i,o] base(x) + sum_r spline_weight[i,r,o] B_r(x)  (arXiv 2404.19756, sec. 2.2)

    Args:
        x: (..., in), also nested. The weights' dtype, or float32 beside 16-bit weights: cells are located in
            float32.
        spline_weight: (in, G+k, out), float32, float64, bfloat16 or float16.
        grid: (in, G+2k+1) finite, non-decreasing knots, k extension knots on each side, in the weights' dtype
            or float32. No gradient flows to it.
        spline_order: k, 0 to 10.
        base_weight: (in, out), present exactly if there is a base.
        base: "silu", "identity" or None.
        bias: (out,).
        derivative: m > 0 evaluates phi^(m) in place of phi, without the bias; up to 32. Autograd does not
            need it: it differentiates phi to any order by itself.
        backend: "native", "triton" or "reference"; None leaves the choice to `use_backend` and `dispatch`.

    Returns:
        (..., out) in the weights' dtype; under autocast, in autocast's, with x left in float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, knot or name, or a base without its weight or the reverse.
        RuntimeError: the backend asked for cannot run this case.

    Example:
        >>> weight, grid = torch.ones(2, 3, 1), torch.linspace(-2, 2, 5).repeat(2, 1)  # G = 2, k = 1
        >>> kan_linear(torch.zeros(4, 2), weight, grid, spline_order=1, base=None).shape
        torch.Size([4, 1])
    """
    if type(spline_order) is not int or type(derivative) is not int:
        spline_order, derivative = checks.spline_order(spline_order), checks.derivative(derivative)
    return call(x, spline_weight, grid, base_weight, bias, spline_order, base, derivative, backend)


def basis_linear(
    x: Tensor,
    weight: Tensor,
    grid: Tensor | None = None,
    *,
    basis: str,
    base_weight: Tensor | None = None,
    base: str | None = None,
    bias: Tensor | None = None,
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply `kan_linear` on a basis of full support: every function reaches over the whole line.

    y[..., o] = sum_i ( base_weight[i,o] base(x[..., i]) + sum_r weight[i,r,o] B_r(x[..., i]) ) + bias[o];
    the functions B_r of a basis, and its grid:

    BASES

    Args:
        x: (..., in), also nested. The weights' dtype, or float32 beside 16-bit weights.
        weight: (in, R, out), float32, float64, bfloat16 or float16.
        grid: of the basis, in the weights' dtype or float32, without gradient; None where it has none.
        basis: the name of one of them.
        base_weight: (in, out), present exactly if there is a base.
        base: "silu", "identity" or None.
        bias: (out,).
        derivative: m > 0 evaluates the m-th derivative of every function, without the bias; up to 32.
        backend: as for `kan_linear`.

    Returns:
        (..., out) in the weights' dtype; under autocast, in autocast's, with x left in float32.

    Raises:
        TypeError, ValueError, RuntimeError: as for `kan_linear`.

    Example:
        >>> basis_linear(torch.tensor([[0.5]]), torch.eye(3)[None], basis="chebyshev")  # T_0, T_1, T_2
        tensor([[ 1.0000,  0.5000, -0.5000]])
    """
    if type(derivative) is not int:
        derivative = checks.derivative(derivative)
    record = checks.full_support(basis)
    return call(x, weight, grid, base_weight, bias, 0, base, derivative, backend, record)


basis_linear.__doc__ = with_formulas(basis_linear.__doc__ or "")


def bspline_basis(x: Tensor, grid: Tensor, spline_order: int, derivative: int = 0) -> Tensor:
    """Evaluate the m-th derivative of every B-spline at x, dense: for reading, testing and plotting.

    Args:
        x: (..., in), float32, float64, bfloat16 or float16; 16 bits are computed in float32.
        grid: (in, G+2k+1) finite, non-decreasing knots, in x's dtype or float32.
        spline_order: k, 0 to 10.
        derivative: m, 0 to 32.

    Returns:
        (..., in, G+k) in x's dtype, differentiable with respect to x to any order.

    Raises:
        TypeError, ValueError: as for `kan_linear`.

    Example:
        >>> bspline_basis(torch.tensor([[0.25]]), torch.linspace(-2, 2, 5)[None], 1)
        tensor([[[0.0000, 0.7500, 0.2500]]])
    """
    spline_order, derivative = checks.spline_order(spline_order), checks.derivative(derivative)
    checks.grid_shape(grid, spline_order)
    checks.rows(x, grid.shape[0])
    checks.grid_like(grid, x)
    checks.knots(grid)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return reference.bspline_basis(x.to(dtype), grid.to(dtype), spline_order, derivative).to(x.dtype)
