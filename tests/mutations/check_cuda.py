"""The short tests of the CUDA kernels that a fault must fail: every kernel, both orders of threads."""

from __future__ import annotations

import torch

import cuda_host
from cases import HALF, OPS, Case, build
from cuda_host import networks
from cuda_host.checks import check_dense, dense_runs
from cuda_host.orthogonal import BFLOAT, F64, Example
from cuda_host.orthogonal import check as check_orthogonal
from harness import check_op

GATHER = [
    Case(37, 9, 20, 5, 3, 0, "adaptive", side=True),
    Case(40, 2, 12, 5, 2, 1, points="nan", base=None),
    Case(70, 3, 3, 4, 5, 0, "ranges", "knots", side=True),
    Case(9, 70, 33, 6, 3, 0),
    Case(2200, 2, 3, 5, 3, 0, side=True),
    Case(4200, 2, 3, 5, 3, 0),
    Case(33, 3, 40, 5, 1, 0, points="extension", dtype=torch.float64),
    Case(34, 3, 140, 5, 3, 0),  # more outputs than a warp holds at a time
]
DENSE = [
    Case(70, 100, 136, 5, 3, 0, "ranges", dtype=HALF[0]),  # the loop for uniform knots
    Case(70, 3, 136, 5, 3, 0, "ranges", "nan", base=None, dtype=HALF[0]),
    Case(70, 40, 136, 5, 3, 0, "adaptive", dtype=HALF[0]),
    Case(70, 40, 72, 5, 3, 0, side=True),
    Case(70, 9, 136, 20, 3, 0, "adaptive", "knots", dtype=HALF[0], x_dtype=torch.float32, side=True),
    Case(70, 70, 72, 12, 3, 1, "adaptive", "nan"),
    Case(1100, 2, 64, 60, 1, 0, side=True),
    Case(130, 20, 200, 5, 2, 0, dtype=HALF[1]),
    Case(70, 100, 72, 5, 3, 1, "ranges", "nan", side=True, dtype=HALF[0]),
    Case(70, 40, 24, 9, 3, 0, side=True, dtype=HALF[0]),
    Case(129, 130, 8, 89, 3, 0, dtype=HALF[0]),  # enough blocks for the input's gradient to take large tiles
]
FULL_SUPPORT = [
    Case(40, 5, 20, 9, 0, 1, "adaptive", side=True, basis="rbf"),
    Case(70, 2, 3, 40, 0, 0, points="nan", dtype=torch.float64, basis="rbf"),  # an input's gradient in parts
    Case(9, 60, 18, 1, 5, 0, points="inside", basis="chebyshev"),  # inputs in parts
    Case(2200, 1, 70, 1, 8, 0, points="inside", base=None, basis="chebyshev"),  # rows in parts
    Case(70, 5, 136, 9, 0, 0, side=True, dtype=HALF[0], basis="rbf"),  # matrix units
    Case(40, 3, 24, 1, 69, 0, points="inside", dtype=HALF[0], basis="chebyshev"),
]
ORTHOGONAL = [  # in registers, from the start, on matrix units
    Example(40, 21, 3, 18, 1),
    Example(9, 9, 2, 5, 4, F64, "laguerre"),
    Example(9, 70, 3, 24, dtype=BFLOAT),
]


def check_networks() -> None:
    """In one launch each way; NaN and infinities too."""
    for case in (*networks.CASES[:6], *networks.PRODUCTS):
        networks.check_products(case)
        example = networks.make(case)
        networks.check(*example, networks.emulated(*example))
    networks.check_special(networks.CASES[0])
    networks.check_special(networks.PRODUCTS[0])


def check_full_support(op: str, case: Case) -> None:
    """On matrix units where it can be."""
    if case.dtype in HALF:
        check_dense(op, case, False)
    else:
        check_op("cuda_host", op, case, build(case))


def main() -> None:
    """Raises AssertionError, or aborts, on the first fault."""
    torch.set_num_threads(1)
    with cuda_host.registered():
        check()


def check() -> None:
    for mode in ("rising", "falling"):
        with cuda_host.options(mode=mode):
            for example in ORTHOGONAL:
                check_orthogonal(example)
            check_networks()
        for op in OPS:
            with cuda_host.options(mode=mode):
                for case in FULL_SUPPORT:
                    check_full_support(op, case)
            with cuda_host.options(path="gather", mode=mode):
                for case in GATHER:
                    check_op("cuda_host", op, case, build(case))
            with cuda_host.options(path="dense", mode=mode):
                for case in DENSE:
                    if dense_runs(op, case):
                        check_dense(op, case, False)
    with cuda_host.options(path="dense", mode="early"):
        check_dense("forward", DENSE[0], False)
        check_dense("backward", DENSE[2], False)
        check_full_support("backward", FULL_SUPPORT[4])


if __name__ == "__main__":
    main()
