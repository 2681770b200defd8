"""The native CPU kernels on every instruction set that was compiled and that this machine runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import kan_kernels._C as _C
import numpy as np
import pytest
import torch

import oracle
from cases import HALF, TABLE, build
from harness import FUSED, assert_close, child, relative_error, run_op
from instruction_sets import COMPILED, INFO, ORDER, RUNNABLE

pytestmark = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
ROOT = Path(__file__).resolve().parents[2]
FULL = [case for case in TABLE if case.dtype not in HALF and case.layout == "contiguous"]

RUN_TABLE = """
import torch
from cases import OPS, TABLE, build
from harness import check_op
assert torch.ops.kan_kernels.cpu_isa() == {isa!r}, torch.ops.kan_kernels.cpu_isa()
for case in TABLE:
    for op in OPS:
        check_op("native", op, case, build(case))
print("checked", len(TABLE))
"""


def test_the_best_is_chosen() -> None:
    """Best first, of those compiled; what is chosen is the best that runs, in ops and in _C alike."""
    assert COMPILED and set(COMPILED) <= set(ORDER)
    assert list(COMPILED) == sorted(COMPILED, key=ORDER.index)
    shown = child(
        "import torch, kan_kernels; print(torch.ops.kan_kernels.cpu_isa())", {"KAN_KERNELS_CPU_ISA": ""}
    )
    assert shown.split()[-1] in RUNNABLE


@pytest.mark.long
@pytest.mark.parametrize("isa", [isa for isa in RUNNABLE])
def test_whole_table(isa: str) -> None:
    """KAN_KERNELS_CPU_ISA forces a lower set; the whole case table, all four ops, on it."""
    text = child(RUN_TABLE.format(isa=isa), {"KAN_KERNELS_CPU_ISA": isa, "KAN_TEST_BACKENDS": "native"})
    assert "checked" in text


def test_unknown_name_is_refused() -> None:
    """An instruction set that does not exist is an error that names it, in the environment and as an
    argument.
    """
    text = child(
        "import kan_kernels; from kan_kernels import available_backends; print(available_backends())\n"
        "import torch; print(torch.ops.kan_kernels.cpu_isa())",
        {"KAN_KERNELS_CPU_ISA": "mmx"}, ok=False,
    )  # fmt: skip
    assert "mmx" in text
    with pytest.raises(ValueError, match="mmx"):
        _C.forward(np.zeros((1, 1)), np.zeros((1, 4, 1)), None, None, np.arange(8.0)[None], 3, 0, 0, "mmx")


@pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=pytest.mark.long) if isa != RUNNABLE[0] else isa for isa in RUNNABLE]
)
def test_numpy_entry(isa: str) -> None:
    """_C.forward on each instruction set against the reference, on the table's full-precision cases."""
    for case in FULL:
        inputs = build(case)
        if inputs.s is not None:
            inputs.s = None
        wide = inputs.to(torch.float64)
        (truth,), (plain,) = run_op("reference", "forward", wide), run_op("reference", "forward", inputs)
        if case.dtype == torch.float64:
            (plain,) = oracle.run("forward", wide)
        (scale,) = oracle.magnitude("forward", wide)
        arrays = [None if t is None else t.numpy() for t in inputs.args("forward")[:6]]  # type: ignore[attr-defined]
        x, _, c, w, b, grid = arrays
        y = _C.forward(x, c, w, b, grid, inputs.order, inputs.base, inputs.derivative, isa)
        what = f"_C.forward[{isa}][{case.name}]"
        assert_close(torch.from_numpy(y), truth, scale, relative_error(plain, truth, scale), case.dtype, what)


def test_build_info() -> None:
    """What `python -m kan_kernels` prints comes from here."""
    assert set(INFO) >= {
        "version",
        "compiler",
        "cuda",
        "cpu_isas",
        "cpu_isa",
        "max_spline_order",
        "max_derivative",
    }
    import kan_kernels

    assert INFO["max_spline_order"] == kan_kernels.MAX_SPLINE_ORDER == 10
    assert INFO["max_derivative"] == kan_kernels.MAX_DERIVATIVE == 32


def test_an_instruction_sets_code_is_its_own() -> None:
    """Its objects define no function that the linker could take for another's: its namespace has all."""
    objects = [
        path for path in (ROOT / "build").glob("cmake-*/CMakeFiles/kan_cpu_*.dir/**/*.o") if path.is_file()
    ]
    if not objects or shutil.which("nm") is None:
        pytest.skip("the kernels were not built here, or there is no nm to read objects with")
    for path in objects:
        (isa,) = re.findall(r"kan_cpu_(\w+)\.dir", str(path))
        made = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        )
        weak = re.findall(r"^[0-9a-f]* [WVu] (?!DW\.ref\.)(.*)$", made.stdout, re.MULTILINE)
        assert weak and not [name for name in weak if f"kan::{isa}::" not in name], path
