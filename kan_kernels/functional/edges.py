"""The stateless API of edges: sums over the rows, the Gram matrix of the basis, and the mean of |phi|."""

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import BASE_CODES, MAX_SPLINE_ORDER
from .._engine.edges_autograd import EdgeL1, Gram, Moments, cross_gram


def basis_gram(
    x: Tensor,
    grid: Tensor,
    spline_order: int,
    *,
    other_grid: Tensor | None = None,
    other_order: int | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Sum products of two B-splines of one input over the rows.

    Args:
        x: (..., in), any floating dtype: B rows.
        grid: (in, G+2k+1) finite, non-decreasing knots, in x's dtype, float32 or float64.
        spline_order: k, 0 to 10.
        other_grid: (in, G'+2k'+1), the knots of the second factor; None pairs the basis with itself.
        other_order: k' of the second factor; None means k.
        row_weight: w, (...) or (..., in) like x; None means 1. No gradient flows to it.

    Returns:
        In float64, with n = G+k. Without other_grid the band of the symmetric matrix, (in, n, k+1):
        K[i,r,d] = sum_b w B_r(x) B_{r+d}(x), 0 where r+d >= n; differentiable with respect to x, to any
        order. With other_grid (in, n, G'+k'): K[i,r,q] = sum_b w B_r(x) B'_q(x), without gradient.
        NaN in a column of x makes that feature's sums NaN.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> basis_gram(torch.tensor([[0.0], [0.0]]), torch.linspace(-2, 2, 5)[None], 1)[0, 1]
        tensor([2., 0.], dtype=torch.float64)
    """
    spline_order = checks.spline_order(spline_order)
    checks.tensor("x", x)
    grid = _double_knots("grid", grid, spline_order, x)
    rows = x.reshape(-1, x.shape[-1])
    w = None if row_weight is None else _row_weight(row_weight, x)
    if other_grid is None:
        if other_order is not None:
            raise ValueError(f"other_order: got {other_order!r} without other_grid, expected both or neither")
        band: Tensor = Gram.run(rows, w, grid, spline_order, 0)[0]
        return band
    other_order = spline_order if other_order is None else other_order
    other_order = checks.integer("other_order", other_order, 0, MAX_SPLINE_ORDER)
    other_grid = _double_knots("other_grid", other_grid, other_order, x)
    return cross_gram(rows, w, grid, spline_order, other_grid, other_order)


def edge_moments(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    correction: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the rows of every edge function phi[i,o](x[..., i]).

    Args:
        x, spline_weight, grid, spline_order, base_weight, base: as for `kan_linear`.
        correction: the variance is divided by B - correction, as torch.std does.

    Returns:
        mean and std, each (in, out), float64 for float64 weights and else float32; differentiable with
        respect to x and the weights, to any order. The sums are float64; a deviation below 1e-7 of the terms
        that make up an edge function cannot be told from rounding and is 0, with gradient 0.

    Raises:
        TypeError, ValueError: as for `kan_linear`; or x has no more than `correction` rows.

    Example:
        >>> x, grid = torch.tensor([[-0.5], [0.5]]), torch.linspace(-2, 2, 5)[None]
        >>> weight = torch.tensor([[[-1.0], [0.0], [1.0]]])  # phi(x) = x
        >>> edge_moments(x, weight, grid, spline_order=1, base=None, correction=0)
        (tensor([[0.]]), tensor([[0.5000]]))
    """
    correction = checks.integer("correction", correction, 0)
    rows = _layer_rows(x, spline_weight, grid, base_weight, spline_order, base, correction + 1)
    given = (rows, spline_weight, base_weight, grid.double(), spline_order, BASE_CODES[base], correction)
    mean, std, *_ = Moments.run(*given)
    dtype = compute_dtype(spline_weight)
    return mean.to(dtype), std.to(dtype)


def edge_l1(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
) -> Tensor:
    """Return the L1 norm of every edge function, mean_b |phi[i,o](x[b,i])|  (arXiv 2404.19756, eq. 2.17).

    Args:
        x, spline_weight, grid, spline_order, base_weight, base: as for `kan_linear`.

    Returns:
        (in, out), float64 for float64 weights and else float32; differentiable with respect to x and the
        weights, to any order, with the derivative of |phi| taken as 0 where phi is 0. O(B in out k) work in
        float32 or float64, 16-bit tensors being widened first; O(in out) memory beside x and the weights.

    Raises:
        TypeError, ValueError: as for `kan_linear`; or x has no rows.

    Example:
        >>> x, grid = torch.tensor([[-0.5], [0.5]]), torch.linspace(-2, 2, 5)[None]
        >>> weight = torch.tensor([[[-1.0], [0.0], [1.0]]])  # phi(x) = x
        >>> edge_l1(x, weight, grid, spline_order=1, base=None)
        tensor([[0.5000]])
    """
    rows = _layer_rows(x, spline_weight, grid, base_weight, spline_order, base, 1)
    dtype = compute_dtype(spline_weight)
    if base_weight is not None:
        base_weight = base_weight.to(dtype)
    given = (rows.to(dtype), spline_weight.to(dtype), base_weight, grid.to(dtype), spline_order)
    norm: Tensor = EdgeL1.run(*given, BASE_CODES[base])
    return norm


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return what sums of weights of this dtype are computed in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _layer_rows(x, spline_weight, grid, base_weight, spline_order, base, least: int) -> Tensor:
    """Return x as (B, in) with at least `least` rows, once all arguments are known to be good."""
    checks.layer(x, spline_weight, grid, base_weight, None, spline_order, base)
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] < least:
        raise ValueError(f"x: got {rows.shape[0]} rows, shape {tuple(x.shape)}, expected at least {least}")
    return rows


def _double_knots(name: str, grid: Tensor, order: int, x: Tensor) -> Tensor:
    """Return the knots of the argument of that name in float64, once they are known to fit x."""
    try:
        checks.grid_shape(grid, order)
        checks.knots(grid)
        checks.rows(x, grid.shape[0])
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("grid:", f"{name}:", 1)) from None
    if grid.device != x.device:
        raise ValueError(f"{name}: is on {grid.device}, expected {x.device} like x")
    if grid.dtype not in (torch.float32, torch.float64, x.dtype):
        raise TypeError(f"{name}: got {grid.dtype}, expected float32, float64 or {x.dtype} like x")
    return grid.double()


def _row_weight(w: Tensor, x: Tensor) -> Tensor:
    """Return the weights as (B, in)."""
    checks.tensor("row_weight", w)
    if w.requires_grad:
        raise ValueError(
            "row_weight: requires grad, but there is no gradient for it; pass row_weight.detach()"
        )
    if w.device != x.device:
        raise ValueError(f"row_weight: is on {w.device}, expected {x.device} like x")
    if w.shape == x.shape:
        return w.reshape(-1, x.shape[-1])
    if w.shape != x.shape[:-1]:
        raise ValueError(
            f"row_weight: got shape {tuple(w.shape)}, expected {tuple(x.shape[:-1])} or {tuple(x.shape)}"
        )
    return w.reshape(-1, 1).expand(-1, x.shape[-1])
