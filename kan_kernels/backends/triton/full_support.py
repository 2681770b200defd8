"""Device functions of the bases of full support, every function at every x.

Rows come in groups of RG, in order, as tiles of x's shape; `join_rows` makes them the columns of the matrix
operand, in the order of `place.py`, without moving anything between threads. What a row needs of those
before it is a pair of tiles (last, before): T_{n-1}^(M) and T_{n-2}^(M), or, for Gaussians, 1/h twice; for
waves, which need none, x in turns, in two parts; for orthogonal polynomials tuples, a tile for each
derivative up to M.

BASIS is the code of a record in _core/bases.py; the plain versions are backends/reference/<name>.py.
"""

import triton
import triton.language as tl

from ..._core import bases
from .tiles import fused, narrow, scale_all

IS_LOCAL = tl.constexpr(tuple(basis.local for basis in bases.BY_CODE))  # at the places of their codes
RBF = tl.constexpr(bases.RBF.code)
CHEBYSHEV = tl.constexpr(bases.CHEBYSHEV.code)
FOURIER = tl.constexpr(bases.FOURIER.code)
ORTHOGONAL = tl.constexpr(bases.ORTHOGONAL.code)


@triton.jit
def gaussian(x, centre, inverse, M: tl.constexpr):
    """Return the M-th derivative of exp(-t^2), t = (x - centre) * inverse; 0 at +-inf.

    By the recurrence of the Hermite polynomials, B^(n+1) = -2/h (t B^(n) + n/h B^(n-1)).
    """
    t = (x - centre) * inverse
    if x.dtype == tl.float64:
        value = tl.exp(-t * t)
    else:
        value = tl.exp2(t * t * -1.44269504)
    if M > 0:
        t = tl.where(value == 0.0, 0.0, t)  # an infinite t must not meet a bell that is 0
        before = tl.zeros(value.shape, value.dtype)
        for n in tl.static_range(M):
            following = (t * value + (n * inverse) * before) * (-2.0 * inverse)
            before = value
            value = following
    return value


@triton.jit
def chebyshev(x, n, last, before, M: tl.constexpr):
    """Return T_n^(M)(x) from last = T_{n-1}^(M) and before = T_{n-2}^(M); NaN where x is not finite.

    By (n - M) T_n^(M) = 2 n x T_{n-1}^(M) - n (n + M - 2) / (n - 2) T_{n-2}^(M), see csrc/basis/chebyshev.h.
    """
    n += tl.zeros((), tl.int32)  # in the interpreter it may be a Python number
    nothing = x - x
    start = tl.full((), 1.0, x.dtype)
    for j in tl.static_range(2, M + 1):
        start = start * (2.0 * j)
    if M == 0:
        value = tl.where(n == 1, 1.0, 2.0).to(x.dtype) * x * last - before
        value = tl.where(n == 0, start + nothing, value)
    else:
        behind = tl.maximum(n - M, 1)  # where n <= M the recurrence is not used, where n = 2 before is 0
        slope = (2 * n).to(x.dtype) / behind.to(x.dtype)
        drop = (n * (n + M - 2)).to(x.dtype) / (tl.maximum(n - 2, 1) * behind).to(x.dtype)
        value = slope * x * last - drop * before
        value = tl.where(n <= M, tl.where(n == M, start, 0.0).to(x.dtype) + nothing, value)
    return value


@triton.jit
def nearest(v):
    """Return v rounded to a whole number, for |v| < 2^22."""
    if v.dtype == tl.float64:
        out = (v + 6755399441055744.0) - 6755399441055744.0
    else:
        out = (v + 12582912.0) - 12582912.0
    return out


@triton.jit
def turns_of(x):
    """Return x / 2 pi modulo 1 as (coarse, fine): whole numbers up to 512 times the coarse part are exact.

    1/2 pi has two parts, whose products with x are exact or small. Error in float32: 2^-48 |x| + 2^-38.
    """
    if x.dtype == tl.float64:
        first = tl.full((), 0.15915494309189535, x.dtype)
        second = tl.full((), -9.839338337591243e-18, x.dtype)
        unit = tl.full((), 2.0**43, x.dtype)
    else:
        first = tl.full((), 0.15915493667125702, x.dtype)
        second = tl.full((), 6.4206382432985265e-09, x.dtype)
        unit = tl.full((), 2.0**14, x.dtype)
    product = fused(x, first, tl.full((), 0.0, x.dtype))  # a plain product could be fused into what follows
    rest = fused(x, second, fused(x, first, -product))
    rest = rest - tl.floor(rest + 0.5)
    turns = product - tl.floor(product + 0.5)
    coarse = tl.floor((turns + rest) * unit + 0.5) / unit
    return coarse, (turns - coarse) + rest


