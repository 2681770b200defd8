"""Kernels of activations: a function for every feature and head, without a sum over the features.

A tile is [BM rows, BI features]; x is read once, and each of its functions written once. B-splines up to
order 3 are looked up: `cell_polynomials.polynomial_table` turns each cell of each function into the
coefficients of its polynomial. All else evaluates the basis in place.
Gradients of weights are products of the basis with g on matrix units, a head at a time: of BI features with
BI features, of which the diagonal is kept. float64, and a basis that could leave the range of a 16-bit
operand, are summed as they are. The plain versions are backends/reference/activation.py.
"""

import triton
import triton.language as tl

from .basis import base_activation, exact_cell, exact_window, window
from .cell_polynomials import FIRST, coefficients, exact_place, monomials, series_at, sum_of, uniform_place
from .full_support import IS_LOCAL, first_state, next_row, rows_of_group
from .place import place, place_rows, spread, tile_pairs
from .tiles import load_part, load_rows, narrow, poison, product, scale_all


@triton.jit
def judged(x, i, table, I):
    """Return x[.., i], NaN where the knots of i were taken for uniform and are not."""
    if table is not None:
        x += tl.load(table + 2 * I + i)[None, :]
    return x


@triton.jit
def functions(
    x, i, h0, spline, grid, table, places, pairs, I, H,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """Return BH tiles like x: the functions' M-th derivative at x[.., i] without base, of heads from h0.

    Heads from H on repeat the last one. NaN in x is for the caller to add.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    out = ()
    wide = i.to(tl.int64)
    if LOCAL and M > K:
        for _ in tl.static_range(BH):
            out = out + (tl.zeros(x.shape, x.dtype),)
    elif LOCAL and pairs is not None:
        TERMS: tl.constexpr = K + 1 - M
        WIDTH: tl.constexpr = 2 if TERMS > 2 else 1
        own = pairs + wide * (R + K + 2) * H * WIDTH
        if table is not None:
            cell, v = uniform_place(x, i, table, I, K, R + K)
            own -= (tl.zeros((), tl.int64) + FIRST) * H * WIDTH
        else:
            cell, u, w = exact_place(x, i, grid, places, R + K, STEPS)
            powers = monomials(u, w, K - M)
        at = own[None, :] + cell.to(tl.int64) * (H * WIDTH)
        for h in tl.static_range(BH):
            c = coefficients(at + tl.minimum(h0 + h, H - 1) * WIDTH, TERMS)
            if table is not None:
                out = out + (series_at(v, c, TERMS),)
            else:
                out = out + (sum_of(powers, c),)
    elif LOCAL:
        knots = grid + (wide * (R + K + 1))[None, :] + tl.zeros(x.shape, tl.int32)
        first, values = exact_cell(x, knots, K, M, R + K, STEPS)
        for h in tl.static_range(BH):
            at = spline + (wide * R * H)[None, :] + tl.minimum(h0 + h, H - 1)
            total = tl.zeros(x.shape, x.dtype)
            for j in tl.static_range(K + 1):
                r = first + j
                found = (r >= 0) & (r < R)
                c = tl.load(at + tl.where(found, r, 0) * H, mask=found, other=0.0)
                total += values[j] * c.to(x.dtype)
            out = out + (total,)
    else:
        last, before = first_state(x, i, grid, R, M, BASIS)
        for _ in tl.static_range(BH):
            out = out + (tl.zeros(x.shape, x.dtype),)
        for r in range(R):
            value, last, before = next_row(x, i, r, last, before, grid, R, M, BASIS)
            sums = ()
            for h in tl.static_range(BH):
                c = tl.load(spline + (wide * R + r) * H + tl.minimum(h0 + h, H - 1))
                sums = sums + (out[h] + value * c.to(x.dtype)[None, :],)
            out = sums
    return out


@triton.jit
def activation_forward(
    x, side, spline, base_weight, grid, table, places, pairs, v,
    B, I, x_row, x_column, side_row, side_column,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, SHORT: tl.constexpr, H: tl.constexpr, EVEN_I: tl.constexpr,
    BM: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Compute F_M of BM rows, BI features and BH heads; v is (B, H, in)."""
    compute: tl.constexpr = tl.float64 if spline.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(I, BI)
    groups = tl.cdiv(H, BH)
    pid = tl.program_id(0)
    i = pid % blocks * BI + tl.arange(0, BI)
    h0 = pid // blocks % groups * BH
    row = (pid // blocks // groups).to(tl.int64) * BM + tl.arange(0, BM)
    m = tl.minimum(row, B - 1)
    at = i if EVEN_I else tl.minimum(i, I - 1)
    xs = judged(load_rows(x, m, i, x_row, x_column, I, EVEN_I).to(compute), at, table, I)
    found = functions(xs, at, h0, spline, grid, table, places, pairs, I, H, R, K, M, STEPS, BASIS, BH)
    if BASE != 0:
        activation = base_activation(xs, BASE, M, SHORT)
    if side is not None:
        sides = load_rows(side, m, i, side_row, side_column, I, EVEN_I).to(compute)
    for h in tl.static_range(BH):
        value = found[h]
        if BASE == 0:
            value += poison(xs, None)
        else:
            b = tl.load(base_weight + at.to(tl.int64) * H + tl.minimum(h0 + h, H - 1))
            value += activation * b.to(compute)[None, :]
        if side is not None:
            value *= sides
        out = v + (row * H + h0 + h)[:, None] * I + i[None, :]
        end = tl.where(h0 + h < H, B, 0)  # no rows of a head that is not there
        store_part(out, value, row, i, end, I, EVEN_I)


@triton.jit
def store_part(out, tile, rows, columns, end, size, EVEN: tl.constexpr):
    """Write a tile in the pointers' dtype: rows before `end`, columns before `size` unless EVEN."""
    tile = narrow(tile, out.dtype.element_ty)
    if EVEN:
        tl.store(out, tile, mask=(rows < end)[:, None])
    else:
        tl.store(out, tile, mask=(rows < end)[:, None] & (columns < size)[None, :])


@triton.jit
def slope_sums(
    x, gs, i, h0, spline, base_weight, grid, table, places, pairs, I, H,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Sum over heads: the BH tiles of gs times the functions of x[.., i], and times the base weights."""
    found = functions(x, i, h0, spline, grid, table, places, pairs, I, H, R, K, M, STEPS, BASIS, BH)
    total = tl.zeros(x.shape, x.dtype)
    of_base = tl.zeros(x.shape, x.dtype)
    for h in tl.static_range(BH):
        total += tl.where(h0 + h < H, gs[h] * found[h], 0.0)
        if BASE != 0:
            b = tl.load(base_weight + i.to(tl.int64) * H + tl.minimum(h0 + h, H - 1))
            of_base += tl.where(h0 + h < H, gs[h] * b.to(x.dtype)[None, :], 0.0)
    return total, of_base


@triton.jit
def slope(x, total, of_base, M: tl.constexpr, BASE: tl.constexpr, SHORT: tl.constexpr):
    """Return X_M from both sums over all heads: the base may be infinite, and its share is taken once."""
    total += poison(x, None)
    if BASE != 0:
        total += of_base * base_activation(x, BASE, M, SHORT)
    return total


@triton.jit
def load_heads(g, rows, i, h0, g_row, g_feature, g_head, end, I, H, compute: tl.constexpr,
               EVEN_I: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """Load BH tiles of g[rows, i, heads from h0], in its dtype or in `compute`; 0 past the ends."""
    out = ()
    for h in tl.static_range(BH):
        last = tl.where(h0 + h < H, end, 0)
        tile = load_part(g + (h0 + h).to(tl.int64) * g_head, rows, i, g_row, g_feature, last, I, EVEN_I)
        if compute is not None:
            tile = tile.to(compute)
        out = out + (tile,)
    return out


@triton.jit
def activation_input(
    x, spline, base_weight, g, grid, table, places, pairs, t,
    B, I, x_row, x_column, g_row, g_feature, g_head,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, SHORT: tl.constexpr, H: tl.constexpr, EVEN_I: tl.constexpr,
    BM: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Compute X_M of BM rows and BI features, BH heads a step."""
    compute: tl.constexpr = tl.float64 if spline.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(I, BI)
    pid = tl.program_id(0)
    i = pid % blocks * BI + tl.arange(0, BI)
    row = (pid // blocks).to(tl.int64) * BM + tl.arange(0, BM)
    at = i if EVEN_I else tl.minimum(i, I - 1)
    xs = load_rows(x, tl.minimum(row, B - 1), i, x_row, x_column, I, EVEN_I).to(compute)
    xs = judged(xs, at, table, I)
    total = tl.zeros((BM, BI), compute)
    of_base = tl.zeros((BM, BI), compute)
    for first in range(0, H, BH):
        h0 = first + tl.zeros((), tl.int32)  # in the interpreter it is a Python number
        gs = load_heads(g, row, i, h0, g_row, g_feature, g_head, B, I, H, compute, EVEN_I, BH)
        sums = slope_sums(
            xs, gs, at, h0, spline, base_weight, grid, table, places, pairs, I, H,
            R, K, M, STEPS, BASIS, BASE, BH,
        )  # fmt: skip
        total += sums[0]
        of_base += sums[1]
    total = slope(xs, total, of_base, M, BASE, SHORT)
    store_part(t + row[:, None] * I + i[None, :], total, row, i, B, I, EVEN_I)


@triton.jit
def basis_rows(
    x, sides, i, group, grid, table, I, dtype: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, POLY: tl.constexpr,
    BASIS: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr,
):  # fmt: skip
    """Return [BM, BI * RG] in dtype, columns in pairs: rows RG * group onwards of the basis at x[.., i]."""
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    if LOCAL:
        if x.dtype == tl.float64:
            knots = grid + (i.to(tl.int64) * (R + K + 1))[None, :] + tl.zeros(x.shape, tl.int32)
            quad, two, odd, values = exact_window(x, knots, K, M, R + K, STEPS)
        else:
            quad, two, odd, values = window(x, i, grid, table, I, K, M, POLY, R + K, STEPS)
        if sides is not None:
            values = scale_all(values, sides)
        if dtype == tl.float32 or dtype == tl.float64:
            rows = place_rows(quad, two, odd, values, group, BM, BI, RG, True)
        else:
            rows = place(quad, two, odd, values, group, dtype, BM, BI, RG, True)
    else:
        rows = rows_of_group(x, sides, i, group, grid, dtype, R, M, BASIS, BM, BI, RG, True)
    return rows


@triton.jit
def activation_backward(
    x, side, spline, base_weight, g, grid, table, places, pairs, t, d_spline, d_base,
    B, I, ROWS, x_row, x_column, side_row, side_column, g_row, g_feature, g_head,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, SHORT: tl.constexpr, H: tl.constexpr, EVEN_I: tl.constexpr,
    POLY: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr, ONE_PASS: tl.constexpr,
    RG: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Compute W_M of BI features, RG of their basis rows, BH heads, over the ROWS rows of a part; ONE_PASS:
    X_{M+1} as well.

    PRECISION: of products on matrix units; None: sums as they are. ONE_PASS needs H <= BH and R <= RG.
    Without it, spline, base_weight, places, pairs and t are not touched.
    """
    LOCAL: tl.constexpr = IS_LOCAL[BASIS]
    dtype: tl.constexpr = g.dtype.element_ty
    compute: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    operand: tl.constexpr = compute if PRECISION is None else dtype
    NG: tl.constexpr = (R + RG - 1) // RG
    blocks = tl.cdiv(I, BI) * NG
    pid = tl.program_id(0)
    group = pid % blocks % NG
    i0 = pid % blocks // NG * BI
    h0 = pid // blocks % tl.cdiv(H, BH) * BH
    part = (pid // blocks // tl.cdiv(H, BH)).to(tl.int64)
    i = i0 + tl.arange(0, BI)
    at = i if EVEN_I else tl.minimum(i, I - 1)
    tile_i, tile_r = tile_pairs(BI, RG, True)
    tile_i += i0
    tile_r += group * RG
    lost = tl.zeros((BM, BI), compute)
    sums = ()
    base_sums = ()
    for _ in tl.static_range(BH):
        if PRECISION is None:
            sums = sums + (tl.zeros((BM, BI * RG), compute),)
        else:
            sums = sums + (tl.zeros((BI * RG, BI), compute),)
        base_sums = base_sums + (tl.zeros((BM, BI), compute),)
    begin = part * ROWS
    end = tl.minimum(begin + ROWS, B)
    for m0 in range(begin, end, BM):
        m = m0 + tl.arange(0, BM)
        xs = judged(load_part(x, m, i, x_row, x_column, end, I, EVEN_I).to(compute), at, table, I)
        gs = load_heads(g, m, i, h0, g_row, g_feature, g_head, end, I, H, None, EVEN_I, BH)
        wide = ()
        for h in tl.static_range(BH):
            wide = wide + (gs[h].to(compute),)
        sides = None
        if side is not None:
            sides = load_part(side, m, i, side_row, side_column, end, I, EVEN_I).to(compute)
        lost += poison(xs, sides)
        if M <= K or not LOCAL:
            a = basis_rows(
                xs, sides, at, group, grid, table, I, operand, R, K, M, STEPS, POLY, BASIS, BM, BI, RG
            )
            new = ()
            for h in tl.static_range(BH):
                if PRECISION is None:
                    last = tl.where(h0 + h < H, end, 0)
                    of_row = load_part(
                        g + (h0 + h).to(tl.int64) * g_head, m, tile_i, g_row, g_feature, last, I, False
                    )
                    new = new + (sums[h] + a * of_row.to(compute),)
                else:
                    new = new + (product(tl.trans(a), gs[h], sums[h], PRECISION),)
            sums = new
        if BASE != 0:
            activation = base_activation(xs, BASE, M, SHORT)
            if side is not None:
                activation *= sides
            new = ()
            for h in tl.static_range(BH):
                new = new + (base_sums[h] + tl.where((m < end)[:, None], activation * wide[h], 0.0),)
            base_sums = new
        if ONE_PASS:
            both = slope_sums(
                xs, wide, at, h0, spline, base_weight, grid, table, places, pairs, I, H,
                R, K, M + 1, STEPS, BASIS, BASE, BH,
            )  # fmt: skip
            dx = slope(xs, both[0], both[1], M + 1, BASE, SHORT)
            store_part(t + m[:, None] * I + i[None, :], dx, m, i, end, I, EVEN_I)
    rows = spread(tl.sum(lost, 0), BI, RG, True)
    flat = part * I * R * H + (tile_i.to(tl.int64) * R + tile_r) * H
    base_flat = part * I * H + i.to(tl.int64) * H
    for h in tl.static_range(BH):
        size = tl.where(h0 + h < H, I, 0)
        kept = (tile_i < size) & (tile_r < R)
        if PRECISION is None:
            total = narrow(tl.sum(sums[h], 0) + rows, d_spline.dtype.element_ty)
            tl.store(d_spline + flat + (h0 + h), total, mask=kept)
        else:
            total = narrow(sums[h] * FACTOR + rows[:, None], d_spline.dtype.element_ty)
            out = (d_spline + flat + (h0 + h))[:, None] + tl.zeros((BI * RG, BI), tl.int32)
            own = tile_i[:, None] == i[None, :]  # of a product of all features with all
            tl.store(out, total, mask=own & kept[:, None])
        if BASE != 0:
            total = narrow(tl.sum(base_sums[h], 0), d_base.dtype.element_ty)
            tl.store(d_base + base_flat + (h0 + h), total, mask=i < tl.where(group == 0, size, 0))
