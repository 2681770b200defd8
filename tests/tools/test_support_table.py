"""The support table says what the backends answer, and they do what they answer."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from bases import make_grid
from kan_kernels import functional as F
from kan_kernels._core import library
from kan_kernels._core.bases import BASES
from kan_kernels._core.problem import OPS, bases_of
from kan_kernels.backends import native
from tools import support_table


def test_page_is_up_to_date() -> None:
    """docs/support.md holds the table, whatever this machine has."""
    page = support_table.PAGE.read_text(encoding="utf-8")
    assert support_table.block() in page


@pytest.mark.skipif(library.LOAD_ERROR is not None, reason="the library is not built")
def test_kernels_are_those_of_the_library() -> None:
    """What is read in csrc/ops is what the library registers; CUDA kernels where it was built with them."""
    found = support_table.kernels()
    for device in library.DEVICES:
        for op in OPS:
            assert (device in found[op]) == (device in library.devices_of(op)), (device, op)
    assert found["kan_linear"] == ("cpu", "cuda") and found["kan_conv"] == ("cpu",)


@pytest.mark.skipif(library.LOAD_ERROR is not None, reason="the library is not built")
@pytest.mark.parametrize("op", OPS)
def test_cells_name_the_derivative_that_an_op_takes(op: str) -> None:
    """An op whose schema has `derivative` says how high it goes, on every backend; no other does."""
    schema = getattr(torch.ops.kan_kernels, op).default._schema
    takes = "derivative" in [argument.name for argument in schema.arguments]
    for _, name, device, amd in support_table.PLACES:
        with support_table.every_device(amd):
            said = support_table.cell(name, support_table.problem(op, bases_of(op)[0], device))
        assert said in ("-", "composed") or (" m" in said) == takes, (name, device, said)


def test_table_follows_the_backends() -> None:
    """A backend that answers otherwise changes the cell; nothing is left pretended afterwards."""
    asked = support_table.problem("kan_linear", "bspline", "cpu")
    before = torch.version.hip, library.DEVICES
    with support_table.every_device(False):
        assert support_table.cell("native", asked) == "all; m ≤ 32"
        with patch.object(native, "beyond_limits", lambda p: "no" if p.derivative > 2 else None):
            assert support_table.cell("native", asked) == "all; m ≤ 2"
        with patch.object(native, "can_run", lambda p: "no" if p.dtype == torch.float16 else None):
            assert support_table.cell("native", asked).startswith("all but float16")
    assert (torch.version.hip, library.DEVICES) == before


@pytest.mark.skipif(library.LOAD_ERROR is not None, reason="the library is not built")
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", support_table.DTYPES, ids=str)
def test_cpu_column_runs(basis: str, dtype: torch.dtype) -> None:
    """Each "all" of `kan_linear` on the CPU: the native backend runs it, forward and backward."""
    x = (torch.rand(5, 4) * 1.8 - 0.9).to(dtype).requires_grad_()
    weight = torch.randn(4, 8, 3).to(dtype).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grid = make_grid(basis, "uniform", 4, 8, torch.Generator().manual_seed(0)).to(wide)
    for m in (0, 2):
        if basis == "bspline":
            knots = torch.linspace(-2, 2, 12, dtype=wide).repeat(4, 1)
            y = F.kan_linear(x, weight, knots, spline_order=3, base=None, derivative=m, backend="native")
        else:
            given = grid if BASES[basis].grid else None
            y = F.basis_linear(x, weight, given, basis=basis, derivative=m, backend="native")
        slopes = torch.autograd.grad(y.float().sum(), [x, weight])
        assert y.dtype == dtype and all(torch.isfinite(t.float()).all() for t in (y, *slopes))
