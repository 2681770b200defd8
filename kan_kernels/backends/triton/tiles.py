"""Device functions that load tiles, multiply them and round them, and what NaN does to a result."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, INFINITE: tl.constexpr = False):
    """Return acc + a @ b, in acc's dtype. The interpreter would multiply the bit patterns of bfloat16.

    "tf32x3" is three products of TF32 parts, which start from zero in the tensor core, which truncates, and
    add acc by ordinary additions. What is infinite becomes NaN there, but in an a that may be INFINITE.
    """
    if INTERPRETED and a.dtype == tl.bfloat16:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if PRECISION == "tf32x3":
        high_a, high_b = high_part(a), high_part(b)
        low_a, low_b = a - high_a, b - high_b
        if INFINITE:
            low_a = tl.where(low_a == low_a, low_a, 0.0)
        out = tl.zeros(acc.shape, acc.dtype)
        out = tl.dot(low_a, high_b, out, input_precision="tf32", out_dtype=acc.dtype)
        out = tl.dot(high_a, low_b, out, input_precision="tf32", out_dtype=acc.dtype)
        out = tl.dot(high_a, high_b, out, input_precision="tf32", out_dtype=acc.dtype) + acc
    else:
        out = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return out


@triton.jit
def high_part(value):
    """Cut float32 to the bits of TF32, so that value - high_part(value) is exact."""
    return (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """Round value to nearest even in dtype, which the interpreter does not do for bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        out = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        out = value.to(dtype)
    return out


@triton.jit
def fused(a, b, c):
    """Return a b + c, rounded once. The interpreter rounds twice: there float32 goes through float64."""
    if INTERPRETED and a.dtype == tl.float32:
        out = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    else:
        out = tl.fma(a, b, c)
    return out


@triton.jit
def poison(x, side):
    """Return 0, or NaN where NaN in x (or inf in side) must reach every result, whatever the coefficients."""
    value = tl.where(x == x, 0.0, x)
    if side is not None:
        value += side * 0.0
    return value


@triton.jit
def load_rows(pointer, rows, columns, row_stride, column_stride, size, EVEN: tl.constexpr):
    """Load the tile pointer[rows, columns] of a strided matrix, float32 at least; 0 past `size` columns."""
    at = pointer + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
    if EVEN:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=columns[None, :] < size, other=0.0)
    if tile.dtype != tl.float64:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_part(pointer, rows, columns, row_stride, column_stride, end, size, EVEN: tl.constexpr):
    """Load the tile pointer[rows, columns] in its dtype; 0 from row `end`, unless EVEN from column `size`."""
    at = pointer + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
    if EVEN:
        tile = tl.load(at, mask=(rows < end)[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=(rows < end)[:, None] & (columns < size)[None, :], other=0.0)
    return tile


@triton.jit
def scale_all(values, factor):
    """Scale each value of the tuple by factor."""
    out = ()
    for j in tl.static_range(len(values)):
        out = out + (values[j] * factor,)
    return out


@triton.jit
def load_coefficients(tile, group, i, r, n, I, O, R: tl.constexpr, RG: tl.constexpr, EVEN_I: tl.constexpr,
                      EVEN_O: tl.constexpr):  # fmt: skip
    """Load rows RG * group + r of the inputs i, columns n; `tile` points at group 0. 0 past the ends."""
    r += group * RG
    at = tile + (group * RG) * O
    if R % RG == 0 and EVEN_I and EVEN_O:
        rows = tl.load(at)
    elif EVEN_O:
        rows = tl.load(at, mask=((i < I) & (r < R))[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=((i < I) & (r < R))[:, None] & (n < O)[None, :], other=0.0)
    return rows


@triton.jit
def load_base(tile, i, n, I, O, EVEN_I: tl.constexpr, EVEN_O: tl.constexpr):
    """Load the base's weights of the inputs i, columns n, at `tile`. 0 past the ends."""
    if EVEN_I and EVEN_O:
        rows = tl.load(tile)
    else:
        rows = tl.load(tile, mask=(i < I)[:, None] & (n < O)[None, :], other=0.0)
    return rows


@triton.jit
def lost_rows(x, side, m, I, x_row, x_column, side_row, side_column, BM: tl.constexpr, BK: tl.constexpr):
    """Return [BM]: the poison of whole rows, for a basis that is zero everywhere."""
    lost = tl.zeros((BM, BK), tl.float32 if x.dtype.element_ty != tl.float64 else tl.float64)
    for i0 in range(0, I, BK):
        i = i0 + tl.arange(0, BK)
        xs = load_rows(x, m, i, x_row, x_column, I, False)
        if side is not None:
            lost += poison(xs, load_rows(side, m, i, side_row, side_column, I, False))
        else:
            lost += poison(xs, None)
    return tl.sum(lost, 1)
