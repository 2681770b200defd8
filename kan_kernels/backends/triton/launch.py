"""The four contractions on Triton kernels: allocate, choose a kernel and its tile, launch.

Every function has the signature of its namesake in `reference`. Kernels run on the current stream of x's
device; no call waits for the device, but for the first look at a grid's knots (knots.py).
"""

from math import factorial

import torch
from torch import Tensor

from ..._core.bases import BY_CODE
from ..._core.fakes import functions_together
from . import forward_kernels, gather_kernels, gradient_kernels, table_kernel, tiling
from .blocking import UNIFORM_ORDERS, ceil_div, polynomials, steps
from .knots import TOLERANCE, are_uniform


def tf32_allowed() -> bool:
    """Return torch's own setting, as its GEMMs obey it."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def precision(dtype: torch.dtype) -> str:
    """Return tl.dot's input_precision: what a float32 operand becomes on the matrix units."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "tf32" if tf32_allowed() else "tf32x3"


def _uniform(case: tiling.Case, grid: Tensor, derivative: int, placed: int | None = None) -> bool:
    """Return whether fixed polynomials of uniform knots are as good as the operand's rounding.

    placed: the order of the derivative whose values become 16-bit operands, if any do.
    """
    order, dtype = case.order, case.dtype
    if not case.local or order not in UNIFORM_ORDERS or derivative >= order or dtype == torch.float64:
        return False
    if dtype == torch.float32 and precision(dtype) != "tf32":
        return False
    if dtype == torch.float16 and placed:  # scaled by (1 / cell)^placed, they may leave its range
        return False
    return are_uniform(grid)


def _table(grid: Tensor, order: int, uniform: bool) -> Tensor | None:
    """Return (3, in) float32, see table_kernel.py; a fresh tensor, so that captured graphs own theirs."""
    if not uniform:
        return None
    features, knots = grid.shape
    table = grid.new_empty(3, features)
    constants = {"K": order, "LAST": knots - 1, "TOLERANCE": 2 * TOLERANCE}
    tile = {"BI": 32, "BK": 32, "num_warps": 4, "num_stages": 1}
    blocks = ceil_div(features, tile["BI"])
    tiling.launch(table_kernel.uniform_table, grid.device, blocks, (grid, table, features), constants, tile)
    return table


def _constants(case: tiling.Case, derivative: int, base: int) -> dict:
    """Return the compile-time constants of every kernel."""
    return {
        "R": case.basis_rows,
        "K": case.order,
        "M": derivative,
        "STEPS": steps(case.basis_rows + case.order + 1),
        "BASIS": case.basis,
        "BASE": base,
    }


def _dense_constants(case: tiling.Case, derivative: int, base: int, uniform: bool) -> dict:
    """Return those of dense kernels: fixed polynomials on uniform knots, what the matrix units multiply."""
    return _constants(case, derivative, base) | {
        "POLY": polynomials(case.order, derivative) if uniform else None,
        "FACTOR": 1.0 / factorial(case.order) if uniform else 1.0,
        "PRECISION": precision(case.dtype),
    }


