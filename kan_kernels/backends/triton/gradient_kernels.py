"""Kernels of the contractions X_m and W_m on matrix units: gradients into x and into the weights.

`dense_backward` computes both in one pass over x and g where one tile holds all outputs, or W_m alone;
`dense_input` is X_m for any width; `base_gradient` is W_m of the base. Sums over the batch are split into
parts of fixed size, which `sum_parts` adds in order: no atomics. The plain versions are `reference.input`,
`reference.weight` and `reference.backward`.
"""

import triton
import triton.language as tl

from .basis import base_activation, window
from .full_support import IS_LOCAL, first_state, next_rows, rows_of_group
from .place import place, place_rows, spread, sum_rows, tile_pairs, times_columns
from .table_kernel import verdict
from .tiles import (
    INTERPRETED,
    load_base,
    load_coefficients,
    load_part,
    load_rows,
    narrow,
    poison,
    product,
    scale_all,
)  # fmt: skip


@triton.jit
def dense_backward(
    x, side, spline, base_weight, g, grid, table, t, d_spline,
    B, I, O, ROWS, x_row, x_column, side_row, side_column, g_row, g_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr,
    POLY: tl.constexpr, POLY_X: tl.constexpr, FACTOR: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, PRECISION: tl.constexpr, ONE_PASS: tl.constexpr, RG: tl.constexpr,
    EVEN_I: tl.constexpr, EVEN_O: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Compute W_M of BI inputs, RG rows of each, BN outputs, over ROWS rows of a part; ONE_PASS: X_{M+1} as
    well.

    ONE_PASS needs O <= BN and R <= RG, and holds its coefficients in the tile all along. Without it, spline,
    base_weight and t are not touched.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    dtype: tl.constexpr = g.dtype.element_ty
    SHORT: tl.constexpr = dtype == tl.bfloat16 or dtype == tl.float16 or PRECISION == "tf32"
    NG: tl.constexpr = (R + RG - 1) // RG
    blocks = tl.cdiv(I, BI) * NG
    pid = tl.program_id(0)
    block = pid % blocks
    tile = pid // blocks % tl.cdiv(O, BN)
    part = (pid // blocks // tl.cdiv(O, BN)).to(tl.int64)
    group = block % NG
    i = block // NG * BI + tl.arange(0, BI)
    at = tl.minimum(i, I - 1)
    n = tile * BN + tl.arange(0, BN)
    tile_i, tile_r = tile_pairs(BI, RG, True)
    tile_i += block // NG * BI
    flat = (tile_i.to(tl.int64) * R + group * RG + tile_r)[:, None] * O + n[None, :]
    kept = (tile_i < I)[:, None] & (group * RG + tile_r < R)[:, None] & (n < O)[None, :]
    acc = tl.zeros((BI * RG, BN), tl.float32)
    lost = tl.zeros((BM, BI), tl.float32)
    if ONE_PASS:
        coefficients = tl.load(spline + flat, mask=kept, other=0.0)
        if BASE != 0:
            base_at = i.to(tl.int64)[:, None] * O + n[None, :]
            base_kept = (i < I)[:, None] & (n < O)[None, :]
            base_rows = tl.load(base_weight + base_at, mask=base_kept, other=0.0)
    if table is not None:
        wrong = verdict(table, I, 256)
    begin = part * ROWS
    end = tl.minimum(begin + ROWS, B)
    for m0 in range(begin, end, BM):
        m = m0 + tl.arange(0, BM)
        xs = load_part(x, m, i, x_row, x_column, end, I, EVEN_I).to(tl.float32)
        gs = load_part(g, m, n, g_row, g_column, end, O, EVEN_O)
        if M <= K and LOCAL:
            quad, two, odd, values = window(xs, at, grid, table, I, K, M, POLY, R + K, STEPS)
        sides = None
        if side is not None:
            sides = load_part(side, m, i, side_row, side_column, end, I, EVEN_I).to(tl.float32)
            if M <= K and LOCAL:
                values = scale_all(values, sides)
            lost += poison(xs, sides)
        else:
            lost += poison(xs, None)
        if M <= K or not LOCAL:
            if LOCAL:
                a = place(quad, two, odd, values, group, dtype, BM, BI, RG, True)
            else:
                a = rows_of_group(xs, sides, at, group, grid, dtype, R, M, BASIS, BM, BI, RG, True)
            if not INTERPRETED and (dtype == tl.float32 or BN < 128 or RG < 8):
                a += 0.0  # Triton fails for sm_100 on small or 32-bit tiles that it reshapes and transposes
            acc = product(tl.trans(a), gs, acc, PRECISION)
        if ONE_PASS:
            slope = poison(xs, None)
            if table is not None:
                slope += wrong
            if M + 1 <= K or not LOCAL:
                if LOCAL:
                    quad, two, odd, values = window(xs, at, grid, table, I, K, M + 1, POLY_X, R + K, STEPS)
                if not LOCAL:  # before the products, with whose registers a recurrence would spill
                    rows = rows_of_group(xs, None, at, 0, grid, tl.float32, R, M + 1, BASIS, BM, BI, RG, True)
                products = product(gs, tl.trans(coefficients), tl.zeros((BM, BI * RG), tl.float32), PRECISION)
                if LOCAL:
                    rows = place_rows(quad, two, odd, values, 0, BM, BI, RG, True)
                slope += sum_rows(products * rows, BM, BI, RG) * FACTOR
            if BASE != 0:
                products = product(gs, tl.trans(base_rows), tl.zeros((BM, BI), tl.float32), PRECISION)
                slope += products * base_activation(xs, BASE, M + 1, SHORT)
            stored = (m < end)[:, None] & (i < I)[None, :]
            tl.store(t + m[:, None] * I + i[None, :], narrow(slope, t.dtype.element_ty), mask=stored)
    if table is not None:
        acc += wrong
    acc = acc * FACTOR + spread(tl.sum(lost, 0), BI, RG, True)[:, None]
    tl.store(d_spline + part * I * R * O + flat, narrow(acc, d_spline.dtype.element_ty), mask=kept)


@triton.jit
def base_gradient(
    x, side, g, d_base, B, I, O, ROWS, x_row, x_column, side_row, side_column, g_row, g_column,
    M: tl.constexpr, BASE: tl.constexpr, PRECISION: tl.constexpr,
    EVEN_I: tl.constexpr, EVEN_O: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Compute W_M of the base: BI inputs and BN outputs, over the ROWS rows of one part."""
    dtype: tl.constexpr = g.dtype.element_ty
    SHORT: tl.constexpr = dtype == tl.bfloat16 or dtype == tl.float16 or PRECISION == "tf32"
    blocks = tl.cdiv(I, BI)
    pid = tl.program_id(0)
    part = (pid // blocks // tl.cdiv(O, BN)).to(tl.int64)
    i = pid % blocks * BI + tl.arange(0, BI)
    n = pid // blocks % tl.cdiv(O, BN) * BN + tl.arange(0, BN)
    acc = tl.zeros((BI, BN), tl.float32)
    begin = part * ROWS
    end = tl.minimum(begin + ROWS, B)
    for m0 in range(begin, end, BM):
        m = m0 + tl.arange(0, BM)
        xs = load_part(x, m, i, x_row, x_column, end, I, EVEN_I).to(tl.float32)
        a = base_activation(xs, BASE, M, SHORT)
        a = tl.where((m < end)[:, None], a, 0.0)
        if side is not None:
            a *= load_part(side, m, i, side_row, side_column, end, I, EVEN_I).to(tl.float32)
        gs = load_part(g, m, n, g_row, g_column, end, O, EVEN_O)
        acc = product(tl.trans(narrow(a, dtype)), gs, acc, PRECISION, True)
    at = part * I * O + i.to(tl.int64)[:, None] * O + n[None, :]
    tl.store(d_base + at, narrow(acc, d_base.dtype.element_ty), mask=(i < I)[:, None] & (n < O)[None, :])


@triton.jit
def dense_input(
    x, spline, base_weight, g, grid, table, t,
    B, I, O, x_row, x_column, g_row, g_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr,
    POLY: tl.constexpr, FACTOR: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, PRECISION: tl.constexpr, RG: tl.constexpr, EVEN_I: tl.constexpr, EVEN_O: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BI: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Compute X_M of BM rows, BI inputs: g times each row's coefficients, BK outputs a step, then the basis.

    TOGETHER, where a tile holds all rows of an input: the base's weights take part in the same steps, so g is
    read once, and the basis is made for 8 inputs at a time, since registers are the products' until then.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    dtype: tl.constexpr = spline.dtype.element_ty
    SHORT: tl.constexpr = dtype == tl.bfloat16 or dtype == tl.float16 or PRECISION == "tf32"
    NG: tl.constexpr = (R + RG - 1) // RG
    SPLINE: tl.constexpr = M <= K or not LOCAL
    blocks = tl.cdiv(I, BI)
    pid = tl.program_id(0)
    first = pid % blocks * BI
    i = first + tl.arange(0, BI)
    row = (pid // blocks).to(tl.int64) * BM + tl.arange(0, BM)
    m = tl.minimum(row, B - 1)
    k = tl.arange(0, BK)
    tile_i, tile_r = tile_pairs(BI, RG, True)
    tile_i += first
    wrong = 0.0
    if table is not None:
        wrong = verdict(table, I, 256)
    tile = spline + (tile_i.to(tl.int64) * R + tile_r)[:, None] * O + k[None, :]
    base_products = tl.zeros((BM, BI), tl.float32)
    if BASE != 0:
        base_tile = base_weight + i.to(tl.int64)[:, None] * O + k[None, :]
    if SPLINE and NG == 1 and TOGETHER:
        products = tl.zeros((BM, BI * RG), tl.float32)
        for o0 in range(0, O, BK):
            gs = load_part(g, row, o0 + k, g_row, g_column, B, O, EVEN_O)
            c = load_coefficients(tile + o0, 0, tile_i, tile_r, o0 + k, I, O, R, RG, EVEN_I, EVEN_O)
            products = product(gs, tl.trans(c), products, PRECISION)
            if BASE != 0:
                c = load_base(base_tile + o0, i, o0 + k, I, O, EVEN_I, EVEN_O)
                base_products = product(gs, tl.trans(c), base_products, PRECISION)
        SLICE: tl.constexpr = 8 if BI > 16 or POLY is None else BI
        for n in tl.static_range(BI // SLICE):
            i = first + n * SLICE + tl.arange(0, SLICE)
            at = tl.minimum(i, I - 1)
            xs = load_rows(x, m, i, x_row, x_column, I, EVEN_I)
            if LOCAL:
                quad, two, odd, values = window(xs, at, grid, table, I, K, M, POLY, R + K, STEPS)
                rows = place_rows(quad, two, odd, values, 0, BM, SLICE, RG, True)
            else:
                rows = rows_of_group(xs, None, at, 0, grid, tl.float32, R, M, BASIS, BM, SLICE, RG, True)
            rows = times_columns(rows, products, n, BM, BI * RG, SLICE * RG)
            slope = poison(xs, None) + sum_rows(rows, BM, SLICE, RG) * FACTOR + wrong
            if BASE != 0:
                base = base_activation(xs, BASE, M, SHORT)
                slope += times_columns(base, base_products, n, BM, BI, SLICE)
            store_slope(t, slope, row, i, B, I)
    else:
        xs = load_rows(x, m, i, x_row, x_column, I, EVEN_I)
        slope = poison(xs, None) + wrong
        at = tl.minimum(i, I - 1)
        if SPLINE:
            if LOCAL:
                quad, two, odd, values = window(xs, at, grid, table, I, K, M, POLY, R + K, STEPS)
            else:
                last, before = first_state(xs, at, grid, R, M, BASIS)
            for group in range(NG):
                products = tl.zeros((BM, BI * RG), tl.float32)
                for o0 in range(0, O, BK):
                    gs = load_part(g, row, o0 + k, g_row, g_column, B, O, EVEN_O)
                    c = load_coefficients(
                        tile + o0, group, tile_i, tile_r, o0 + k, I, O, R, RG, EVEN_I, EVEN_O
                    )
                    products = product(gs, tl.trans(c), products, PRECISION)
                if LOCAL:
                    rows = place_rows(quad, two, odd, values, group, BM, BI, RG, True)
                else:
                    rows, last, before = next_rows(
                        xs, None, at, group, last, before, grid, tl.float32, R, M, BASIS, BM, BI, RG, True
                    )
                slope += sum_rows(products * rows, BM, BI, RG) * FACTOR
        if BASE != 0:
            for o0 in range(0, O, BK):
                gs = load_part(g, row, o0 + k, g_row, g_column, B, O, EVEN_O)
                c = load_base(base_tile + o0, i, o0 + k, I, O, EVEN_I, EVEN_O)
                base_products = product(gs, tl.trans(c), base_products, PRECISION)
            slope += base_products * base_activation(xs, BASE, M, SHORT)
        store_slope(t, slope, row, i, B, I)


@triton.jit
def store_slope(t, slope, row, i, B, I):
    """Store t[row, i] = slope."""
    stored = (row < B)[:, None] & (i < I)[None, :]
    tl.store(t + row[:, None] * I + i[None, :], narrow(slope, t.dtype.element_ty), mask=stored)


@triton.jit
def sum_parts(parts, total, N, PARTS, BLOCK: tl.constexpr):
    """Store total[n] = sum_p parts[p, n], in order."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), parts.dtype.element_ty)
    at = parts + n
    for _ in range(PARTS):
        acc += tl.load(at, mask=n < N, other=0.0)
        at += N
    tl.store(total + n, narrow(acc, total.dtype.element_ty), mask=n < N)