@triton.jit
def wave(n, coarse, fine, R: tl.constexpr, M: tl.constexpr):
    """Return the M-th derivative of cos(g x), g = n + 1, n < R / 2, then of sin(g x); NaN if x is not finite.

    sin is cos a quarter turn earlier, a derivative is g times it a quarter turn later, and cos(2 pi f) for a
    part f of a turn is sin(2 pi (1/4 - |f|)), an odd series.
    """
    n += tl.zeros((), tl.int32)  # in the interpreter it may be a Python number
    late = n >= R // 2
    g = (tl.where(late, n - R // 2, n) + 1).to(coarse.dtype)
    quarters = tl.where(late, (M + 3) % 4, M % 4).to(coarse.dtype)
    turns = g * coarse + 0.25 * quarters
    part = (turns - nearest(turns)) + g * fine
    r = 0.25 - tl.abs(part)
    square = r * r
    if coarse.dtype == tl.float64:
        value = square * 0.0011309237482517961878 - 0.012031585942120627233
        value = value * square + 0.10422916220813984117
        value = value * square - 0.71812230177850051223
        value = value * square + 3.8199525848482821277
        value = value * square - 15.094642576822990392
    else:
        value = square * 3.8199525848482821277 - 15.094642576822990392
    value = value * square + 42.058693944897653145
    value = value * square - 76.705859753061385842
    value = value * square + 81.605249276075054203
    value = value * square - 41.341702240399760234
    value = value * square + 6.2831853071795864769
    value = value * r
    for _ in tl.static_range(M):
        value = value * g
    return value


@triton.jit
def inverse_width(grid, i, R: tl.constexpr):
    """Return 1/h of the features i, to the rounding of its dtype."""
    width = tl.load(grid + i.to(tl.int64) * (R + 1) + R)
    inverse = 1.0 / width
    if width.dtype != tl.float64:  # a float32 division is 2 ulp off: a step of Newton's
        inverse = tl.fma(inverse, tl.fma(-width, inverse, 1.0), inverse)
    return inverse


@triton.jit
def before_first(x, M: tl.constexpr):
    """Return (P_{-1}^(j), P_{-2}^(j)) for j = 0 .. M: 1 and zeros; NaN where x is not finite."""
    nothing = x - x
    last = (nothing + 1.0,)
    before = (nothing,)
    for _ in tl.static_range(M):
        last = last + (nothing,)
        before = before + (nothing,)
    return last, before


@triton.jit
def recurrence(x, a, b, c, last, before, M: tl.constexpr):
    """Return P_n^(j)(x), j = 0 .. M, by those before: P_n = (a x + b) P_{n-1} - c P_{n-2}, derived."""
    slope = a * x + b
    row = ()
    for j in tl.static_range(M + 1):
        value = slope * last[j] - c * before[j]
        if j > 0:
            value += (j * a) * last[j - 1]
        row = row + (value,)
    return row


@triton.jit
def first_state(x, i, grid, R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr):
    """Return (last, before) for row 0 of x[.., i]."""
    if BASIS == RBF:
        last = inverse_width(grid, i, R)[None, :]
        before = last
    elif BASIS == FOURIER:
        last, before = turns_of(x)
    elif BASIS == ORTHOGONAL:
        last, before = before_first(x, M)
    else:
        last = tl.zeros(x.shape, x.dtype)
        before = last
    return last, before


@triton.jit
def next_row(x, i, n, last, before, grid, R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr):
    """Return (row n of x[.., i], last, before); rows from R on are none, but can be multiplied by 0."""
    if BASIS == RBF:
        centre = tl.load(grid + i.to(tl.int64) * (R + 1) + tl.minimum(n, R - 1))
        row = gaussian(x, centre[None, :], last, M)
    elif BASIS == FOURIER:
        row = wave(tl.minimum(n, R - 1), last, before, R, M)
    elif BASIS == ORTHOGONAL:
        at = grid + i.to(tl.int64) * (3 * R) + tl.minimum(n, R - 1)
        a, b, c = tl.load(at)[None, :], tl.load(at + R)[None, :], tl.load(at + 2 * R)[None, :]
        rows = recurrence(x, a, b, c, last, before, M)
        before = last
        last = rows
        row = tl.where(n < R, rows[M], 0.0)
    else:
        row = tl.where(n < R, chebyshev(x, n, last, before, M), 0.0)
        before = last
        last = row
    return row, last, before


@triton.jit
def skip_rows(x, i, count, last, before, grid, R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr):
    """Return (last, before) for row `count`, from those for row 0."""
    if BASIS == CHEBYSHEV or BASIS == ORTHOGONAL:  # noqa: SIM109  # in the kernels there is no `in`
        for n in range(count):
            _, last, before = next_row(x, i, n, last, before, grid, R, M, BASIS)
    return last, before


@triton.jit
def next_rows(
    x, side, i, group, last, before, grid, dtype: tl.constexpr,
    R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr,
    BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Return ([BM, BI * RG] in dtype: rows RG * group onwards of x[.., i], times side or 1; last, before)."""
    values = ()
    for j in tl.static_range(RG):
        row, last, before = next_row(x, i, group * RG + j, last, before, grid, R, M, BASIS)
        values = values + (row,)
    if side is not None:
        values = scale_all(values, side)
    return join_rows(values, dtype, BM, BI, RG, PAIRS), last, before


@triton.jit
def rows_of_group(
    x, side, i, group, grid, dtype: tl.constexpr,
    R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr,
    BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Return the operand of `next_rows` for any group, without those before it."""
    last, before = first_state(x, i, grid, R, M, BASIS)
    if R > RG:
        last, before = skip_rows(x, i, group * RG, last, before, grid, R, M, BASIS)
    rows, last, before = next_rows(
        x, side, i, group, last, before, grid, dtype, R, M, BASIS, BM, BI, RG, PAIRS
    )
    return rows


@triton.jit
def join_halves(tiles):
    """Join tile j with tile j + half, in a new last dimension: a tuple half as long."""
    HALF: tl.constexpr = len(tiles) // 2
    joined = ()
    for j in tl.static_range(HALF):
        joined = joined + (tl.join(tiles[j], tiles[j + HALF]),)
    return joined


@triton.jit
def join_rows(values, dtype: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr,
              PAIRS: tl.constexpr):  # fmt: skip
    """Join RG tiles [BM, BI] to [BM, BI * RG] in dtype, in the order of `place.tile_pairs`."""
    tiles = ()
    for j in tl.static_range(RG):
        tiles = tiles + (tl.reshape(narrow(values[j], dtype), (BM, BI // 4, 4)),)
    for _ in tl.static_range(RG.bit_length() - 1):  # the highest digit first, so that the lowest is last
        tiles = join_halves(tiles)
    if PAIRS:
        rows = tl.permute(tl.reshape(tiles[0], (BM, BI // 4, 4, RG // 2, 2)), (0, 1, 3, 2, 4))
    else:
        rows = tl.permute(tl.reshape(tiles[0], (BM, BI // 4, 4, RG)), (0, 1, 3, 2))
    return tl.reshape(rows, (BM, BI * RG))


@triton.jit
def rows_at(x, r, i, grid, upto, R: tl.constexpr, M: tl.constexpr, BASIS: tl.constexpr):
    """Return [BM, BR]: the rows r, all below `upto`, of BM numbers x of feature i, for a scalar i."""
    if BASIS == RBF:
        centres = tl.load(grid + i * (R + 1) + tl.minimum(r, R - 1))
        rows = gaussian(x[:, None], centres[None, :], inverse_width(grid, i, R), M)
    elif BASIS == FOURIER:
        coarse, fine = turns_of(x)
        rows = wave(r[None, :], coarse[:, None], fine[:, None], R, M)
    elif BASIS == ORTHOGONAL:
        rows = tl.zeros((x.shape[0], r.shape[0]), x.dtype)
        states, previous = before_first(x, M)
        for n in range(tl.minimum(upto, R)):
            at = grid + i * (3 * R) + n
            following = recurrence(x, tl.load(at), tl.load(at + R), tl.load(at + 2 * R), states, previous, M)
            rows = tl.where((r == n)[None, :], following[M][:, None], rows)
            previous = states
            states = following
    else:
        rows = tl.zeros((x.shape[0], r.shape[0]), x.dtype)
        last = tl.zeros(x.shape, x.dtype)
        before = last
        for n in range(tl.minimum(upto, R)):
            value = chebyshev(x, n, last, before, M)
            rows = tl.where((r == n)[None, :], value[:, None], rows)
            before = last
            last = value
    return rows
