"""The kernel of the contraction F_m on matrix units: y = sum_i s (spline + base) + bias.

The plain version is `reference.forward`.
"""

import triton
import triton.language as tl

from .basis import base_activation, window
from .full_support import IS_LOCAL, first_state, next_rows
from .place import place, tile_pairs
from .table_kernel import verdict
from .tiles import load_base, load_coefficients, load_rows, lost_rows, narrow, poison, product, scale_all


@triton.jit
def dense_forward(
    x, side, spline, base_weight, bias, grid, table, y,
    B, I, O, x_row, x_column, side_row, side_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr,
    POLY: tl.constexpr, FACTOR: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, PRECISION: tl.constexpr, RG: tl.constexpr, EVEN_I: tl.constexpr, EVEN_O: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute a tile [BM rows, BN outputs]: the basis is made in registers, as the left operand.

    The spline takes BI inputs and RG of their rows a step, then the base takes BK inputs a step.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    dtype: tl.constexpr = spline.dtype.element_ty
    PAIRS: tl.constexpr = dtype != tl.float32
    SHORT: tl.constexpr = dtype != tl.float32 or PRECISION == "tf32"
    NG: tl.constexpr = (R + RG - 1) // RG
    tiles = tl.cdiv(O, BN)
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * BM + tl.arange(0, BM)
    n = (pid % tiles) * BN + tl.arange(0, BN)
    m = tl.minimum(row, B - 1)  # rows past the end repeat the last one and are not stored
    acc = tl.zeros((BM, BN), tl.float32)
    if table is not None:
        acc += verdict(table, I, 256)
    if M <= K or not LOCAL:
        lost = tl.zeros((BM, BI), tl.float32)
        tile_i, tile_r = tile_pairs(BI, RG, PAIRS)
        coefficients = spline + (tile_i * R + tile_r).to(tl.int64)[:, None] * O + n[None, :]
        wide = tl.full((), 1, tl.int64) * R * O
        for i0 in range(0, I, BI):
            i = i0 + tl.arange(0, BI)
            xs = load_rows(x, m, i, x_row, x_column, I, EVEN_I)
            at = i if EVEN_I else tl.minimum(i, I - 1)
            if LOCAL:
                quad, two, odd, values = window(xs, at, grid, table, I, K, M, POLY, R + K, STEPS)
            else:
                last, before = first_state(xs, at, grid, R, M, BASIS)
            sides = None
            if side is not None:
                sides = load_rows(side, m, i, side_row, side_column, I, EVEN_I)
                if LOCAL:
                    values = scale_all(values, sides)
                lost += poison(xs, sides)
            elif BASE == 0:
                lost += poison(xs, None)
            step = coefficients + wide * i0
            if NG <= 4:  # unrolled: one loop to pipeline
                for group in tl.static_range(NG):
                    if LOCAL:
                        a = place(quad, two, odd, values, group, dtype, BM, BI, RG, PAIRS)
                    else:
                        a, last, before = next_rows(
                            xs, sides, at, group, last, before, grid, dtype, R, M, BASIS, BM, BI, RG, PAIRS
                        )
                    b = load_coefficients(step, group, tile_i + i0, tile_r, n, I, O, R, RG, EVEN_I, EVEN_O)
                    acc = product(a, b, acc, PRECISION)
            else:
                for group in range(NG):
                    if LOCAL:
                        a = place(quad, two, odd, values, group, dtype, BM, BI, RG, PAIRS)
                    else:
                        a, last, before = next_rows(
                            xs, sides, at, group, last, before, grid, dtype, R, M, BASIS, BM, BI, RG, PAIRS
                        )
                    b = load_coefficients(step, group, tile_i + i0, tile_r, n, I, O, R, RG, EVEN_I, EVEN_O)
                    acc = product(a, b, acc, PRECISION)
        acc = acc * FACTOR
        if side is not None or BASE == 0:
            acc += tl.sum(lost, 1)[:, None]
    elif BASE == 0:
        acc += lost_rows(x, side, m, I, x_row, x_column, side_row, side_column, BM, BK)[:, None]
    if BASE != 0:
        k = tl.arange(0, BK)
        for i0 in range(0, I, BK):
            xs = load_rows(x, m, i0 + k, x_row, x_column, I, EVEN_I)
            a = base_activation(xs, BASE, M, SHORT)
            if not EVEN_I:
                a = tl.where((i0 + k < I)[None, :], a, 0.0)
            if side is not None:
                a *= load_rows(side, m, i0 + k, side_row, side_column, I, EVEN_I)
            at = base_weight + (i0 + k.to(tl.int64))[:, None] * O + n[None, :]
            b = load_base(at, i0 + k, n, I, O, EVEN_I, EVEN_O)
            acc = product(narrow(a, dtype), b, acc, PRECISION, True)
    if bias is not None:
        acc += tl.load(bias + n, mask=n < O, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + row[:, None] * O + n[None, :], narrow(acc, dtype), mask=(row < B)[:, None] & (n < O)[None, :]
    )
