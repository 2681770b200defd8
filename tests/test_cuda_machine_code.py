"""The CUDA C++ kernels as machine code, read from the built library, within the committed budget.

tests/budgets/cuda.json holds, for the architecture that `make` builds, the registers of each kernel and the matrix
instruction that is meant, and that nothing spills. Written anew by
`python -m benchmarks.static_cost cuda --update-budget`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.static_cost import budget as budgets
from benchmarks.static_cost.measure import Measured, measure
from benchmarks.static_cost.providers import Selection, cuda_cubins
from kan_kernels import ops

BUDGET = Path(__file__).parent / "budgets" / "cuda.json"
pytestmark = pytest.mark.skipif(
    "cuda" not in ops.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
)


@pytest.fixture(scope="module")
def kernels() -> list[Measured]:
    """Every kernel of the library for sm_90."""
    found = list(measure(cuda_cubins(Selection(archs=(90,)))))
    if not found:
        pytest.skip("the library holds no code for sm_90, which the budget is for")
    return found


@pytest.mark.slow
def test_budget_is_kept(kernels: list[Measured]) -> None:
    """Registers, spills and matrix instructions of every kernel."""
    assert not budgets.check(budgets.load(BUDGET), kernels, complete=False)


@pytest.mark.slow
def test_dense_kernels_multiply_matrices(kernels: list[Measured]) -> None:
    """mma.sync in the hot loop, A from registers, and nothing in local memory, whatever the compiler."""
    dense = [k for k in kernels if "dense" in k.source.kernel]
    assert len(dense) > 10
    for k in dense:
        assert k.matrix and all(opcode.startswith("HMMA") for opcode in k.matrix), k.key
        assert k.a_operand == "registers", k.key
        assert k.cost.spills == 0, k.key
