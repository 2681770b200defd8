"""The Triton kernels as machine code, for GPUs that need not be here: within the committed budget.

tests/budgets/triton.json says, for each kernel, dtype and architecture, how many registers and shared bytes
it may take, that nothing spills, which matrix instruction is meant and where its A operand lies, and for the
forward at a 128-wide tile on sm_90 that generating the basis takes no longer than multiplying with it.
Written anew by `python -m tools.static_cost triton --update-budget`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.static_cost import budget as budgets
from tools.static_cost.measure import Measured, measure
from tools.static_cost.providers import Selection, triton_cubins

triton = pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile with")
BUDGET = Path(__file__).parents[2] / "budgets" / "triton.json"


@pytest.fixture(scope="module")
def kernels() -> Iterator[list[Measured]]:
    """Everything that compile_only names, compiled and read; two minutes on two cores."""
    yield list(measure(triton_cubins(Selection())))


@pytest.mark.long
def test_budget_is_kept(kernels: list[Measured]) -> None:
    """Every kernel is in the budget, every entry has a kernel, and nothing exceeds it.

    Registers, shared bytes and the generation's share are compared with the compiler that the budget was made
    with.
    """
    assert not budgets.check(budgets.load(BUDGET), kernels)


@pytest.mark.long
def test_every_kernel_dtype_and_architecture(kernels: list[Measured]) -> None:
    """Every kernel has its dtypes on every architecture: one that goes missing is missed."""
    have = {(k.source.kernel, k.source.dtype, k.source.arch) for k in kernels}
    for arch in (80, 90, 100):
        for dtype in ("bf16", "fp16", "tf32", "strict fp32"):
            for kernel in ("dense_forward", "dense_input", "dense_backward", "base_gradient", "sum_parts"):
                # TF32 and strict float32 have one kernel of sums, and on 8.0 the batch is in one part.
                alike = kernel == "sum_parts" and (dtype == "strict fp32" or (dtype, arch) == ("tf32", 80))
                assert alike or (kernel, dtype, arch) in have
        for dtype in ("bf16", "fp16", "strict fp32", "fp64"):
            for kernel in ("gather_forward", "gather_input", "gather_backward"):
                assert (kernel, dtype, arch) in have


@pytest.mark.long
def test_nothing_spills_and_a_lies_in_registers(kernels: list[Measured]) -> None:
    """Without the budget too: no local memory, and the generated operand never leaves registers."""
    matrix = {80: "HMMA", 86: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
    same_compiler = kernels[0].source.toolchain == budgets.load(BUDGET)["toolchain"]
    for k in kernels:
        assert k.cost.spills == 0 or not same_compiler, k.key
        if k.source.kernel == "dense_forward":
            assert all(opcode.startswith(matrix[k.source.arch]) for opcode in k.matrix), (k.key, k.matrix)
            if k.source.arch < 100:  # tcgen05 reads A from shared or tensor memory
                assert k.a_operand == "registers", (k.key, k.a_operand)


@pytest.mark.long
@pytest.mark.parametrize("arch", ("gfx90a", "gfx942"))
@pytest.mark.parametrize("dtype", ("bf16", "strict fp32"))
def test_amd_compiles(arch: str, dtype: str) -> None:
    """The dense forward and gradients compile for AMD's matrix cores; float64 is not offered there."""
    from kan_kernels.backends.triton import compile_only

    wanted = {"dense_forward", "dense_input", "dense_backward", "base_gradient"}
    for spec in compile_only.specializations():
        if spec.dtype == dtype and spec.options == "[512,512] G=5" and spec.kernel in wanted:
            made = compile_only.compile_spec(spec, arch)
            assert "mfma" in made.assembly, spec
            assert made.shared <= 65536, (spec, made.shared)
            wanted.remove(spec.kernel)
    assert not wanted
