"""The kernel that turns uniform knots into the two numbers a feature that `basis.uniform_window` needs."""

import triton
import triton.language as tl


@triton.jit
def uniform_table(grid, table, I, K: tl.constexpr, LAST: tl.constexpr, TOLERANCE: tl.constexpr,
                  BI: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Store table[0, i] and table[1, i], scale and offset: x * scale + offset = (cells from knot K to x) / 4.

    table[2, i]: 0, or NaN where a knot is farther from its uniform place than TOLERANCE of a cell.
    """
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    kept = i < I
    knots = grid + i.to(tl.int64) * (LAST + 1)
    first = tl.load(knots, mask=kept, other=0.0)
    last = tl.load(knots + LAST, mask=kept, other=1.0)
    step = (last - first) / LAST
    wrong = tl.zeros((BI, BK), tl.float32)
    for j0 in range(0, LAST, BK):
        j = j0 + tl.arange(0, BK)
        inside = kept[:, None] & (j < LAST)[None, :]
        knot = tl.load(knots[:, None] + j[None, :], mask=inside, other=0.0)
        off = tl.abs(knot - (first[:, None] + step[:, None] * j[None, :].to(tl.float32)))
        near = off <= TOLERANCE * step[:, None]
        wrong += tl.where(inside & (near == 0), float("nan"), 0.0)
    scale = 0.25 / step
    tl.store(table + i, scale, mask=kept)
    tl.store(table + I + i, -first * scale - 0.25 * K, mask=kept)
    tl.store(table + 2 * I + i, tl.sum(wrong, 1), mask=kept)


@triton.jit
def verdict(table, I, BLOCK: tl.constexpr):
    """Return 0, or NaN if any feature's knots are not uniform after all."""
    wrong = tl.zeros((BLOCK,), tl.float32)
    for i0 in range(0, I, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        wrong += tl.load(table + 2 * I + i, mask=i < I, other=0.0)
    return tl.sum(wrong, 0)
