"""The contractions row by row: for long grids, narrow layers and float64. The plain versions are those of
`reference`.

`gather_forward` and `gather_input` fetch the k+1 coefficient rows of each (row, input). `gather_backward`
keeps the sums of one input's coefficients in registers, and computes X_{m+1} in the same pass where one tile
holds all of them. float64 throughout if the coefficients are, else float32.
"""

import triton
import triton.language as tl

from .basis import base_activation, exact_cell
from .full_support import IS_LOCAL, first_state, next_row, rows_at
from .tiles import load_part, load_rows, narrow, poison, scale_all


@triton.jit
def gather_forward(
    x, side, spline, base_weight, bias, grid, y,
    B, I, O, x_row, x_column, side_row, side_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Compute a tile [BM rows, BN outputs], BI inputs a step; float64 if C is, else float32."""
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    compute: tl.constexpr = tl.float64 if spline.dtype.element_ty == tl.float64 else tl.float32
    tiles = tl.cdiv(O, BN)
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * BM + tl.arange(0, BM)
    n = (pid % tiles) * BN + tl.arange(0, BN)
    m = tl.minimum(row, B - 1)
    acc = tl.zeros((BM, BN), compute)
    for i0 in range(0, I, BI):
        i = i0 + tl.arange(0, BI)
        here = (i < I)[None, :]
        at = tl.minimum(i, I - 1).to(tl.int64)
        xs = load_rows(x, m, i, x_row, x_column, I, False).to(compute)
        sides = None
        if side is not None:
            sides = load_rows(side, m, i, side_row, side_column, I, False).to(compute)
        if BASE == 0 or side is not None:
            acc += tl.sum(poison(xs, sides), 1)[:, None]
        if not LOCAL:
            last, before = first_state(xs, at, grid, R, M, BASIS)
            mask = (i < I)[:, None] & (n < O)[None, :]
            for r in range(R):
                value, last, before = next_row(xs, at, r, last, before, grid, R, M, BASIS)
                if side is not None:
                    value *= sides
                c = tl.load(spline + ((at * R + r) * O)[:, None] + n[None, :], mask=mask, other=0.0)
                acc += tl.sum(value[:, :, None] * c.to(compute)[None, :, :], 1)
        elif M <= K:
            knots = grid + (at * (R + K + 1))[None, :] + tl.zeros((BM, BI), tl.int64)
            first, values = exact_cell(xs, knots, K, M, R + K, STEPS)
            if side is not None:
                values = scale_all(values, sides)
            for j in tl.static_range(K + 1):
                r = first + j
                found = here & (r >= 0) & (r < R)
                rows = spline + (at[None, :] * R + tl.where(found, r, 0)) * O
                mask = found[:, :, None] & (n < O)[None, None, :]
                c = tl.load(rows[:, :, None] + n[None, None, :], mask=mask, other=0.0)
                acc += tl.sum(values[j][:, :, None] * c.to(compute), 1)
        if BASE != 0:
            a = tl.where(here, base_activation(xs, BASE, M, False), 0.0)
            if side is not None:
                a *= sides
            mask = (i < I)[:, None] & (n < O)[None, :]
            b = tl.load(base_weight + at[:, None] * O + n[None, :], mask=mask, other=0.0).to(compute)
            acc += tl.sum(a[:, :, None] * b[None, :, :], 1)
    if bias is not None:
        acc += tl.load(bias + n, mask=n < O, other=0.0).to(compute)[None, :]
    tl.store(
        y + row[:, None] * O + n[None, :],
        narrow(acc, y.dtype.element_ty),
        mask=(row < B)[:, None] & (n < O)[None, :],
    )


@triton.jit
def gather_input(
    x, spline, base_weight, g, grid, t,
    B, I, O, x_row, x_column, g_row, g_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Compute X_M of BM rows, BI inputs, BN outputs a step; float64 if C is, else float32."""
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    compute: tl.constexpr = tl.float64 if spline.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(I, BI)
    pid = tl.program_id(0)
    i = pid % blocks * BI + tl.arange(0, BI)
    row = (pid // blocks).to(tl.int64) * BM + tl.arange(0, BM)
    here = (i < I)[None, :]
    at = tl.minimum(i, I - 1).to(tl.int64)
    xs = load_rows(x, tl.minimum(row, B - 1), i, x_row, x_column, I, False).to(compute)
    slope = poison(xs, None)
    if M <= K and LOCAL:
        knots = grid + (at * (R + K + 1))[None, :] + tl.zeros((BM, BI), tl.int64)
        first, values = exact_cell(xs, knots, K, M, R + K, STEPS)
    if BASE != 0:
        activation = base_activation(xs, BASE, M, False)
    for o0 in range(0, O, BN):
        n = o0 + tl.arange(0, BN)
        gs = load_part(g, row, n, g_row, g_column, B, O, False).to(compute)[:, None, :]
        if not LOCAL:
            last, before = first_state(xs, at, grid, R, M, BASIS)
            mask = (i < I)[:, None] & (n < O)[None, :]
            for r in range(R):
                value, last, before = next_row(xs, at, r, last, before, grid, R, M, BASIS)
                c = tl.load(spline + ((at * R + r) * O)[:, None] + n[None, :], mask=mask, other=0.0)
                slope += value * tl.sum(gs * c.to(compute)[None, :, :], 2)
        elif M <= K:
            for j in tl.static_range(K + 1):
                r = first + j
                found = here & (r >= 0) & (r < R)
                rows = spline + (at[None, :] * R + tl.where(found, r, 0)) * O
                mask = found[:, :, None] & (n < O)[None, None, :]
                c = tl.load(rows[:, :, None] + n[None, None, :], mask=mask, other=0.0).to(compute)
                slope += values[j] * tl.sum(gs * c, 2)
        if BASE != 0:
            mask = (i < I)[:, None] & (n < O)[None, :]
            b = tl.load(base_weight + at[:, None] * O + n[None, :], mask=mask, other=0.0).to(compute)
            slope += activation * tl.sum(gs * b[None, :, :], 2)
    stored = (row < B)[:, None] & here
    tl.store(t + row[:, None] * I + i[None, :], narrow(slope, t.dtype.element_ty), mask=stored)


@triton.jit
def rows_of(first, values, r, BM: tl.constexpr, BR: tl.constexpr):
    """Return [BM, BR]: the basis at the rows r, from the window of each of BM numbers."""
    rows = tl.zeros((BM, BR), values[0].dtype)
    for j in tl.static_range(len(values)):
        rows = tl.where((first + j)[:, None] == r[None, :], values[j][:, None], rows)
    return rows


@triton.jit
def gather_backward(
    x, side, spline, base_weight, g, grid, t, d_spline, d_base,
    B, I, O, ROWS, x_row, x_column, side_row, side_column, g_row, g_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr,
    ONE_PASS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Compute W_M of one input, BR rows, BN outputs, over the ROWS rows of a part; ONE_PASS: X_{M+1} as well.

    ONE_PASS needs R <= BR and O <= BN. Without it, spline, base_weight and t are not touched.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    compute: tl.constexpr = tl.float64 if g.dtype.element_ty == tl.float64 else tl.float32
    row_blocks = (R + BR - 1) // BR
    column_blocks = tl.cdiv(O, BN)
    pid = tl.program_id(0)
    block = pid % row_blocks
    n = pid // row_blocks % column_blocks * BN + tl.arange(0, BN)
    i = (pid // row_blocks // column_blocks % I).to(tl.int64)
    part = (pid // row_blocks // column_blocks // I).to(tl.int64)
    r = block * BR + tl.arange(0, BR)
    kept = (r < R)[:, None] & (n < O)[None, :]
    flat = (i * R + r)[:, None] * O + n[None, :]
    acc = tl.zeros((BM, BR, BN), compute)
    lost = tl.zeros((BM,), compute)
    base_acc = tl.zeros((BM, BN), compute)
    if ONE_PASS:
        coefficients = tl.load(spline + flat, mask=kept, other=0.0).to(compute)[None, :, :]
        if BASE != 0:
            base_row = tl.load(base_weight + i * O + n, mask=n < O, other=0.0).to(compute)[None, :]
    begin = part * ROWS
    end = tl.minimum(begin + ROWS, B)
    for m0 in range(begin, end, BM):
        m = m0 + tl.arange(0, BM)
        there = m < end
        xs = tl.load(x + m * x_row + i * x_column, mask=there, other=0.0).to(compute)
        gs = load_part(g, m, n, g_row, g_column, end, O, False).to(compute)
        knots = grid + i * (R + K + 1) + tl.zeros((BM,), tl.int64)
        factor = tl.where(there, 1.0, 0.0).to(compute)
        if side is not None:
            factor = tl.load(side + m * side_row + i * side_column, mask=there, other=0.0).to(compute)
            lost += poison(xs, factor)
        else:
            lost += poison(xs, None)
        if M <= K or not LOCAL:
            if LOCAL:
                first, values = exact_cell(xs, knots, K, M, R + K, STEPS)
                rows = rows_of(first, values, r, BM, BR)
            else:
                rows = rows_at(xs, r, i, grid, block * BR + BR, R, M, BASIS)
            rows = rows * factor[:, None]
            acc += rows[:, :, None] * gs[:, None, :]
        if BASE != 0:
            base_acc += (base_activation(xs, BASE, M, False) * factor)[:, None] * gs
        if ONE_PASS:
            slope = poison(xs, None)
            if M + 1 <= K or not LOCAL:
                if LOCAL:
                    first, values = exact_cell(xs, knots, K, M + 1, R + K, STEPS)
                    rows = rows_of(first, values, r, BM, BR)
                else:
                    rows = rows_at(xs, r, i, grid, R, R, M + 1, BASIS)
                slope += tl.sum(rows * tl.sum(coefficients * gs[:, None, :], 2), 1)
            if BASE != 0:
                slope += base_activation(xs, BASE, M + 1, False) * tl.sum(gs * base_row, 1)
            tl.store(t + m * I + i, narrow(slope, t.dtype.element_ty), mask=there)
    total = tl.sum(acc, 0) + tl.sum(lost, 0)
    tl.store(d_spline + part * I * R * O + flat, narrow(total, d_spline.dtype.element_ty), mask=kept)
    if BASE != 0:
        base_total = narrow(tl.sum(base_acc, 0), d_base.dtype.element_ty)
        tl.store(d_base + part * I * O + i * O + n, base_total, mask=n < tl.where(block == 0, O, 0))
