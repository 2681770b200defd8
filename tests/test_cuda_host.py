"""The CUDA kernels on the CPU: the very same .cu files, compiled by the host's compiler, against float64.

Threads of a block run as fibers from barrier to barrier, once in rising and once in falling order, so a barrier that
is missing shows as a wrong number. tests/cuda_host/sanitize.py runs them as real threads under TSan, and under ASan.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cuda_host
import pytest
import test_golden
import torch
from cases import HALF, OPS, TABLE, Case, build
from harness import check_op, child, run_op, threads

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


@pytest.mark.parametrize("case", [LONG[3], LONG[4], Case(200, 9, 100, 6, 5, 1, dtype=HALF[0])], ids=lambda c: c.name)
def test_same_bits(case: Case) -> None:
    """The order in which threads run changes no bit."""
    for op in OPS:
        inputs, results = build(case), []
        for mode in ("rising", "falling"):
            with cuda_host.options(mode=mode):
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
