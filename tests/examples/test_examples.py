"""The examples run in their fast mode and find what they claim to find; the page of results is up to date."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import ROOT, run_example

# what runs and writes a result; the other files are their common parts and the report
SCRIPTS = (ROOT / "examples").glob("*.py")
EXAMPLES = sorted(path.stem for path in SCRIPTS if f'main("{path.stem}"' in path.read_text())


@pytest.mark.long
def test_formula_is_found() -> None:
    """Figure 2.4: both seeds of the fast run end with the exact formula."""
    pytest.importorskip("sympy")
    runs = run_example("figure_2_4")["runs"]
    assert [run["exact"] for run in runs] == [True, True]
    assert {run["formula"] for run in runs} == {"exp(y**2 + sin(3.141593*x))"}
    assert all(run["widths"] == [2, 1, 1] for run in runs)


@pytest.mark.long
def test_staircase_goes_down() -> None:
    """Figure 2.3: up to G = 20 every refinement pays, steeply for the shape of the formula."""
    wide, exact = run_example("figure_2_3")["networks"]
    for network in (wide, exact):
        errors = network["median_test_rmse"]
        assert errors == sorted(errors, reverse=True)
    assert exact["slope"] < -2.5 and exact["median_test_rmse"][-1] < 1e-3


@pytest.mark.long
def test_poisson_is_solved() -> None:
    """Figure 3.3: twenty steps on a coarse grid come near the solution."""
    networks = run_example("figure_3_3")["networks"]
    assert networks["KAN [2,10,1]"]["l2"] < 5e-3 and networks["KAN [2,10,1]"]["parameters"] == 270


def test_poisson_residual_vanishes_at_the_solution() -> None:
    """The residual of the exact solution is zero inside and on the boundary."""
    module: Any = importlib.import_module("examples.figure_3_3")

    class Exact(torch.nn.Module):
        def forward(self, p: torch.Tensor) -> torch.Tensor:
            return module.solution(p)

    points, inner, outer = module.mesh(6)
    points = points.double()
    assert len(points) == inner + outer
    assert module.Poisson(Exact(), inner, outer)(points).abs().max() < 1e-12


def test_page_is_up_to_date() -> None:
    report: Any = importlib.import_module("examples.report")
    assert Path(report.PAGE).read_text() == report.page()
    assert all((ROOT / "examples" / "results" / f"{name}.json").exists() for name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_stay_short(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 120
