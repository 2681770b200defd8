"""What the sums over the rows ask of their arguments, and the forms in which they use them."""

import torch
from torch import Tensor

from .._core import checks


def layer_rows(x, spline_weight, grid, base_weight, spline_order, base, least: int) -> Tensor:
    """x as (B, in) with at least `least` rows, once all arguments are known to be good."""
    checks.layer(x, spline_weight, grid, base_weight, None, spline_order, base)
    checks.knots(grid)
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] < least:
        raise ValueError(f"x: got {rows.shape[0]} rows, shape {tuple(x.shape)}, expected at least {least}")
    return rows


def double_knots(name: str, grid: Tensor, order: int, x: Tensor) -> Tensor:
    """The knots of the argument of that name in float64, once they are known to fit x."""
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


def row_weight(w: Tensor, x: Tensor) -> Tensor:
    """The weights as (B, in)."""
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
