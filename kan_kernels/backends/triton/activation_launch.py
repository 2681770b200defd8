"""The four contractions of kan_activation on Triton kernels, as launch.py has those of a layer."""

from math import factorial

import torch
from torch import Tensor

from . import activation_kernels, cell_polynomials, gradient_kernels, tiling
from .blocking import ceil_div, centred, polynomials, power_of_two, split
from .candidates import INPUTS
from .launch import _case, _constants, _dense, _strides, _table, _uniform, precision

LOOKED_UP = 3  # the order up to which a cell's polynomials are loaded: 16 bytes
HEADS = 4  # of a tile
ROWS = 32  # basis rows times heads of a tile of gradients, up to which both come from one pass


def _lookup(case: tiling.Case, derivative: int, spline_weight: Tensor, grid: Tensor, uniform: bool):
    """Return (places, pairs) of `polynomial_table`; None where nothing is looked up there.

    places: (in, R+k+2, 2) int64, two float32 numbers each; pairs: (in, R+k+2, heads, 1 or 2) int64, the same.
    """
    if not _looked_up(case) or derivative > case.order:
        return None, None
    features, cells, heads = case.features, case.basis_rows + case.order + 2, case.width
    width = 2 if case.order - derivative > 1 else 1
    places = None if uniform else grid.new_empty(features, cells, 2, dtype=torch.int64)
    pairs = grid.new_empty(features, cells, heads, width, dtype=torch.int64)
    constants = {
        "R": case.basis_rows, "K": case.order, "M": derivative,
        "CENTRED": centred(case.order - derivative) if uniform else None,
    }  # fmt: skip
    tile = {"BLOCK": 128, "num_warps": 4, "num_stages": 1}
    words = [None if t is None else t.view(torch.float32) for t in (places, pairs)]
    blocks = ceil_div(features * cells, tile["BLOCK"])
    arguments = (spline_weight, grid, *words, features * cells, heads)
    tiling.launch(cell_polynomials.polynomial_table, grid.device, blocks, arguments, constants, tile)
    return places, pairs


def _looked_up(case: tiling.Case) -> bool:
    return case.local and case.dtype != torch.float64 and case.order <= LOOKED_UP


