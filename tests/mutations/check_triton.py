"""The short tests of the Triton kernels that a fault must fail, in Triton's interpreter."""

from __future__ import annotations

import os

# before the first import of Triton and of the tests' helpers, which read them once
os.environ["TRITON_INTERPRET"] = "1"
os.environ["KAN_TEST_BACKENDS"] = "reference,triton"

import torch

from activation_cases import build_activation, check_activation, run_activation
from basis_cases import case
from cases import HALF, Case, build
from harness import check_op, run_op

BFLOAT, HALF_FLOAT = HALF
# for each case the ops that take a path of their own there, and whether TF32 is allowed
CASES = [
    # matrix units: pairs of 16 bits, ends of tiles, NaN, side, one pass or a kernel a gradient
    (Case(21, 9, 40, dtype=BFLOAT, side=True), ("forward", "weight", "backward"), False),
    (
        Case(18, 5, 20, 9, 3, 0, "adaptive", "nan", BFLOAT, torch.float32, base=None),
        ("forward", "backward"),
        False,
    ),
    (Case(17, 6, 33, 4, 2, 1, "adaptive", "knots", HALF_FLOAT, torch.float32), ("forward", "input"), False),
    # strict float32: single columns, groups of rows in a loop, more outputs than a tile
    (Case(19, 6, 40, 12, 3, 0, "adaptive", side=True), ("forward", "input", "weight"), False),
    (Case(11, 3, 70, 5, 2, 1, "ranges", "nan", base="identity"), ("forward", "backward"), False),
    # a jump at every knot
    (Case(17, 3, 20, 4, 2, 2, "adaptive", "knots", base=None), ("forward",), False),
    # fixed polynomials of uniform knots
    (Case(20, 5, 33, 6, 3, 1), ("forward", "input", "weight"), True),
    (Case(16, 6, 20, 5, 3, 0, "ranges", "mixed", side=True), ("forward", "weight"), True),
    # gathered rows: narrow layers, float64, one pass and not
    (Case(19, 5, 6, 5, 3, 0, "adaptive", side=True), ("forward", "weight", "backward"), False),
    (
        Case(13, 3, 3, 4, 2, 1, "adaptive", "nan", torch.float64, base=None),
        ("forward", "input", "backward"),
        False,
    ),
    # more inputs than a slice of dense_input, in strict float32 and with fixed polynomials
    (Case(12, 21, 33, 4, 3, 1), ("input",), False),
    (Case(12, 21, 33, dtype=BFLOAT, side=True), ("input", "weight"), False),
    # a batch in parts
    (Case(560, 1, 20, 3, 1, 0), ("weight",), False),
]

# bases of full support: groups of rows in a loop, fetched rows, every order of derivative, infinite x
BASES = [
    (case("rbf", 13, 11, 5, 20, derivative=3, knots="adaptive", points="inside"), ("forward", "weight")),
    (case("rbf", 5, 9, 3, 20, derivative=1, points="inf", base=None), ("forward",)),
    (case("chebyshev", 33, 7, 3, 20, derivative=1, points="inside", base=None), ("forward", "weight")),
    (case("chebyshev", 6, 7, 3, 5, derivative=1, points="inside"), ("forward", "backward")),
    (case("fourier", 14, 7, 2, 20, derivative=1, points="outside", base=None), ("forward", "weight")),
    (
        case("orthogonal", 33, 7, 3, 20, derivative=2, knots="adaptive", points="inside"),
        ("forward", "weight"),
    ),
    (
        case("orthogonal", 6, 7, 3, 5, derivative=1, knots="adaptive", points="inside"),
        ("forward", "backward"),
    ),
]

# the same for activations: looked up on uniform knots and on any, evaluated, several heads in blocks, float64
ACTIVATIONS = [
    (Case(37, 9, 2, dtype=BFLOAT, side=True), ("forward", "weight", "backward")),
    (Case(40, 5, 1, 9, 3, 0, "adaptive", "nan", BFLOAT, torch.float32), ("forward", "backward")),
    (Case(11, 3, 4, 5, 2, 1, "steep", "nan", base=None), ("forward", "input", "weight")),
    (Case(37, 3, 3, 4, 2, 0, "adaptive", "mixed", torch.float64), ("forward", "backward")),
    (Case(12, 6, 4, points="inf"), ("input",)),  # of 5 heads in two blocks, whose base is infinite
]


def check_verdict() -> None:
    """Knots that stopped being uniform behind torch's back give NaN."""
    inputs = build(Case(9, 5, 20, dtype=BFLOAT))
    for op in ("forward", "backward"):
        run_op("triton", op, inputs)  # the grid is looked at, and found uniform
    inputs.grid.data[2, 6] += 0.1
    for op in ("forward", "backward"):
        assert run_op("triton", op, inputs)[0].isnan().any(), f"{op}: moved knots are not seen"
    inputs = build_activation(Case(9, 5, 2, dtype=BFLOAT))
    run_activation("triton", "forward", inputs)
    inputs.grid.data[2, 6] += 0.1
    assert run_activation("triton", "forward", inputs)[0].isnan().any(), "moved knots are not seen"


def check_infinity() -> None:
    """The base of infinity times a weight is infinite in strict float32, forward and in the gradient."""
    for op in ("forward", "weight"):
        inputs = build(Case(9, 5, 20))
        inputs.x[2, 3] = torch.inf
        *_, got = run_op("triton", op, inputs)
        *_, want = run_op("reference", op, inputs)
        assert torch.equal(got.isinf(), want.isinf()) and want.isinf().any(), f"{op}: infinity is lost"


def main() -> None:
    """Raises AssertionError, or what the kernel raises, on the first fault."""
    torch.set_num_threads(1)
    for of_splines, ops, tf32 in CASES:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for op in ops:
            check_op("triton", op, of_splines, build(of_splines))
    torch.set_float32_matmul_precision("highest")
    for of_basis, ops in BASES:
        for op in ops:
            check_op("triton", op, of_basis, build(of_basis))
    for of_heads, ops in ACTIVATIONS:
        inputs = build_activation(of_heads)
        for op in ops:
            check_activation("triton", op, of_heads, inputs)
    check_verdict()
    torch.set_float32_matmul_precision("highest")
    check_infinity()


if __name__ == "__main__":
    main()
