"""The CUDA kernels on the CPU: the very same .cu files, compiled by the host's compiler, against float64.

Threads of a block run as fibers from barrier to barrier, in rising and in falling order, so that a missing
barrier shows as a wrong number. tests/cuda_host/sanitize.py runs them as real threads, under TSan and ASan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product

import pytest
import torch

import cuda_host
from cases import COVERING, HALF, OPS, TABLE, Case, build
from cuda_host import sanitize
from cuda_host.checks import check_dense, dense_runs
from golden import FILES, check_layer
from harness import check_op, child, run_op, threads

pytestmark = pytest.mark.skipif(cuda_host.why_not() is not None, reason=str(cuda_host.why_not()))


@pytest.fixture(scope="module", autouse=True)
def _backend() -> Iterator[None]:
    """The emulated kernels as a backend of that name, while this module's tests run; torch on one thread."""
    with cuda_host.registered(), threads(1):
        yield


# `make test` has the cases of tests/mutations/check_cuda.py, which see every fault of the list in both orders
@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_gather(op: str) -> None:
    """The gather path on every case of the table, threads in either order."""
    for n, case in enumerate(TABLE):
        with cuda_host.options(path="gather", mode=("rising", "falling")[n % 2]):
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


WIDE = [
    Case(70, 70, 72, 5, 3, 0, side=True),  # aligned rows: asynchronous copies; inputs in parts
    Case(70, 9, 136, 20, 3, 0, "adaptive", dtype=HALF[0], x_dtype=torch.float32),
    Case(200, 5, 64, 12, 2, 1, "adaptive", "nan"),
    Case(65, 35, 64, 5, 3, 0, points="inf"),
    Case(1100, 2, 64, 60, 1, 0, side=True),
    Case(130, 40, 200, 5, 3, 1, dtype=HALF[1]),
    Case(70, 100, 136, 5, 3, 0, side=True, dtype=HALF[0]),  # the ring of knot panels wraps
    Case(70, 100, 136, 5, 3, 0, dtype=HALF[1]),
    Case(129, 130, 72, 89, 3, 0, "adaptive"),  # enough blocks for the input's gradient to take large tiles
    Case(130, 1530, 8, 3, 2, 0, "ranges", dtype=HALF[1]),
]


@pytest.mark.long
@pytest.mark.parametrize("tf32", (False, True), ids=("strict", "tf32"))
@pytest.mark.parametrize("op", OPS)
def test_dense(op: str, tf32: bool) -> None:
    """The dense path on the cases of the table that cover it, as far as it can run, and on its own.

    Threads take turns in rising or in falling order, or copies land at once, which a stage still in use would
    not survive; strict float32 and TF32 see each case in another of these.
    """
    cases = [case for case in [*COVERING, *WIDE] if dense_runs(op, case)]
    if tf32:
        cases = [case for case in cases if case.dtype == torch.float32]
    assert len(cases) > 10
    for n, case in enumerate(cases, tf32):
        with cuda_host.options(path="dense", tf32=tf32, mode=("rising", "falling", "early")[n % 3]):
            check_dense(op, case, tf32)


@pytest.mark.long
@pytest.mark.parametrize("order", (3, 4))
def test_dense_with_the_general_loop(order: int) -> None:
    """The forward kernel as it is on sm_90 (3) and sm_100 (4): fewer orders have a loop of their own."""
    with cuda_host.options(path="dense", flags=(f"-DKAN_PLAIN_ORDER={order}",)):
        for case in [*WIDE, Case(70, 40, 136, 5, 2, 0, dtype=HALF[0])]:
            if case.dtype in HALF and dense_runs("forward", case):
                check_dense("forward", case, False)