def _case(
    x: Tensor, dtype: torch.dtype, width: int, functions: int, order: int, basis: int, placed: int = 0
) -> tiling.Case:
    """Return the case. placed: the order of the derivative whose values become matrix operands, if any do."""
    # T_r'' = r^2 (r^2 - 1) / 3 at 1, and 2 / h^2, may leave the range of float16
    fits = BY_CODE[basis].local or not placed or dtype != torch.float16
    return tiling.Case.of(x, dtype, width, functions, order, basis, fits)


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def kan_linear(
    x, row_scale, spline_weight, base_weight, bias, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return F_m: (B, out) in the weights' dtype."""
    (rows, features), width = x.shape, spline_weight.shape[2]
    y = spline_weight.new_empty(rows, width)
    if y.numel() == 0:
        return y
    case = _case(x, spline_weight.dtype, width, functions, order, basis, derivative)
    gathers = tiling.gathers(case, precision(case.dtype))
    uniform = not gathers and _uniform(case, grid, derivative, derivative)
    spline_weight, base_weight, bias, grid = map(_dense, (spline_weight, base_weight, bias, grid))
    sizes = (rows, features, width, *_strides(x), *_strides(row_scale))
    if gathers:
        constants = _constants(case, derivative, base)
        tile = tiling.gather(case)
        blocks = ceil_div(rows, tile["BM"]) * ceil_div(width, tile["BN"])
        tiling.launch(
            gather_kernels.gather_forward, x.device, blocks,
            (x, row_scale, spline_weight, base_weight, bias, grid, y, *sizes), constants, tile,
        )  # fmt: skip
        return y
    table = _table(grid, order, uniform)
    constants = _dense_constants(case, derivative, base, uniform)
    tiling.launch_tuned(
        forward_kernels.dense_forward, x.device, case,
        lambda tile: ceil_div(rows, tile["BM"]) * ceil_div(width, tile["BN"]),
        (x, row_scale, spline_weight, base_weight, bias, grid, table, y, *sizes), constants,
    )  # fmt: skip
    return y


def kan_linear_grad_input(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return X_m: (B, in) in x's dtype."""
    (rows, features), width = x.shape, g.shape[1]
    t = x.new_empty(rows, features)
    if t.numel() == 0:
        return t
    case = _case(x, spline_weight.dtype, width, functions, order, basis)
    gathers = tiling.gathers(case, precision(case.dtype))
    uniform = not gathers and _uniform(case, grid, derivative)
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    sizes = (rows, features, width, *_strides(x), *_strides(g))
    if gathers:
        constants = _constants(case, derivative, base)
        tile = tiling.gather(case)
        blocks = ceil_div(rows, tile["BM"]) * ceil_div(features, tile["BI"])
        tiling.launch(
            gather_kernels.gather_input, x.device, blocks,
            (x, spline_weight, base_weight, g, grid, t, *sizes), constants, tile,
        )  # fmt: skip
        return t
    table = _table(grid, order, uniform)
    constants = _dense_constants(case, derivative, base, uniform)
    tiling.launch_tuned(
        gradient_kernels.dense_input, x.device, case,
        lambda tile: ceil_div(rows, tile["BM"]) * ceil_div(features, tile["BI"]),
        (x, spline_weight, base_weight, g, grid, table, t, *sizes), constants,
    )  # fmt: skip
    return t


def kan_linear_grad_weight(
    x, row_scale, g, grid, functions, order, base, derivative, basis, like=None
) -> tuple[Tensor, Tensor]:
    """Return W_m: (in, R, out) and (in, out), or an empty (0,) tensor when base is 0, in g's dtype."""
    case = _case(x, g.dtype, g.shape[1], functions, order, basis, derivative)
    d_spline, d_base = _weights(case, x, row_scale, None, None, g, grid, base, derivative, None)
    return _laid_out(d_spline, None if case.local else like), d_base


def kan_linear_backward(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X_{m+1} and W_m: in one pass where one tile holds all outputs, else by a kernel each."""
    case = _case(x, g.dtype, g.shape[1], functions, order, basis, derivative)
    if tiling.one_pass(case) and case.width:
        t = x.new_empty(x.shape)
        d_spline, d_base = _weights(case, x, None, spline_weight, base_weight, g, grid, base, derivative, t)
        return t, _laid_out(d_spline, None if case.local else spline_weight), d_base
    return (
        kan_linear_grad_input(
            x, spline_weight, base_weight, g, grid, functions, order, base, derivative + 1, basis
        ),
        *kan_linear_grad_weight(x, None, g, grid, functions, order, base, derivative, basis, spline_weight),
    )


def _laid_out(d_spline: Tensor, like: Tensor | None) -> Tensor:
    """Lay the gradient out as weights that keep an edge's functions together, as the ops promise it."""
    if like is None or not functions_together(like):
        return d_spline
    return d_spline.new_empty_strided(d_spline.shape, like.stride()).copy_(d_spline)


def _weights(
    case: tiling.Case, x, row_scale, spline_weight, base_weight, g, grid, base, derivative, t
) -> tuple[Tensor, Tensor]:
    """Compute W_m and, in the same pass unless t is None, X_{m+1} into t, which needs the weights."""
    rows, features, width = case.rows, case.features, case.width
    new = g.new_zeros if rows == 0 else g.new_empty
    d_spline = new(features, case.basis_rows, width)
    d_base = new(features, width) if base else new(0)
    if rows == 0 or d_spline.numel() == 0:
        return d_spline, d_base
    gathers = tiling.sums_rows(case)
    uniform = not gathers and _uniform(case, grid, derivative + (t is not None), derivative)
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    part_rows, parts = tiling.parts(case, x.device, precision(case.dtype))
    sums = (d_spline, d_base)
    if parts > 1:
        accumulate = torch.float64 if g.dtype == torch.float64 else torch.float32
        sums = tuple(g.new_empty(parts, *d.shape, dtype=accumulate) for d in sums)
    sizes = (rows, features, width, part_rows, *_strides(x), *_strides(row_scale), *_strides(g))
    operands = (x, row_scale, spline_weight, base_weight, g, grid, t)
    if gathers:
        _gathered_weights(case, operands, sums, sizes, parts, base, derivative)
    else:
        _dense_weights(case, operands, sums, sizes, parts, base, derivative, uniform)
    if parts > 1:
        for part, total in zip(sums, (d_spline, d_base), strict=True):
            if total.numel():
                tiling.sum_parts(gradient_kernels.sum_parts, part, total)
    return d_spline, d_base


def _gathered_weights(case, operands, sums, sizes, parts, base, m) -> None:
    *_, grid, t = operands
    constants = _constants(case, m, base) | {"ONE_PASS": t is not None}
    tile = tiling.row_sums(case)
    blocks = ceil_div(case.basis_rows, tile["BR"]) * ceil_div(case.width, tile["BN"]) * case.features * parts
    arguments = (*operands, *sums, *sizes)
    tiling.launch(gather_kernels.gather_backward, grid.device, blocks, arguments, constants, tile)


def _dense_weights(case, operands, sums, sizes, parts, base, m, uniform) -> None:
    x, row_scale, spline, base_weight, g, grid, t = operands
    one_pass = t is not None
    table = _table(grid, case.order, uniform)
    constants = _dense_constants(case, m, base, uniform) | {
        "ONE_PASS": one_pass,
        "POLY_X": polynomials(case.order, m + 1) if one_pass and uniform else None,
    }

    def blocks(tile: dict) -> int:
        rows = ceil_div(case.basis_rows, tile["RG"])
        return ceil_div(case.features, tile["BI"]) * rows * ceil_div(case.width, tile["BN"]) * parts

    tiling.launch_tuned(
        gradient_kernels.dense_backward, x.device, case, blocks,
        (x, row_scale, spline, base_weight, g, grid, table, t, sums[0], *sizes), constants,
    )  # fmt: skip
    if base:
        tiling.launch_tuned(
            gradient_kernels.base_gradient, x.device, case,
            lambda tile: ceil_div(case.features, tile["BI"]) * ceil_div(case.width, tile["BN"]) * parts,
            (x, row_scale, g, sums[1], *sizes), {"M": m, "BASE": base, "PRECISION": constants["PRECISION"]},
        )  # fmt: skip
