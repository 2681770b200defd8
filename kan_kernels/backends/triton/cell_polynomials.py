"""B-splines as the polynomials of their cells: the kernel that makes tables of them, and how they are read.

A cell's polynomial of a function takes 16 bytes for a cubic, and its value a lookup and three multiply-adds.
"""

import triton
import triton.language as tl

from .basis import find_cell


@triton.jit
def weighted(weight, value):
    """Return weight * value; 0 where the weight is, whatever the value."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def derived(series, knots, K: tl.constexpr, M: tl.constexpr):
    """Return the coefficients of the M-th derivative of a cell's spline, in order K - M, from its own.

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
    """Run de Boor's scheme at K - M - RIGHT times the cell's begin and RIGHT times its end.

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
    """Store pairs[i, n, h, p]: the M-th derivative on cell n - 1 is sum_p pairs[.., p] u^p w^(K-M-p), u goes
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
    """Return the two float32 numbers of an int64, the lower half first."""
    first = pair.to(tl.int32).to(tl.float32, bitcast=True)
    return first, (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


FIRST = tl.constexpr(0x4B400000 - 1)  # the bits of 12582912 in float32, and a cell less


@triton.jit
def uniform_place(x, i, table, I, K: tl.constexpr, LAST: tl.constexpr):
    """Return (cell of `polynomial_table` with x[.., i], plus FIRST; position from its centre, in cells).

    Rounded to nearest by an addition, which leaves the cell in the bits of the sum. NaN is before all knots.
    """
    scale, offset = tl.load(table + i) * 4.0, tl.load(table + I + i) * 4.0 + (K - 0.5)
    y = x * scale[None, :] + offset[None, :]
    y = tl.minimum(tl.maximum(y, -1.0), LAST)
    shifted = y + 12582912.0
    return shifted.to(tl.int32, bitcast=True), y - (shifted - 12582912.0)


@triton.jit
def exact_place(x, i, grid, places, LAST: tl.constexpr, STEPS: tl.constexpr):
    """Return (cell of `polynomial_table` that x[.., i] lies on, u, w); u and w are 0 where there is none."""
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
    """Return u^p w^(N-p), p = 0 .. N."""
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
    """Load a tuple of the four or two numbers at the pointers of one cell."""
    out = numbers_of(tl.load(pairs))
    if TERMS > 2:
        out = out + numbers_of(tl.load(pairs + 1))
    return out


@triton.jit
def series_at(v, c, TERMS: tl.constexpr):
    """Return sum_p c[p] v^p."""
    value = c[TERMS - 1]
    for p in tl.static_range(1, TERMS):
        value = value * v + c[TERMS - 1 - p]
    return value


@triton.jit
def sum_of(powers, c):
    """Return sum_p powers[p] c[p]."""
    value = powers[0] * c[0]
    for p in tl.static_range(1, len(powers)):
        value += powers[p] * c[p]
    return value
