"""The four contractions on Triton kernels: allocate, choose a kernel and its tile, launch.

Every function has the signature of its namesake in `reference`. Kernels run on the current stream of x's
device; no call waits for the device, but for the first look at a grid's knots (knots.py).
"""

from math import factorial

import torch
from torch import Tensor

from . import forward_kernels, gather_kernels, gradient_kernels, tiling
from .knots import uniform_table
from .plan import UNIFORM_ORDERS, ceil_div, polynomials, steps


def tf32_allowed() -> bool:
    """torch's own setting, as matrix products obey it."""
    return torch.get_float32_matmul_precision() != "highest"


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision: what a float32 operand becomes on the matrix units."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "tf32" if tf32_allowed() else "tf32x3"


def _table(grid: Tensor, dtype: torch.dtype, order: int, derivative: int) -> Tensor | None:
    """The uniform knots' table where fixed polynomials are as good as the operand's rounding, else None."""
    if order not in UNIFORM_ORDERS or derivative >= order or dtype == torch.float64:
        return None
    if dtype == torch.float32 and precision(dtype) != "tf32":
        return None
    return uniform_table(grid, order)


def _spline(grid: Tensor, order: int, derivative: int, table: Tensor | None) -> dict:
    """The compile-time constants of a spline."""
    uniform = table is not None
    return {
        "R": grid.shape[1] - order - 1,
        "K": order,
        "M": derivative,
        "STEPS": steps(grid.shape[1]),
        "POLY": polynomials(order, derivative) if uniform else None,
        "FACTOR": 1.0 / factorial(order) if uniform else 1.0,
    }


def _case(x: Tensor, dtype: torch.dtype, width: int, grid: Tensor, order: int) -> tiling.Case:
    return tiling.Case.of(x, dtype, width, grid.shape[1] - order - 1, order)


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def forward(x, s, spline_weight, base_weight, bias, grid, spline_order, base, derivative) -> Tensor:
    """F_m. Returns (B, out) in the weights' dtype."""
    (rows, features), width = x.shape, spline_weight.shape[2]
    y = spline_weight.new_empty(rows, width)
    if y.numel() == 0:
        return y
    spline_weight, base_weight, bias, grid = map(_dense, (spline_weight, base_weight, bias, grid))
    sizes = (rows, features, width, *_strides(x), *_strides(s))
    case = _case(x, spline_weight.dtype, width, grid, spline_order)
    if tiling.gathers(case, precision(case.dtype)):
        constants = _spline(grid, spline_order, derivative, None)
        del constants["POLY"], constants["FACTOR"]
        tile = tiling.gather(case)
        blocks = ceil_div(rows, tile["BM"]) * ceil_div(width, tile["BN"])
        tiling.launch(
            gather_kernels.gather_forward, x.device, blocks,
            (x, s, spline_weight, base_weight, bias, grid, y, *sizes), {**constants, "BASE": base}, tile,
        )  # fmt: skip
        return y
    table = _table(grid, case.dtype, spline_order, derivative)
    constants = _spline(grid, spline_order, derivative, table)
    constants |= {"BASE": base, "PRECISION": precision(case.dtype)}
    tiling.launch_tuned(
        forward_kernels.dense_forward, x.device, case,
        lambda tile: ceil_div(rows, tile["BM"]) * ceil_div(width, tile["BN"]),
        (x, s, spline_weight, base_weight, bias, grid, table, y, *sizes), constants,
    )  # fmt: skip
    return y


def input(x, spline_weight, base_weight, g, grid, spline_order, base, derivative) -> Tensor:
    """X_m. Returns (B, in) in x's dtype."""
    (rows, features), width = x.shape, g.shape[1]
    t = x.new_empty(rows, features)
    if t.numel() == 0:
        return t
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    sizes = (rows, features, width, *_strides(x), *_strides(g))
    case = _case(x, spline_weight.dtype, width, grid, spline_order)
    if tiling.gathers(case, precision(case.dtype)):
        constants = _spline(grid, spline_order, derivative, None)
        del constants["POLY"], constants["FACTOR"]
        tile = tiling.gather(case)
        blocks = ceil_div(rows, tile["BM"]) * ceil_div(features, tile["BI"])
        tiling.launch(
            gather_kernels.gather_input, x.device, blocks,
            (x, spline_weight, base_weight, g, grid, t, *sizes), {**constants, "BASE": base}, tile,
        )  # fmt: skip
        return t
    table = _table(grid, case.dtype, spline_order, derivative)
    constants = _spline(grid, spline_order, derivative, table)
    constants |= {"BASE": base, "PRECISION": precision(case.dtype)}
    tiling.launch_tuned(
        gradient_kernels.dense_input, x.device, case,
        lambda tile: ceil_div(rows, tile["BM"]) * ceil_div(features, tile["BI"]),
        (x, spline_weight, base_weight, g, grid, table, t, *sizes), constants,
    )  # fmt: skip
    return t


