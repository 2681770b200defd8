"""Kernels of activations: a function for every feature and head, without a sum over the features.

A tile is [BM rows, BI features]; x is read once, and each of its functions written once. B-splines up to
order 3 are looked up: `polynomial_table` turns each cell of each function into the coefficients of its
polynomial, of which the others load one cell's, 16 bytes for a cubic. All else evaluates the basis in place.
Gradients of weights are products of the basis with g on matrix units, a head at a time: of BI features with
BI features, of which the diagonal is kept. float64, and a basis that could leave the range of a 16-bit
operand, are summed as they are. The plain versions are backends/reference/activation.py.
"""

import triton
import triton.language as tl

from .basis import base_activation, exact_cell, exact_window, find_cell, window
from .full_support import first_state, next_row, rows_of_group
from .place import place, place_rows, spread, tile_pairs
from .tiles import load_part, load_rows, narrow, poison, product, scale_all


@triton.jit
def weighted(weight, value):
    """weight * value; 0 where the weight is, whatever the value."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def derived(series, knots, K: tl.constexpr, M: tl.constexpr):
    """The coefficients of the M-th derivative of a cell's spline, in order K - M, from its own.

    series: those of the functions on the cell; knots: its K knots on either side, or as many as M takes.
    """
    for step in tl.static_range(M):
        ORDER: tl.constexpr = K - step
        new = ()
        for j in tl.static_range(1, ORDER + 1):
            width = knots[step + j - 1 + ORDER] - knots[step + j - 1]
            scale = tl.where(width > 0, ORDER / width, 0.0)
            new = new + (weighted(scale, series[j]) - weighted(scale, series[j - 1]),)
        series = new
    return series


@triton.jit
def blossom(series, knots, K: tl.constexpr, M: tl.constexpr, RIGHT: tl.constexpr):
    """De Boor's scheme at K - M - RIGHT times the cell's begin and RIGHT times its end.

    Means of coefficients with weights that are exactly 0 where a function vanishes at an end.
    """
    N: tl.constexpr = K - M
    for level in tl.static_range(1, N + 1):
        point = knots[K] if level <= RIGHT else knots[K - 1]
        new = ()
        for a in tl.static_range(1, N - level + 2):
            low = knots[M + level + a - 2]
            high = knots[M + a + N - 1]
            inverse = tl.where(high > low, 1.0 / (high - low), 0.0)
            before = weighted((high - point) * inverse, series[a - 1])
            new = new + (before + weighted((point - low) * inverse, series[a]),)
        series = new
    return series[0]


@triton.jit
def polynomial_table(
    spline, grid, places, pairs, CELLS, H,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """pairs[i, n, h, p]: the M-th derivative on cell n - 1 is sum_p pairs[.., p] u^p w^(K-M-p), where u goes
    from 0 to 1 across the cell and w from 1 to 0: Bernstein's form. Nothing cancels in it that does not
    cancel between B-splines.

    CENTRED: it is sum_p pairs[.., p] (u - 1/2)^p instead, for 16-bit results; the numbers of
    `blocking.centred`. Cells 0 and R+K+1 are those before and behind the knots: zeros. places[i, n]: begin
    and end of the cell, 1 / its length and nothing, unless None. In float64. CELLS: in * (R+K+2).
    """
    LAST: tl.constexpr = R + K
    TERMS: tl.constexpr = K + 1 - M
    WIDTH: tl.constexpr = 4 if TERMS > 2 else 2
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = n < CELLS
    i = (tl.minimum(n, CELLS - 1) // (LAST + 2)).to(tl.int64)
    cell = n % (LAST + 2) - 1
    real = there & (cell >= 0) & (cell < LAST)
    knots = ()
    for q in tl.static_range(2 * K):
        at = tl.minimum(tl.maximum(cell + (q + 1 - K), 0), LAST)
        knots = knots + (tl.load(grid + i * (LAST + 1) + at).to(tl.float64),)
    if places is not None:
        begin = tl.load(grid + i * (LAST + 1) + tl.maximum(cell, 0))
        end = tl.load(grid + i * (LAST + 1) + tl.minimum(cell + 1, LAST))
        length = end.to(tl.float64) - begin.to(tl.float64)
        at = places + n.to(tl.int64) * 4
        tl.store(at, begin, mask=there)
        tl.store(at + 1, end, mask=there)
        tl.store(at + 2, tl.where(length > 0, 1.0 / length, 0.0).to(tl.float32), mask=there)
    for h in range(H):
        series = ()
        for j in tl.static_range(K + 1):
            r = cell - K + j
            found = real & (r >= 0) & (r < R)
            c = tl.load(spline + (i * R + tl.where(found, r, 0)) * H + h, mask=found, other=0.0)
            series = series + (c.to(tl.float64),)
        series = derived(series, knots, K, M)
        out = pairs + (n.to(tl.int64) * H + h) * WIDTH
        form = ()
        binomial = 1.0
        for p in tl.static_range(TERMS):
            form = form + (blossom(series, knots, K, M, p) * binomial,)
            binomial = binomial * (TERMS - 1 - p) / (p + 1)
        for p in tl.static_range(WIDTH):
            value = tl.zeros((BLOCK,), tl.float64)
            if CENTRED is not None and p < TERMS:
                for q in tl.static_range(TERMS):
                    value += form[q] * CENTRED[q][p]
            elif p < TERMS:
                value = form[p]
            tl.store(out + p, value.to(tl.float32), mask=there)


@triton.jit
def numbers_of(pair):
    """The two float32 numbers of an int64, the lower half first."""
    first = pair.to(tl.int32).to(tl.float32, bitcast=True)
    return first, (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


FIRST = tl.constexpr(0x4B400000 - 1)  # the bits of 12582912 in float32, and a cell less


@triton.jit
def uniform_place(x, i, table, I, K: tl.constexpr, LAST: tl.constexpr):
    """(cell of `polynomial_table` that x[.., i] lies on, plus FIRST; position from its centre, in cells).

    Rounded to nearest by an addition, which leaves the cell in the bits of the sum. NaN is before all knots.
    """
    scale, offset = tl.load(table + i) * 4.0, tl.load(table + I + i) * 4.0 + (K - 0.5)
    y = x * scale[None, :] + offset[None, :]
    y = tl.minimum(tl.maximum(y, -1.0), LAST)
    shifted = y + 12582912.0
    return shifted.to(tl.int32, bitcast=True), y - (shifted - 12582912.0)


@triton.jit
def exact_place(x, i, grid, places, LAST: tl.constexpr, STEPS: tl.constexpr):
    """(cell of `polynomial_table` that x[.., i] lies on, u, w); u and w are 0 where there is none."""
    wide = i.to(tl.int64)
    knots = grid + (wide * (LAST + 1))[None, :] + tl.zeros(x.shape, tl.int32)
    cell, inside, _ = find_cell(x, knots, LAST, STEPS)
    cell = tl.where(inside, cell + 1, 0)
    at = places + (wide * ((LAST + 2) * 2))[None, :] + cell * 2
    begin, end = numbers_of(tl.load(at))
    inverse, _ = numbers_of(tl.load(at + 1))
    return cell, tl.where(inside, (x - begin) * inverse, 0.0), tl.where(inside, (end - x) * inverse, 0.0)


@triton.jit
def monomials(u, w, N: tl.constexpr):
    """u^p w^(N-p), p = 0 .. N."""
    if N == 0:
        out = (tl.full(u.shape, 1.0, u.dtype),)
    elif N == 1:
        out = (w, u)
    elif N == 2:
        out = (w * w, u * w, u * u)
    else:
        out = (w * w * w, w * w * u, u * u * w, u * u * u)
    return out


@triton.jit
def coefficients(pairs, TERMS: tl.constexpr):
    """A tuple of the four or two numbers at the pointers of one cell."""
    out = numbers_of(tl.load(pairs))
    if TERMS > 2:
        out = out + numbers_of(tl.load(pairs + 1))
    return out


@triton.jit
def series_at(v, c, TERMS: tl.constexpr):
    """sum_p c[p] v^p."""
    value = c[TERMS - 1]
    for p in tl.static_range(1, TERMS):
        value = value * v + c[TERMS - 1 - p]
    return value


@triton.jit
def sum_of(powers, c):
    """sum_p powers[p] c[p]."""
    value = powers[0] * c[0]
    for p in tl.static_range(1, len(powers)):
        value += powers[p] * c[p]
    return value


@triton.jit
def judged(x, i, table, I):
    """x[.., i], NaN where the knots of i were taken for uniform and are not."""
    if table is not None:
        x += tl.load(table + 2 * I + i)[None, :]
    return x


@triton.jit
def functions(
    x, i, h0, spline, grid, table, places, pairs, I, H,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """BH tiles like x: the M-th derivative of the functions of x[.., i] without their base, of heads from h0.

    Heads from H on repeat the last one. NaN in x is for the caller to add.
    """
    out = ()
    wide = i.to(tl.int64)
    if BASIS == 0 and M > K:
        for _ in tl.static_range(BH):
            out = out + (tl.zeros(x.shape, x.dtype),)
    elif BASIS == 0 and pairs is not None:
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
    elif BASIS == 0:
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
    """F_M of BM rows, BI features and BH heads; v is (B, H, in)."""
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
def slope(
    x, gs, i, h0, spline, base_weight, grid, table, places, pairs, I, H,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, BASIS: tl.constexpr,
    BASE: tl.constexpr, SHORT: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """X_M of a tile x[.., i]: the BH tiles of gs times the functions of the heads from h0, summed."""
    found = functions(x, i, h0, spline, grid, table, places, pairs, I, H, R, K, M, STEPS, BASIS, BH)
    total = poison(x, None)
    of_base = tl.zeros(x.shape, x.dtype)
    for h in tl.static_range(BH):
        total += tl.where(h0 + h < H, gs[h] * found[h], 0.0)
        if BASE != 0:
            b = tl.load(base_weight + i.to(tl.int64) * H + tl.minimum(h0 + h, H - 1))
            of_base += tl.where(h0 + h < H, gs[h] * b.to(x.dtype)[None, :], 0.0)
    if BASE != 0:
        total += of_base * base_activation(x, BASE, M, SHORT)
    return total


@triton.jit
def load_heads(g, rows, i, h0, g_row, g_feature, g_head, end, I, H, compute: tl.constexpr,
               EVEN_I: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """BH tiles of g[rows, i, heads from h0], in its dtype or in `compute`; 0 past the ends."""
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
    """X_M of BM rows and BI features, BH heads a step."""
    compute: tl.constexpr = tl.float64 if spline.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(I, BI)
    pid = tl.program_id(0)
    i = pid % blocks * BI + tl.arange(0, BI)
    row = (pid // blocks).to(tl.int64) * BM + tl.arange(0, BM)
    at = i if EVEN_I else tl.minimum(i, I - 1)
    xs = load_rows(x, tl.minimum(row, B - 1), i, x_row, x_column, I, EVEN_I).to(compute)
    xs = judged(xs, at, table, I)
    total = tl.zeros((BM, BI), compute)
    for first in range(0, H, BH):
        h0 = first + tl.zeros((), tl.int32)  # in the interpreter it is a Python number
        gs = load_heads(g, row, i, h0, g_row, g_feature, g_head, B, I, H, compute, EVEN_I, BH)
        total += slope(
            xs, gs, at, h0, spline, base_weight, grid, table, places, pairs, I, H,
            R, K, M, STEPS, BASIS, BASE, SHORT, BH,
        )  # fmt: skip
    store_part(t + row[:, None] * I + i[None, :], total, row, i, B, I, EVEN_I)


@triton.jit
def basis_rows(
    x, sides, i, group, grid, table, I, dtype: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, STEPS: tl.constexpr, POLY: tl.constexpr,
    BASIS: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr,
):  # fmt: skip
    """[BM, BI * RG] in dtype, the columns in pairs: rows RG * group onwards of the basis at x[.., i]."""
    if BASIS == 0:
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
    """W_M of BI features, RG of their basis rows and BH heads, over the ROWS rows of one part; ONE_PASS:
    X_{M+1} as well.

    PRECISION: of products on matrix units; None: sums as they are. ONE_PASS needs H <= BH and R <= RG.
    Without it, spline, base_weight, places, pairs and t are not touched.
    """
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
        if M <= K or BASIS != 0:
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
            dx = slope(
                xs, wide, at, h0, spline, base_weight, grid, table, places, pairs, I, H,
                R, K, M + 1, STEPS, BASIS, BASE, SHORT, BH,
            )  # fmt: skip
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
