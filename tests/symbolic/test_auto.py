"""symbolic.auto: what becomes of the whole decides which edges get a formula."""

from __future__ import annotations

import copy

import pytest
import torch

from kan_kernels import KANLinear, functional, symbolic


def test_auto_without_y_keeps_what_the_outputs_are() -> None:
    """Two curves that are lines to an r2 of 0.94 and 1, and whose difference is what no line explains."""
    layer = KANLinear(2, 1, 20, base=None, dtype=torch.float64)
    line = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    basis = functional.bspline_basis(line, layer.grid[:1], layer.spline_order)[:, 0]
    wave = 0.2 * torch.sin(9 * line)
    with torch.no_grad():
        for i, curve in enumerate((line + wave, -line)):
            layer.spline_weight[i, :, 0] = torch.linalg.lstsq(basis, curve).solution[:, 0]
    report = symbolic.auto(layer, line.expand(-1, 2), library=["x"])
    assert [edge.input for edge in report.fixed] == [1] and report.left[0].best.r2 > 0.9
    assert report.change < 1e-3
    torch.testing.assert_close(layer(line.expand(-1, 2)), wave, atol=1e-3, rtol=0)
    other = symbolic.auto(layer, line.expand(-1, 2), library=["x"], r2_threshold=0)
    assert len(other.fixed) == 1 and other.change > 0.9, "asked for"


def test_auto_with_y_lets_the_whole_decide() -> None:
    """An edge that by its own r2 would have become a line makes the whole worse, and stays a spline; the
    numbers of the whole are in the report, and are those of the model.
    """
    layer = KANLinear(2, 1, 20, base=None, dtype=torch.float64)
    x = torch.rand(400, 2, dtype=torch.float64) * 2 - 1
    line = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    curves = [line[:, 0] + 0.2 * torch.sin(9 * line[:, 0]), line[:, 0].square()]
    basis = functional.bspline_basis(line.repeat(1, 2), layer.grid, layer.spline_order)
    with torch.no_grad():
        for i, curve in enumerate(curves):
            layer.spline_weight[i, :, 0] = torch.linalg.lstsq(basis[:, i], curve[:, None]).solution[:, 0]
    y = (x[:, 0] + 0.2 * torch.sin(9 * x[:, 0]) + x[:, 1].square())[:, None]
    blind, seeing, only = (copy.deepcopy(layer) for _ in range(3))
    report = symbolic.auto(blind, x, library=["x", "x^2"])
    assert len(report.fixed) == 2 and report.before is None and report.change > 0.1
    assert "2 of 2 edges fixed; outputs moved by 0." in str(report) and "needs y" in str(report)
    report = symbolic.auto(seeing, x, y, library=["x", "x^2"])
    assert [(edge.input, edge.best.name) for edge in report.fixed] == [(1, "x^2")]
    assert report.before is not None and report.after is not None
    assert report.after <= 1.1 * report.before
    error = float((seeing(x) - y).detach().square().mean().sqrt())
    assert error == pytest.approx(report.after, rel=1e-6) and "1 of 2 edges fixed; error of the whole" in str(
        report
    )
    report = symbolic.auto(only, x, y, library=["x", "x^2"], worsening=1e9)
    assert len(report.fixed) == 2 and report.after is not None and report.after > 0.05
    report = symbolic.auto(layer, x, (y > 0.5).double(), loss=torch.nn.functional.l1_loss)
    assert report.after is not None and report.before is not None and report.after <= 1.1 * report.before
