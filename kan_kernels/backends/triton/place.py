"""Device functions that turn a window of k+1 values into rows of the matrix operand, in registers.

The contraction runs over pairs (input i, row r). The order of these pairs within a tile is free, as long as
both operands agree. It is chosen so that the thread of a matrix instruction that holds one column of an input
holds all rows of that input: it evaluates cell and values once, and every move of a value to its row stays in
its registers. Threads of a quad hold columns by their lane, so the lane counts inputs:

    pairs    [BI/4, RG/2, 4 lanes, 2]   16-bit operands, and accumulators:  row = 2 * second + last
    singles  [BI/4, RG,   4 lanes]      32-bit operands

A window starts at row first = 4 quad + 2 two + odd. Its values are shifted by odd, then by two, then whole
groups of four rows are selected by quad: that takes fewer selections than comparing every row with first.
"""

import triton
import triton.language as tl


@triton.jit
def tile_pairs(BI: tl.constexpr, RG: tl.constexpr, PAIRS: tl.constexpr):
    """Return (input, row) of each of the BI * RG columns of a tile."""
    column = tl.arange(0, BI * RG)
    rest = column % (4 * RG)
    if PAIRS:
        i = column // (4 * RG) * 4 + (rest // 2) % 4
        r = rest // 8 * 2 + rest % 2
    else:
        i = column // (4 * RG) * 4 + rest % 4
        r = rest // 4
    return i, r


@triton.jit
def shift(values, by, N: tl.constexpr):
    """Move the tuple up by N places where the tile `by` is true; vacated places are 0."""
    L: tl.constexpr = len(values)
    zero = tl.zeros(values[0].shape, values[0].dtype)
    out = ()
    for j in tl.static_range(L + N):
        if j < N:
            out = out + (tl.where(by, zero, values[j]),)
        elif j < L:
            out = out + (tl.where(by, values[j - N], values[j]),)
        else:
            out = out + (tl.where(by, values[j - N], zero),)
    return out


@triton.jit
def select(quad, words, group, OF: tl.constexpr, PART: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr,
           RG: tl.constexpr):  # fmt: skip
    """Return word PART of each group of four rows, [BM, BI/4, RG/4, 4]; `words` holds OF at a time from quad
    on.
    """
    NQ: tl.constexpr = RG // 4
    n = (tl.arange(0, NQ) + group * NQ).to(quad.dtype)[None, None, :, None]
    quads = tl.reshape(quad, (BM, BI // 4, 1, 4))
    out = tl.zeros((BM, BI // 4, NQ, 4), words[0].dtype)
    for c in tl.static_range((len(words) + OF - 1) // OF):
        if OF * c + PART < len(words):
            word = tl.reshape(words[OF * c + PART], (BM, BI // 4, 1, 4))
            out = tl.where(quads == n - c, word, out)
    return out


@triton.jit
def place_rows(quad, two, odd, values, group, BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr,
               PAIRS: tl.constexpr):  # fmt: skip
    """Place rows RG * group onwards of the window's inputs: [BM, BI * RG], in the values' dtype."""
    v = shift(shift(values, odd, 1), two, 2)
    low = tl.join(select(quad, v, group, 4, 0, BM, BI, RG), select(quad, v, group, 4, 1, BM, BI, RG))
    high = tl.join(select(quad, v, group, 4, 2, BM, BI, RG), select(quad, v, group, 4, 3, BM, BI, RG))
    rows = tl.join(low, high)  # [BM, BI/4, RG/4, lane, low digit, high digit of the row]
    if PAIRS:
        rows = tl.permute(rows, (0, 1, 2, 5, 3, 4))
    else:
        rows = tl.permute(rows, (0, 1, 2, 5, 4, 3))
    return tl.reshape(rows, (BM, BI * RG))


@triton.jit
def place_half_rows(quad, two, odd, values, group, dtype: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr,
                    RG: tl.constexpr):  # fmt: skip
    """Place [BM, BI * RG] in pairs, 16-bit: two rows are rounded into one 32-bit word and move together."""
    bits = ()
    for j in tl.static_range(len(values)):
        bits = bits + (round_to_high_half(values[j], dtype),)
    bits = shift(bits, odd, 1)
    words = ()
    for w in tl.static_range((len(bits) + 1) // 2):
        word = (bits[2 * w] >> 16) & 0xFFFF
        if 2 * w + 1 < len(bits):
            word = word | (bits[2 * w + 1] & -65536)
        words = words + (word,)
    words = shift(words, two, 1)
    first = select(quad, words, group, 2, 0, BM, BI, RG)
    second = select(quad, words, group, 2, 1, BM, BI, RG)
    rows = tl.join(
        tl.join(first.to(tl.int16), (first >> 16).to(tl.int16)),
        tl.join(second.to(tl.int16), (second >> 16).to(tl.int16)),
    )
    # [BM, BI/4, RG/4, lane, word, half] -> [BM, BI/4, RG/4, word, lane, half]
    rows = tl.permute(rows.to(dtype, bitcast=True), (0, 1, 2, 5, 3, 4))
    return tl.reshape(rows, (BM, BI * RG))


@triton.jit
def round_to_high_half(value, dtype: tl.constexpr):
    """Round float32 to a 16-bit dtype, as the high half of an int32 whose low half is noise.

    bfloat16 rounds ties away from zero; nearest otherwise, as the hardware's conversion does.
    """
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True) + 0x8000
    else:
        bits = value.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return bits


@triton.jit
def place(quad, two, odd, values, group, dtype: tl.constexpr, BM: tl.constexpr, BI: tl.constexpr,
          RG: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Place [BM, BI * RG] in the operand's dtype."""
    if dtype == tl.bfloat16 or dtype == tl.float16:
        rows = place_half_rows(quad, two, odd, values, group, dtype, BM, BI, RG)
    else:
        rows = place_rows(quad, two, odd, values, group, BM, BI, RG, PAIRS)
    return rows


@triton.jit
def sum_rows(rows, BM: tl.constexpr, BI: tl.constexpr, RG: tl.constexpr):
    """Sum each input's rows of a tile [BM, BI * RG] in pairs: [BM, BI]."""
    rows = tl.reshape(rows, (BM, BI // 4, RG // 2, 4, 2))
    return tl.reshape(tl.sum(tl.sum(rows, 4), 2), (BM, BI))


@triton.jit
def times_columns(factor, tile, n: tl.constexpr, BM: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Multiply columns WIDTH * n onwards of a tile [BM, N], which stay with their threads, by [BM, WIDTH].

    A sum with -0.0, which the compiler leaves out: a split tile would go through shared memory.
    """
    if N == WIDTH:
        out = tile * factor
    else:
        products = tl.reshape(tile, (BM, N // WIDTH, WIDTH)) * factor[:, None, :]
        wanted = (tl.arange(0, N // WIDTH) == n)[None, :, None]
        out = tl.sum(tl.where(wanted, products, -0.0), 1)
    return out


@triton.jit
def spread(per_input, BI: tl.constexpr, RG: tl.constexpr, PAIRS: tl.constexpr):
    """Spread one number an input over each of its rows: [BI * RG]."""
    if PAIRS:
        rows = tl.reshape(per_input, (BI // 4, 1, 4, 1)) + tl.zeros((BI // 4, RG // 2, 4, 2), per_input.dtype)
    else:
        rows = tl.reshape(per_input, (BI // 4, 1, 4)) + tl.zeros((BI // 4, RG, 4), per_input.dtype)
    return tl.reshape(rows, (BI * RG,))