def _tile(case: tiling.Case) -> dict:
    """Return the tile of kernels without sums over rows: 16 bytes of x a thread at least, where registers
    allow.
    """
    columns = min(64 if case.half else 32, max(4, power_of_two(case.features)))
    if case.dtype == torch.float64:
        elements = 256
    elif _looked_up(case) or not case.local:
        elements = 4096 if case.half and case.width == 1 else 2048
    else:  # a window of values and its knots for each
        elements = 512
    rows = min(elements // columns, max(1, power_of_two(case.rows)))
    heads = min(HEADS, case.width)
    even, warps = case.features % columns == 0, 8 if case.half and elements > 512 else 4
    return {"BM": rows, "BI": columns, "BH": heads, "EVEN_I": even, "num_warps": warps, "num_stages": 1}


def _elementwise(case: tiling.Case, derivative: int, base: int) -> dict:
    return _constants(case, derivative, base) | {"SHORT": case.half, "H": case.width}


def _functions(case: tiling.Case, derivative: int, spline_weight, base_weight, grid) -> tuple:
    """Return what kernels without sums over rows read of a layer: weights, knots, and the tables of both."""
    uniform = case.half and _uniform(case, grid, derivative)
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    table = _table(grid, case.order, uniform)
    return spline_weight, base_weight, grid, table, *_lookup(case, derivative, spline_weight, grid, uniform)


def kan_activation(
    x, row_scale, spline_weight, base_weight, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return F_m: (B, in, heads) in the weights' dtype, in memory (B, heads, in)."""
    (rows, features), heads = x.shape, spline_weight.shape[2]
    v = spline_weight.new_empty(rows, heads, features)
    if v.numel() == 0:
        return v.transpose(1, 2)
    case = _case(x, spline_weight.dtype, heads, functions, order, basis)
    spline_weight, base_weight, *tables = _functions(case, derivative, spline_weight, base_weight, grid)
    tile = _tile(case)
    blocks = ceil_div(rows, tile["BM"]) * ceil_div(heads, tile["BH"]) * ceil_div(features, tile["BI"])
    tiling.launch(
        activation_kernels.activation_forward, x.device, blocks,
        (x, row_scale, spline_weight, base_weight, *tables, v,
         rows, features, *_strides(x), *_strides(row_scale)),
        _elementwise(case, derivative, base), tile,
    )  # fmt: skip
    return v.transpose(1, 2)


def kan_activation_grad_input(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> Tensor:
    """Return X_m: (B, in) in x's dtype."""
    (rows, features), heads = x.shape, g.shape[2]
    t = x.new_empty(rows, features) if heads else x.new_zeros(rows, features)
    if t.numel() == 0 or not heads:
        return t
    case = _case(x, spline_weight.dtype, heads, functions, order, basis)
    spline_weight, base_weight, *tables = _functions(case, derivative, spline_weight, base_weight, grid)
    tile = _tile(case)
    blocks = ceil_div(rows, tile["BM"]) * ceil_div(features, tile["BI"])
    tiling.launch(
        activation_kernels.activation_input, x.device, blocks,
        (x, spline_weight, base_weight, g, *tables, t,
         rows, features, *_strides(x), *g.stride()),
        _elementwise(case, derivative, base), tile,
    )  # fmt: skip
    return t


def kan_activation_grad_weight(
    x, row_scale, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor]:
    """Return W_m: (in, R, heads) and (in, heads), or an empty (0,) tensor when base is 0, in g's dtype."""
    case = _case(x, g.dtype, g.shape[2], functions, order, basis, derivative)
    return _weights(case, x, row_scale, None, None, g, grid, base, derivative, None)


def kan_activation_backward(
    x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X_{m+1} and W_m: in one pass for few heads and basis rows, else by a kernel each."""
    case = _case(x, g.dtype, g.shape[2], functions, order, basis, derivative)
    if 0 < case.width <= HEADS and _group(case) >= case.basis_rows and _group(case) * case.width <= ROWS:
        t = x.new_empty(x.shape)
        return t, *_weights(case, x, None, spline_weight, base_weight, g, grid, base, derivative, t)
    numbers = functions, order, base
    return (
        kan_activation_grad_input(x, spline_weight, base_weight, g, grid, *numbers, derivative + 1, basis),
        *kan_activation_grad_weight(x, None, g, grid, *numbers, derivative, basis),
    )


def _group(case: tiling.Case) -> int:
    """Return how many basis rows of a feature a tile of gradients holds at a time."""
    return min(16, max(4, power_of_two(case.basis_rows)))


def _gradient_tile(case: tiling.Case, products: bool) -> dict:
    group, heads = _group(case), min(HEADS, max(1, case.width))
    if group * heads > ROWS:
        heads = max(1, ROWS // group)
    if products:
        exact = not case.half and case.order > LOOKED_UP  # windows of values fill the registers
        rows, columns = 32 if exact or case.device == "cpu" else 64, INPUTS
    else:
        rows, columns = 16, 4
    return {
        "RG": group, "BM": rows, "BI": columns, "BH": heads, "EVEN_I": case.features % columns == 0,
        "num_warps": 4 if case.half and heads < 3 else 8, "num_stages": 1,
    }  # fmt: skip


def _weights(case: tiling.Case, x, row_scale, spline_weight, base_weight, g, grid, base, derivative, t):
    """Compute W_m and, in the same pass unless t is None, X_{m+1} into t, which needs the weights."""
    rows, features, heads, order = case.rows, case.features, case.width, case.order
    new = g.new_zeros if rows == 0 else g.new_empty
    d_spline = new(features, case.basis_rows, heads)
    d_base = new(features, heads) if base else new(0)
    if rows == 0 or d_spline.numel() == 0:
        return d_spline, d_base
    products = case.dtype != torch.float64 and case.fits
    uniform = products and case.half and _uniform(case, grid, derivative + (t is not None), derivative)
    spline_weight, base_weight, grid = map(_dense, (spline_weight, base_weight, grid))
    table = _table(grid, order, uniform)
    places = pairs = None
    if t is not None:
        places, pairs = _lookup(case, derivative + 1, spline_weight, grid, uniform)
    tile = _gradient_tile(case, products)
    blocks = (
        ceil_div(features, tile["BI"]) * ceil_div(case.basis_rows, tile["RG"]) * ceil_div(heads, tile["BH"])
    )
    per_feature = (case.basis_rows + 1) * heads
    allowed, at_once = rows * (1 + heads) // per_feature, 2 * tiling.processors(x.device)
    part_rows, parts = split(rows, blocks, allowed, 256, at_once)
    sums = (d_spline, d_base)
    if parts > 1:
        accumulate = torch.float64 if g.dtype == torch.float64 else torch.float32
        sums = tuple(g.new_empty(parts, *d.shape, dtype=accumulate) for d in sums)
    constants = _elementwise(case, derivative, base) | {
        "POLY": polynomials(order, derivative) if uniform else None,
        "FACTOR": 1.0 / factorial(order) if uniform else 1.0,
        "PRECISION": precision(case.dtype) if products else None,
        "ONE_PASS": t is not None,
    }
    tiling.launch(
        activation_kernels.activation_backward, x.device, blocks * parts,
        (x, row_scale, spline_weight, base_weight, g, grid, table, places, pairs, t, *sums,
         rows, features, part_rows, *_strides(x), *_strides(row_scale), *g.stride()),
        constants, tile,
    )  # fmt: skip
    if parts > 1:
        for part, total in zip(sums, (d_spline, d_base), strict=True):
            if total.numel():
                tiling.sum_parts(gradient_kernels.sum_parts, part, total)
    return d_spline, d_base