@pytest.mark.parametrize("dtype", HALF)
def test_negative_zero(dtype: torch.dtype) -> None:
    """x = -0 at a knot that is 0, among knots that are not uniform."""
    case = Case(70, 9, 72, 5, 3, 0, "adaptive", dtype=dtype, x_dtype=torch.float32)
    inputs = build(case)
    grid = inputs.grid - inputs.grid[:, 4:5]
    inputs = dataclasses.replace(inputs, x=torch.full_like(inputs.x, -0.0), grid=grid)
    with cuda_host.options(path="dense"):
        results = run_op(cuda_host.NAME, "backward", inputs) + run_op(cuda_host.NAME, "forward", inputs)
    expected = run_op("reference", "backward", inputs) + run_op("reference", "forward", inputs)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.05 * theirs.float().abs().max())


def test_no_outputs() -> None:
    """Nothing to make: empty results, and an input's gradient of zeros."""
    x, grid = torch.rand(5, 3), torch.arange(12.0).expand(3, 12).contiguous()
    weight, base, g = torch.empty(3, 8, 0), torch.empty(3, 0), torch.empty(5, 0)
    assert cuda_host.kan_linear(x, None, weight, base, None, grid, 8, 3, 1, 0, 0).shape == (5, 0)
    assert torch.equal(
        cuda_host.kan_linear_grad_input(x, weight, base, g, grid, 8, 3, 1, 1, 0), torch.zeros(5, 3)
    )
    assert torch.equal(
        cuda_host.kan_linear_backward(x, weight, base, g, grid, 8, 3, 1, 0, 0)[0], torch.zeros(5, 3)
    )


def test_strict_is_not_tf32() -> None:
    """The tolerance of strict float32 is one that a TF32 product fails: three products are made."""
    with cuda_host.options(path="dense", tf32=True), pytest.raises(AssertionError):
        check_dense("forward", WIDE[0], False)


def test_dense_refuses() -> None:
    """Asked for where it cannot run, the dense path raises."""
    with cuda_host.options(path="dense"), pytest.raises(RuntimeError):
        run_op(cuda_host.NAME, "forward", build(Case(order=5)))


@pytest.mark.parametrize(
    "case",
    [LONG[3], pytest.param(LONG[4], marks=pytest.mark.long), Case(200, 9, 100, 6, 5, 1, dtype=HALF[0])],
    ids=lambda c: c.name,
)
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


@pytest.mark.parametrize("name", FILES)
def test_golden_numbers(name: str) -> None:
    """The golden fixtures through autograd: y, every gradient, the second order."""
    check_layer(cuda_host.NAME, name)


# (shape, path) of a backward pass of 1000 rows, and the blocks that each of its kernels must have
SMALL = {
    "dense": (Case(1000, 64, 64, 5, 3, 0), "dense", {"dense_input": 64, "dense_weight": 128}),
    "gather": (Case(1000, 64, 10, 5, 3, 0), "gather", {"gather_backward": 48}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_small_batches_fill_a_card(name: str) -> None:
    """A batch of 1000 rows is enough for more than a few processors, and is added up to the same numbers."""
    case, path, expected = SMALL[name]
    with cuda_host.options(path=path):
        if path == "dense":
            check_dense("backward", case, False)
        else:
            check_op(cuda_host.NAME, "backward", case, build(case))
    for kernel, blocks in expected.items():
        assert cuda_host.blocks(kernel) >= blocks, kernel


def test_the_emulator_sees_faults() -> None:
    """A barrier that half of the threads skip, and an operation of only some lanes, end with a message."""
    code = """
import cuda_host
cuda_host.library(flags=()).kan_cuda_host_fault({})
"""
    assert "never reach" in child(code.format(0), ok=False)
    assert "different instructions" in child(code.format(1), ok=False)


@pytest.mark.long
@pytest.mark.parametrize("path", ("gather", "dense"))
@pytest.mark.parametrize("kind", ("address", "thread"))
def test_sanitizers(kind: str, path: str) -> None:
    """Every kernel with operating-system threads for its own, under ASan and UBSan, and under TSan."""
    sanitize.run(kind, sanitize.CASES[path], path)
