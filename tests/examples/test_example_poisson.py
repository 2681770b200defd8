"""Poisson's equation: residuals, points that follow them, and constants that the equation itself fits."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from math import pi
from typing import Any

import pytest
import torch

from kan_kernels import KAN, symbolic


@pytest.fixture
def example() -> Iterator[Any]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield importlib.import_module("examples.poisson")
    torch.set_default_dtype(before)


def solution(example: Any, off: float = 0.0) -> KAN:
    """(cos(pi (x - y)) - cos(pi (x + y))) / 2, with constants that are off by a little."""
    model = KAN([2, 2, 1], base="identity")
    constants = torch.Generator().manual_seed(0)

    def near(*values: float) -> list[float]:
        return [v + off * (float(torch.rand((), generator=constants)) - 0.5) for v in values]

    for i, o, sign in ((0, 0, 1), (0, 1, 1), (1, 0, -1), (1, 1, 1)):
        symbolic.fix(model.layers[0], i, o, "x", params=near(sign, 0, 1, 0))
    for i, sign in ((0, 1), (1, -1)):
        symbolic.fix(model.layers[1], i, 0, "cos", params=near(pi, 0, sign / 2, 0))
    return model


def test_residual_is_that_of_the_equation(example: Any) -> None:
    """Zero for the exact solution; for x^2 y^2 what calculus says; points lie where it is large."""
    x = torch.rand(50, 2) * 2 - 1
    assert float(example.residual(solution(example), x).detach().abs().max()) < 1e-11
    square = example.residual(lambda x: (x[:, :1] * x[:, 1:]) ** 2, x)
    want = 2 * x.square().sum(1, keepdim=True) + 2 * pi**2 * example.exact(x)
    torch.testing.assert_close(square.detach(), want)
    equation = example.Poisson(400, 10, 0)
    drawn = equation.points(solution(example, 0.3))
    sizes = example.residual(solution(example, 0.3), drawn).detach().square()
    assert drawn.shape == (400, 2) and drawn.abs().max() <= 1
    assert float(sizes[200:].mean()) > 1.5 * float(sizes[:200].mean())
    assert equation.sides.shape == (40, 2) and (equation.sides.abs().amax(1) == 1).all()


def test_constants_come_from_the_equation(example: Any) -> None:
    """Formulas that are nearly right become the exact solution, to rounding, from residuals alone."""
    model = solution(example, 0.05)
    before = example.error(model, "formula")["formula_rmse"]
    found = example.to_formula(model, 64, 0, steps=6)
    assert found["formula_rmse"] < 1e-12 < 1e-3 < before and found["formula_objective"] < 1e-20
    assert found["formula"].count("cos(") == 2


@pytest.mark.long
def test_reduced_run(example: Any) -> None:
    """A short training solves the equation roughly; the table has its rows."""
    result = example.run(True)
    start = result["starts"][0]
    assert start["spline_rmse"] < 0.25 and len(result["summary"]) == 5
