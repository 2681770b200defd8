"""The four ops of every backend against float64, on the shared case table; determinism, threads, 64-bit
indices.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from cases import COVERING, HALF, OPS, SMALL, TABLE, Case, build, sparse
from harness import (
    DEVICE,
    INTERPRETED,
    available_memory,
    bits,
    check_op,
    ops_of,
    poisoned_memory,
    run_op,
    threads,
)

CASES = sparse(COVERING, 9) if INTERPRETED else TABLE  # an interpreter is slow


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_op(backend: str, case: Case) -> None:
    """Every op on every case, outputs poisoned before the run."""
    inputs = build(case, DEVICE)
    for op in OPS:
        check_op(backend, op, case, inputs)


@pytest.mark.parametrize(
    "case", [Case(order=2, base=None), Case(dtype=torch.float64, bias=False)], ids=lambda c: c.name
)
def test_inputs_are_left_alone(backend: str, case: Case) -> None:
    """No op writes to its inputs, and no output shares memory with one."""
    inputs = build(case, DEVICE)
    before = build(case, DEVICE)
    for op in OPS:
        pointers = {t.data_ptr() for t in inputs.args(op) if isinstance(t, torch.Tensor)}
        assert all(t.data_ptr() not in pointers for t in run_op(backend, op, inputs) if t.numel())
        for got, want in zip(inputs.args(op), before.args(op), strict=True):
            assert not isinstance(got, torch.Tensor) or torch.equal(got, want)


def test_poison_works() -> None:
    """The trap itself: fresh tensors hold NaN, fresh blocks too large a number."""
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        assert torch.empty(50, 70, dtype=torch.bfloat16).isnan().all()


THREADED = [
    Case(700, 40, 33),
    Case(1500, 3, 5, side=True, points="knots"),
    Case(64, 300, 70, 20),
    Case(900, 2, 257, dtype=torch.float64),
    Case(333, 17, 64, dtype=torch.bfloat16, x_dtype=torch.float32),
    Case(5000, 1, 1, base=None, order=1),
    Case(200, 9, 100, 6, 5, 1, "adaptive", dtype=torch.float16),
]


@pytest.mark.parametrize("case", SMALL + THREADED, ids=lambda c: c.name)
def test_same_bits(fused: str, case: Case) -> None:
    """The same inputs give the same bits: run after run, with 1 thread, 2 and 3."""
    inputs = build(case, DEVICE)
    for op in OPS:
        first = [bits(t) for t in run_op(fused, op, inputs)]
        for count in (1, 2, 3, 2):
            with threads(count):
                again = [bits(t) for t in run_op(fused, op, inputs)]
            same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
            assert same, f"{op} differs with {count} threads"


@pytest.mark.parametrize("case", THREADED, ids=lambda c: c.name)
def test_strides_change_nothing(fused: str, case: Case) -> None:
    """The same numbers in other strides give the same bits."""
    plain, strided = build(case, DEVICE), build(case, DEVICE)
    for name in ("x", "s", "g", "spline_weight", "base_weight", "grid"):
        t = getattr(strided, name)
        if t is not None:
            setattr(strided, name, t.transpose(0, -1).contiguous().transpose(0, -1))
    for op in OPS:
        for a, b in zip(run_op(fused, op, plain), run_op(fused, op, strided), strict=True):
            assert torch.equal(bits(a), bits(b)), op


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *HALF), ids=str)
def test_backward_is_input_and_weight(fused: str, dtype: torch.dtype) -> None:
    """The one-pass kernel computes what the separate ones do, for every derivative order."""
    for m in range(4):
        case = Case(200, 21, 37, 6, 3, m, "adaptive", dtype=dtype, base=("silu", "identity", None)[m % 3])
        inputs = build(case, DEVICE)
        t, d_spline, d_base = run_op(fused, "backward", inputs)
        inputs.derivative = m + 1
        (t_alone,) = run_op(fused, "input", inputs)
        inputs.derivative, inputs.s = m, None
        weights = run_op(fused, "weight", inputs)
        eps = torch.finfo(dtype).eps
        for a, b in zip((t, d_spline, d_base), (t_alone, *weights), strict=True):
            torch.testing.assert_close(
                a, b, rtol=8 * eps, atol=64 * eps * (float(b.abs().max()) if b.numel() else 0.0)
            )


def test_concurrent_callers(backend: str) -> None:
    """Many Python threads at once get the same bits as one alone: no shared scratch buffer, no race."""
    cases = [replace(c, batch=c.batch // 3) for c in THREADED] * 3
    jobs = [(op, build(case, DEVICE)) for case in cases for op in OPS]
    alone = [[bits(t).clone() for t in run_op(backend, op, inputs)] for op, inputs in jobs]

    def work(job: tuple) -> list[torch.Tensor]:  # type: ignore[type-arg]
        return [bits(t) for t in run_op(backend, job[0], job[1])]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, jobs))
    for (op, _), a, b in zip(jobs, alone, together, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)), op


FAR = 2**31 + 1024  # elements: one more than a 32-bit index can say, and then some


@pytest.mark.skipif(
    available_memory() < 12 << 30, reason="reserves 8 GiB of address space: needs 12 GiB available"
)
@pytest.mark.parametrize("order", (3, 5))  # narrow cubic layers have kernels of their own
def test_strides_beyond_32_bits(fused: str, order: int) -> None:
    """Rows of x, s and g that lie more than 2^31 elements apart; only a few pages of them are ever
    touched.
    """
    small = build(Case(2, 3, 5, order=order, side=True, dtype=torch.float16), DEVICE)
    want = [run_op(fused, op, small) for op in OPS]
    arena = torch.empty(FAR + 64, dtype=torch.float16, device=DEVICE)
    for name in ("x", "s", "g"):
        t = getattr(small, name)
        view = arena.as_strided(t.shape, (FAR, 1))
        view.copy_(t)
        setattr(small, name, view)
        got = [run_op(fused, op, small) for op in OPS]
        for a, b in zip(sum(want, ()), sum(got, ()), strict=True):
            assert torch.equal(bits(a), bits(b)), name
        setattr(small, name, t)


# op, rows, in_features, out_features: a result of more than 2^31 elements, by the kernels for wide and narrow
# layers
HUGE = [
    ("forward", 2**15 + 3, 1, 2**16), ("forward", 2**28 + 3, 1, 8), ("input", 2**15 + 3, 2**16, 1),
    ("input", 2**15 + 3, 2**16, 9), ("weight", 1, 2**15 + 3, 2**15),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(available_memory() < 14 << 30, reason="holds a 4 GiB result: needs 14 GiB available")
@pytest.mark.parametrize("op,rows,features,width", HUGE)
def test_results_beyond_32_bits(fused: str, op: str, rows: int, features: int, width: int) -> None:
    """The last entries of a result of more than 2^31 elements are the same as those computed alone."""
    call, dtype = ops_of(fused)[op], torch.bfloat16
    numbers = 2, 0, 0, 0, 0  # functions, order, base, derivative, basis
    knots = torch.tensor([[-1.0, 0.0, 1.0]], device=DEVICE)
    x = (torch.rand(2, features, device=DEVICE) * 2 - 1).to(dtype)
    c = torch.randn(features if op == "input" else 1, 2, width, device=DEVICE).to(dtype)
    g = torch.randn(1, width, device=DEVICE).to(dtype)
    x = x[:1].expand(rows, -1) if op == "input" else x[torch.arange(rows) % 2] if op == "forward" else x[:1]

    def run(keep_rows: slice, keep_features: slice) -> torch.Tensor:
        part = x[keep_rows, keep_features]
        grid = knots.expand(part.shape[1], -1)
        if op == "forward":
            return call(part, None, c, None, None, grid, *numbers)
        if op == "input":
            return call(part, c, None, g.expand(part.shape[0], -1), grid, *numbers)
        return call(part, None, g, grid, *numbers)[0]

    everything, last = slice(None), slice(-2, None)
    big = run(everything, everything)
    tail = run(last, everything) if op != "weight" else run(everything, last)
    assert big.numel() > 2**31 and bool((tail != 0).any())
    assert torch.equal(big[-2:], tail)
    assert not bool(big[:: max(1, big.shape[0] // 50)].isnan().any())