def weight(x, s, g, grid, spline_order, base, derivative) -> tuple[Tensor, Tensor]:
    """W_m. Returns (in, G+k, out) and (in, out), or an empty (0,) tensor when base is 0, in g's dtype."""
    return _weights(x, s, None, None, g, grid, spline_order, base, derivative, None)


def backward(x, spline_weight, base_weight, g, grid, spline_order, base, derivative):
    """X_{m+1} and W_m: in one pass over x and g where one tile holds all outputs, else by a kernel each."""
    case = _case(x, g.dtype, g.shape[1], grid, spline_order)
    if tiling.one_pass(case):
        t = x.new_empty(x.shape)
        return t, *_weights(x, None, spline_weight, base_weight, g, grid, spline_order, base, derivative, t)
    return (
        input(x, spline_weight, base_weight, g, grid, spline_order, base, derivative + 1),
        *weight(x, None, g, grid, spline_order, base, derivative),
    )


def _weights(x, s, spline_weight, base_weight, g, grid, order, base, derivative, t) -> tuple[Tensor, Tensor]:
    """W_m and, in the same pass unless t is None, X_{m+1} into t, for which the weights are needed."""
    (rows, features), width = x.shape, g.shape[1]
    new = g.new_zeros if rows == 0 else g.new_empty
    d_spline = new(features, grid.shape[1] - order - 1, width)
    d_base = new(features, width) if base else new(0)
    if rows == 0 or d_spline.numel() == 0:
        return d_spline, d_base
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    case = _case(x, g.dtype, width, grid, order)
    part_rows, parts = tiling.parts(case, x.device)
    sums = (d_spline, d_base)
    if parts > 1:
        accumulate = torch.float64 if g.dtype == torch.float64 else torch.float32
        sums = tuple(g.new_empty(parts, *d.shape, dtype=accumulate) for d in sums)
    sizes = (rows, features, width, part_rows, *_strides(x), *_strides(s), *_strides(g))
    run = _gathered_weights if tiling.sums_rows(case) else _dense_weights
    run(case, x, s, spline_weight, base_weight, g, grid, t, *sums, sizes, parts, order, base, derivative)
    if parts > 1:
        for part, total in zip(sums, (d_spline, d_base), strict=True):
            if total.numel():
                tiling.sum_parts(gradient_kernels.sum_parts, part, total)
    return d_spline, d_base


def _gathered_weights(
    case, x, s, spline, base_weight, g, grid, t, d_spline, d_base, sizes, parts, order, base, m
):
    constants = _spline(grid, order, m, None)
    del constants["POLY"], constants["FACTOR"]
    tile = tiling.row_sums(case)
    blocks = ceil_div(case.basis_rows, tile["BR"]) * ceil_div(case.width, tile["BN"]) * case.features * parts
    tiling.launch(
        gather_kernels.gather_backward, x.device, blocks,
        (x, s, spline, base_weight, g, grid, t, d_spline, d_base, *sizes),
        {**constants, "BASE": base, "ONE_PASS": t is not None}, tile,
    )  # fmt: skip


def _dense_weights(
    case, x, s, spline, base_weight, g, grid, t, d_spline, d_base, sizes, parts, order, base, m
):
    one_pass = t is not None
    table = _table(grid, case.dtype, order, m + 1 if one_pass else m)
    constants = _spline(grid, order, m, table)
    constants |= {"BASE": base, "PRECISION": precision(case.dtype), "ONE_PASS": one_pass}
    constants["POLY_X"] = polynomials(order, m + 1) if one_pass and table is not None else None

    def blocks(tile: dict) -> int:
        rows = ceil_div(case.basis_rows, tile["RG"])
        return ceil_div(case.features, tile["BI"]) * rows * ceil_div(case.width, tile["BN"]) * parts

    tiling.launch_tuned(
        gradient_kernels.dense_backward, x.device, case, blocks,
        (x, s, spline, base_weight, g, grid, table, t, d_spline, *sizes), constants,
    )  # fmt: skip
    if base:
        tiling.launch_tuned(
            gradient_kernels.base_gradient, x.device, case,
            lambda tile: ceil_div(case.features, tile["BI"]) * ceil_div(case.width, tile["BN"]) * parts,
            (x, s, g, d_base, *sizes), {"M": m, "BASE": base, "PRECISION": constants["PRECISION"]},
        )  # fmt: skip
