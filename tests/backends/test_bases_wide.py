"""Wide layers of bases of full support: several blocks of rows, features and outputs, tails of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from basis_cases import LAYOUTS, NAMES, case, laid_out
from cases import OPS, Case, build, sparse
from harness import check_op, check_same_bits, run_op

F32, F64 = torch.float32, torch.float64


def _table() -> list[Case]:
    cases = []
    for basis in NAMES:
        for turn, sizes in enumerate(((8, 300, 61, 160), (20, 64, 110, 128), (1, 520, 270, 260))):
            facts: dict[str, Any] = {"side": turn == 1, "bias": turn != 1, "points": "inside"}
            base = (None, "silu", "identity")[turn]
            cases.append(case(basis, *sizes, base=base, derivative=turn % 2, **facts))
        cases.append(case(basis, 8, 300, 61, 160, dtype=F64, derivative=2, side=True, points="inside"))
        for points, dtype in (("nan", F32), ("inf", F64), ("mixed", F32)):
            cases.append(case(basis, 9, 200, 80, 150, points=points, dtype=dtype))
        for layout in ("transposed", "expanded"):
            cases.append(case(basis, 9, 200, 80, 150, layout=layout, side=True, points="inside"))
    return cases


TABLE = _table()


@pytest.mark.parametrize("c", sparse(TABLE, 5), ids=lambda c: c.name)
def test_op(c: Case) -> None:
    """Every op on every case, outputs poisoned before the run."""
    inputs = build(c)
    for op in OPS:
        check_op("native", op, c, inputs)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("c", TABLE[:4], ids=lambda c: c.name)
def test_same_bits(op: str, c: Case) -> None:
    """The same bits with 1, 2 and 3 threads: the shape says how work is cut."""
    inputs = build(c)
    check_same_bits(lambda: run_op("native", op, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("c", [TABLE[0], TABLE[2], TABLE[-1]], ids=lambda c: c.name)
def test_weights_as_they_lie(c: Case, op: str, layout: str) -> None:
    """Weights that keep the functions of an edge together, as one matrix and not; gradients lie like them."""
    inputs = build(c)
    inputs.spline_weight = laid_out(inputs.spline_weight, layout)
    check_op("native", op, c, inputs)
    if op in ("weight", "backward"):
        args = (*inputs.args(op), inputs.spline_weight) if op == "weight" else inputs.args(op)
        made = getattr(torch.ops.kan_kernels, OPS[op])(*args)[-2]
        assert made.stride() == inputs.spline_weight.stride()
        want = run_op("reference", op, inputs.to(F64))[-2]
        torch.testing.assert_close(made.double(), want, rtol=0, atol=1e-5 * float(want.abs().max()))
