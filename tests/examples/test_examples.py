"""The examples run in their fast mode and find what they claim to find; the page of results is up to date."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from examples import common
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


def test_only_rows_and_slim_figures_are_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` keeps the rows apart from all the rest; a figure is an SVG without what nobody sees."""
    plt: Any = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    monkeypatch.setattr("sys.argv", ["a"])
    dtype = torch.get_default_dtype()
    try:
        common.main("a", "A", lambda fast: {"summary": [{"what": "w", "ours": 1, "theirs": 2}], "runs": [3]})
    finally:
        torch.set_default_dtype(dtype)
    rows, everything = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "a.full.json"))
    assert everything == {**rows, "runs": [3]}
    for path in (ROOT / "examples" / "results").glob("*.json"):
        assert "." in path.stem or json.loads(path.read_text()).keys() == rows.keys()

    figure = plt.Figure()
    figure.subplots().plot([0, 1 / 3, 1], [0, 1, 0])
    common.save_figure(figure, "b")
    text = (tmp_path / "b.svg").read_text()
    tree = ElementTree.fromstring(text)
    places = [float(n) for path in tree.iter() for n in re.findall(r"\d+\.\d+", path.get("d", ""))]
    assert len(places) > 30 and all(round(n, 2) == n for n in places if n >= 1)
    assert "<!--" not in text and 'id="axes_1"' not in text and "scale(0.015625)" in text
