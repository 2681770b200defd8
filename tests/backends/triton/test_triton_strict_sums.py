"""Strict float32 in Triton: how long a sum stays in the tensor core, which cuts it short, and the cost.

A matrix instruction truncates its sum where ordinary additions round. Over the contraction of a whole layer
that is a bias beyond the contract, at most twice the error of plain float32. So the products of a tile must
start from zero and join the others by an ordinary addition, which is what the compilers that are allowed here
make of `tl.dot(a, b, acc, "tf32x3")`: read from every strict kernel, for each kind of matrix instruction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile with")
LONGEST = 128  # of the contraction, in one sum of the tensor core
KERNELS = ("dense_forward", "dense_input", "dense_backward", "base_gradient")

_DOT = re.compile(r"(%\w+) = (?:tt\.dot|ttng\.warp_group_dot) %\S+, %\S+, (%[\w#]+)")
_TENSOR_MEMORY_DOT = re.compile(r"ttng\.tc_gen5_mma %\S+, %\S+, (%\w+), (%\w+),")
_PASSED_ON = (  # the value, and the one that it comes from
    re.compile(r"(%\w+)(?::2)? = ttng\.warp_group_dot_wait (%[\w#]+)"),
    re.compile(r"(%\w+) = arith\.select %\S+, %\S+, (%[\w#]+)"),  # NaN of the small products
    re.compile(r"(%\w+) = ttg\.convert_layout (%[\w#]+)"),
    re.compile(r"(%\w+)(?:, %\w+)? = ttng\.tmem_load (%\w+)"),
)
_STORED = re.compile(r"ttng\.tmem_store (%[\w#]+), (%\w+)")
_ZERO = re.compile(r"(%\w+) = arith\.constant (?:dense<0\.000000e\+00>|false)")


def chains(ttgir: str) -> Iterator[tuple[int, bool]]:
    """Of each matrix product: the length of the contraction summed in the core so far, and whether that sum
    began at zero (else at a value from outside, such as the sum of the loop's earlier turns)."""
    zeros = {found[1]: (0, True) for found in map(_ZERO.search, ttgir.splitlines()) if found}
    known = dict(zeros)
    for line in ttgir.splitlines():
        if "scf.for" in line:  # what was there before is there in every turn
            known = dict(zeros)
        for pattern in _PASSED_ON:
            if (found := pattern.search(line)) and _name(found[2]) in known:
                known[found[1]] = known[_name(found[2])]
        if found := _STORED.search(line):
            known[found[2]] = known.get(_name(found[1]), (0, False))
        if found := _DOT.search(line):
            result, begun = found[1], known.get(_name(found[2]), (0, False))
        elif found := _TENSOR_MEMORY_DOT.search(line):
            result, begun = found[1], known.get(found[1], (0, False))
            if found[2] in zeros:  # the sum so far is not used
                begun = (0, True)
        else:
            continue
        length = int(re.search(r": !?(?:tensor|ttg\.memdesc)<\d+x(\d+)xf32", line)[1])  # type: ignore[index]
        known[result] = begun[0] + length, begun[1]
        yield known[result]


def _name(value: str) -> str:
    return value.removesuffix("#0")


@pytest.mark.long
@pytest.mark.parametrize("arch", (80, 90, 100))
def test_strict_sums_leave_the_tensor_core(arch: int) -> None:
    """mma.sync, wgmma and tcgen05: three products of a tile, from zero, then an ordinary addition."""
    from kan_kernels.backends.triton import compile_only

    seen = set()
    for spec in compile_only.specializations():
        if spec.dtype == "strict fp32" and spec.kernel in KERNELS and spec.options == "[512,512] G=5":
            found = list(chains(compile_only.compile_spec(spec, arch).ttgir))
            assert len(found) >= 3 and len(found) % 3 == 0, spec
            assert all(zero and length <= 3 * LONGEST for length, zero in found), (spec, found)
            seen.add(spec.kernel)
    assert seen == set(KERNELS)


@pytest.mark.long
@pytest.mark.parametrize("arch", (80, 90, 100))
def test_other_sums_stay_in_it(arch: int) -> None:
    """The reading can tell: in TF32 and in 16 bits the loop's sum goes from product to product."""
    from kan_kernels.backends.triton import compile_only

    for dtype in ("tf32", "bf16"):
        spec = next(
            s for s in compile_only.specializations() if (s.kernel, s.dtype) == ("dense_forward", dtype)
        )
        text = compile_only.compile_spec(spec, arch).ttgir.replace("xbf16", "xf32")
        assert not any(zero for _, zero in chains(text)), dtype


def _tf32(value: np.ndarray) -> np.ndarray:
    return ((value.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _cut(value: np.ndarray) -> np.ndarray:
    """float64 to float32 towards zero, as the tensor core's sums."""
    near = value.astype(np.float32)
    return np.where(np.abs(near) > np.abs(value), np.nextafter(near, np.float32(0)), near)


def _in_the_core(terms: list[tuple[np.ndarray, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """start + a . b for each (a, b), eight products an instruction, cut after each."""
    for a, b in terms:
        for k in range(0, a.shape[1], 8):
            exact = (a[:, k : k + 8].astype(np.float64) * b[:, k : k + 8]).sum(1)
            start = _cut(start.astype(np.float64) + exact)
    return start


def _strict(a: np.ndarray, b: np.ndarray, tile: int) -> np.ndarray:
    """Row by row a . b: three TF32 products, `tile` of the contraction in the core at a time."""
    total = np.zeros(len(a), np.float32)
    for k in range(0, a.shape[1], tile):
        x, y = a[:, k : k + tile], b[:, k : k + tile]
        high, w_high = _tf32(x), _tf32(y)
        low, w_low = _tf32(x - high), _tf32(y - w_high)
        total = total + _in_the_core([(low, w_high), (high, w_low), (high, w_high)], np.zeros_like(total))
    return total


def test_what_a_truncating_sum_costs() -> None:
    """In a model of the core: tiles as they are keep to twice the error of plain float32, one long sum does
    not. Sums of one sign, in which nothing averages out; 512 inputs of 9 rows."""
    draw = np.random.default_rng(0)
    a, b = (draw.uniform(0.0, 1.0, (64, 4608)).astype(np.float32) for _ in range(2))
    right = (a.astype(np.float64) * b).sum(1)

    def error(value: np.ndarray) -> float:
        return float(np.abs(value - right).max() / right.mean())

    plain = np.zeros(64, np.float32)
    for k in range(4608):
        plain = (plain.astype(np.float64) + a[:, k].astype(np.float64) * b[:, k]).astype(np.float32)
    assert error(_strict(a, b, 4608)) > 4 * error(plain)
    for tile in (32, 64, LONGEST):
        assert error(_strict(a, b, tile)) < 2 * error(plain), tile
