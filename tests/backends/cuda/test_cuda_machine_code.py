"""The CUDA C++ kernels as machine code, for GPUs that need not be here: within the committed budget.

tests/budgets/cuda.json says for each kernel, dtype and architecture how many registers and how much static
shared memory it may take, how many instructions touch local memory, and which matrix instruction is meant.
The library in the tree is read, whichever architectures it was built for. Written anew, from a library that
was built for all of them, by `python -m tools.static_cost cuda --update-budget`.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from kan_kernels._core import library
from tools.static_cost import budget as budgets
from tools.static_cost import sass
from tools.static_cost.measure import Measured, measure
from tools.static_cost.providers import Selection, cuda_cubins

BUDGET = Path(__file__).parents[2] / "budgets" / "cuda.json"
ARCHS = (80, 86, 89, 90, 100, 120)
MATRICES = {
    "HalfMatrix<true>": "HMMA.16816.F32.BF16",
    "HalfMatrix<false>": "HMMA.16816.F32",
    "FloatMatrix<false>": "HMMA.1688.F32.TF32",
    "FloatMatrix<true>": "HMMA.1688.F32.TF32",
}
DENSE = ("dense_forward_kernel", "dense_input_kernel", "dense_weight_kernel")
# of the kernels for bases that reach everywhere, and the instruction that each multiplies with
PRODUCTS = {
    "ScalarProduct<float": "FFMA",
    "ScalarProduct<double": "DFMA",
    "HalfProduct<true": "HMMA.16816.F32.BF16",
    "HalfProduct<false": "HMMA.16816.F32",
}
WITHOUT_TABLE = ("dense", "reduce", "network", "multiply")  # kernels, by how their names begin
SILU_TABLE = {"fp32": 34 * 4, "fp64": 34 * 8}  # bytes of the recursion's table in csrc/basis/activation.h
FUNCTIONS = ("GaussianFunctions", "ChebyshevFunctions", "OrthogonalFunctions")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        "cuda" not in library.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
    ),
]


@pytest.fixture(scope="module")
def kernels() -> list[Measured]:
    """Every kernel of the library in the tree."""
    return list(measure(cuda_cubins(Selection())))


def archs_of(kernels: list[Measured]) -> set[int]:
    return {k.source.arch for k in kernels}


def test_budget_is_kept(kernels: list[Measured]) -> None:
    """Every kernel is in the budget, every entry of these architectures has a kernel, nothing exceeds it."""
    assert not budgets.check(budgets.load(BUDGET), kernels)


def test_budget_has_every_architecture() -> None:
    """It was written from a library built for all that is shipped, the same kernels for each."""
    names: dict[int, set[str]] = {arch: set() for arch in ARCHS}
    for key in budgets.load(BUDGET)["kernels"]:
        arch = re.search(r"/sm_(\d+)", key)
        assert arch is not None and int(arch[1]) in names, key
        names[int(arch[1])].add(key.replace(arch[0], ""))
    assert names[80] and all(names[arch] == names[80] for arch in ARCHS)


def test_every_kernel(kernels: list[Measured]) -> None:
    """What is meant to exist exists: a specialisation that goes missing is missed."""
    have = {(k.source.kernel, k.source.options, k.source.dtype, k.source.arch) for k in kernels}
    for arch in archs_of(kernels):
        for op in ("forward", "backward"):
            for dtype, orders in (("fp32", (-1, 1, 2, 3)), ("fp64", (-1, 3))):
                for order, lanes in product(orders, (1, 8, 32)):
                    assert (f"gather_{op}_kernel", f"{order},{lanes}", dtype, arch) in have
                for order in (-1, 3):
                    assert (f"network_{op}_kernel", str(order), dtype, arch) in have
        dense = {(kernel, *options.split(",")[:2], sm) for kernel, options, _, sm in have}
        for kernel, matrix, order in product(DENSE, MATRICES, "123"):
            assert (kernel, matrix, order, arch) in dense
        for op, basis in product(("forward", "backward"), FUNCTIONS):
            for number, columns in product(PRODUCTS, (16, 64, 128)):
                options = f"{number},{columns}>,{basis}"
                wanted = columns <= 64 or number.startswith("Half")
                assert ((f"full_support_{op}_kernel", options, "", arch) in have) is wanted, options


def test_nothing_spills(kernels: list[Measured]) -> None:
    """Without the budget too: no stack, where spills would be, but for tables of all derivatives: silu's, and
    two of a recurrence.
    """
    for k in kernels:
        dtype = k.source.dtype or ("fp64" if "double" in k.source.options else "fp32")
        table = 0 if k.source.kernel.startswith(WITHOUT_TABLE) else SILU_TABLE[dtype]
        table *= 2 if "Orthogonal" in k.source.options else 1
        assert k.cost.stack == table, (k.key, k.cost.stack)
        assert (k.cost.spills == 0) is (table == 0), (k.key, k.cost.spills)


def test_meant_instructions(kernels: list[Measured]) -> None:
    """The matrix instruction of the policy; coefficients staged 16 bytes at a time, past registers."""
    seen = set()
    for k in kernels:
        if not k.source.kernel.startswith("dense"):
            continue
        wanted = MATRICES[k.source.options.split(",")[0]]
        assert k.matrix and all(opcode == wanted for opcode in k.matrix), (k.key, k.matrix)
        (code,) = [f for f in sass.read(k.source.cubin) if f.name == k.source.function]
        opcodes = {instruction.opcode for instruction in code.instructions}
        copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
        assert copies and all(".128" in opcode for opcode in copies), (k.key, copies)
        if "Half" in wanted or k.source.options.startswith("Half"):
            assert any(opcode.startswith("LDSM") for opcode in opcodes), k.key
        seen.add(k.source.kernel)
    assert seen == set(DENSE)


def test_meant_products(kernels: list[Measured]) -> None:
    """Bases of full support: the product's instruction, operands read and staged 16 bytes at a time."""
    seen = set()
    for k in kernels:
        if not k.source.kernel.startswith("full_support"):
            continue
        number = k.source.options.split(",")[0]
        (code,) = [f for f in sass.read(k.source.cubin) if f.name == k.source.function]
        opcodes = {instruction.opcode for instruction in code.instructions}
        others = set(PRODUCTS.values()) - {PRODUCTS[number], "FFMA"}
        assert PRODUCTS[number] in opcodes and not others & opcodes, (k.key, opcodes)
        read = ("LDSM",) if number.startswith("Half") else ("LDS.128",)
        assert any(opcode.startswith(read) for opcode in opcodes), k.key
        copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
        assert copies and all(".128" in opcode for opcode in copies), (k.key, copies)
        seen.add((k.source.kernel, number))
    assert len(seen) == 2 * len(PRODUCTS)
