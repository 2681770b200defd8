"""The CUDA kernels on the CPU: the very same .cu files, compiled by the host's compiler, against float64.

Threads of a block run as fibers from barrier to barrier, once in rising and once in falling order, so a barrier that
is missing shows as a wrong number. tests/cuda_host/sanitize.py runs them as real threads under TSan, and under ASan.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import cuda_host
import oracle
import pytest
import test_golden
import torch
from cases import HALF, OPS, TABLE, Case, build
from harness import (
    assert_close,
    check_op,
    child,
    compute_dtype,
    expected_dtypes,
    poisoned_memory,
    relative_error,
    run_op,
    threads,
)

import kan_kernels.backends

pytestmark = pytest.mark.skipif(cuda_host.why_not() is not None, reason=str(cuda_host.why_not()))


@pytest.fixture(scope="module", autouse=True)
def _backend() -> Iterator[None]:
    """The emulated kernels as a backend of that name, while this module's tests run; torch on one thread."""
    name = f"kan_kernels.backends.{cuda_host.NAME}"
    sys.modules[name] = kan_kernels.backends.BACKENDS[cuda_host.NAME] = cuda_host
    with threads(1):
        yield
    del sys.modules[name], kan_kernels.backends.BACKENDS[cuda_host.NAME]


@pytest.mark.parametrize("mode", ("rising", "falling"))
@pytest.mark.parametrize("op", OPS)
def test_gather(op: str, mode: str) -> None:
    """The gather path on every case of the table."""
    with cuda_host.options(path="gather", mode=mode):
        for case in TABLE:
            check_op(cuda_host.NAME, op, case, build(case))


# shapes that take the branches which the table's do not
LONG = [
    Case(70, 2, 3, 500, 3, 0, "adaptive", side=True),  # more coefficient rows than shared memory holds
    Case(40, 1, 20, 900, 3, 1, "adaptive", dtype=torch.float64),
    Case(33, 2, 40, 1500, 2, 0, points="nan"),
    Case(9, 70, 33, 6, 3, 0, side=True),  # features in parts
    Case(5000, 3, 2, 5, 3, 0),  # rows in parts
    Case(4100, 2, 17, 5, 10, 0, "adaptive", "nan"),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", LONG, ids=lambda c: c.name)
def test_gather_long(op: str, case: Case) -> None:
    """Long grids, split features and split rows."""
    with cuda_host.options(path="gather"):
        check_op(cuda_host.NAME, op, case, build(case))


def dense_runs(op: str, case: Case) -> bool:
    """What csrc/cuda/kernels.cu says of the dense path."""
    highest = case.derivative + (op == "backward")
    knots = case.grid_size + 2 * case.order + 1
    limit = 1 if case.dtype == torch.float16 else 3
    return case.dtype != torch.float64 and 1 <= case.order <= 3 and knots <= 96 and highest <= limit


# What rounding both operands costs, in units of the sums of absolute values: half a unit in the last place of each.
OPERANDS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-11}


def check_dense(op: str, case: Case, tf32: bool) -> None:
    """As check_op; 16-bit and TF32 operands are rounded, strict float32 has no more slack than everywhere."""
    inputs = build(case)
    with poisoned_memory():
        got = run_op(cuda_host.NAME, op, inputs)
    wide, narrow = inputs.to(torch.float64), inputs.to(compute_dtype(case.dtype))
    truth, plain = run_op("reference", op, wide), run_op("reference", op, narrow)
    scales = oracle.magnitude(op, wide)
    rounded = 0.0 if case.dtype == torch.float32 and not tf32 else OPERANDS[case.dtype]
    terms = case.batch if case.layout == "expanded" else 0
    for value, dtype, true, scale, same in zip(got, expected_dtypes(op, case), truth, scales, plain, strict=True):
        error = relative_error(same, true, scale) + rounded
        assert_close(value, true, scale, error, dtype, f"dense {op}[{case.name}]", terms)


WIDE = [
    Case(70, 70, 72, 5, 3, 0, side=True),  # aligned rows: asynchronous copies; inputs in parts
    Case(70, 9, 136, 20, 3, 0, "adaptive", dtype=HALF[0], x_dtype=torch.float32),
    Case(200, 5, 64, 12, 2, 1, "adaptive", "nan"),
    Case(65, 35, 64, 5, 3, 0, points="inf"),
    Case(1100, 2, 64, 60, 1, 0, side=True),
    Case(130, 40, 200, 5, 3, 1, dtype=HALF[1]),
]


@pytest.mark.parametrize("tf32", (False, True), ids=("strict", "tf32"))
@pytest.mark.parametrize("op", OPS)
def test_dense(op: str, tf32: bool) -> None:
    """The dense path on every case of the table that it can run, and on its own."""
    cases = [case for case in [*TABLE, *WIDE] if dense_runs(op, case)]
    if tf32:
        cases = [case for case in cases if case.dtype == torch.float32]
    assert len(cases) > 50
    with cuda_host.options(path="dense", tf32=tf32, mode="falling" if tf32 else "rising"):
        for case in cases:
            check_dense(op, case, tf32)


def test_strict_is_not_tf32() -> None:
    """The tolerance of strict float32 is one that a TF32 product fails: three products are made."""
    with cuda_host.options(path="dense", tf32=True), pytest.raises(AssertionError):
        check_dense("forward", WIDE[0], False)


def test_dense_refuses() -> None:
    """Asked for where it cannot run, the dense path raises."""
    with cuda_host.options(path="dense"), pytest.raises(RuntimeError):
        run_op(cuda_host.NAME, "forward", build(Case(order=5)))


@pytest.mark.parametrize("case", [LONG[3], LONG[4], Case(200, 9, 100, 6, 5, 1, dtype=HALF[0])], ids=lambda c: c.name)
def test_same_bits(case: Case) -> None:
    """The order in which threads run changes no bit."""
    for op, path in product(OPS, ("gather", "dense")):
        if path == "dense" and not dense_runs(op, case):
            continue
        inputs, results = build(case), []
        for mode in ("rising", "falling"):
            with cuda_host.options(path=path, mode=mode):
                results.append(run_op(cuda_host.NAME, op, inputs))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b), op


@pytest.mark.parametrize("name", test_golden.FILES)
def test_golden_numbers(name: str) -> None:
    """The golden fixtures through autograd: y, every gradient, the second order."""
    test_golden.test_golden(cuda_host.NAME, name)


def test_the_emulator_sees_faults() -> None:
    """A barrier that half of the threads skip, and an operation that only some lanes reach, end with a message."""
    code = """
import cuda_host
cuda_host.library(flags=()).kan_cuda_host_fault({})
"""
    assert "never reach" in child(code.format(0), ok=False)
    assert "different instructions" in child(code.format(1), ok=False)
