"""Figure 3.1: the exponent is that of a power law, the fast run scales as theory says, the results keep
their promises.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from examples.scaling import exponent, front, network
from harness import ROOT, run_example

RESULTS = ROOT / "examples" / "results"
TARGETS = ("J0(20x)", "exp(sin πx + y²)", "xy")  # one- and two-dimensional


def networks(toy: dict[str, Any]) -> list[dict[str, Any]]:
    return [*toy["kans"], *toy["mlps"]]


def test_exponent_is_that_of_the_front() -> None:
    law = [(n, 7.0 * n**-3.25) for n in (10, 20, 50, 130)]
    worse = [(15, 10.0), (50, 1.0), (140, law[-1][1]), (500, 1.0)]
    assert front([*worse, *law]) == law
    assert exponent([*law, *worse]) == 3.25
    assert exponent([law[0], (20, law[0][1])]) is None


@pytest.fixture(scope="module")
def toys() -> list[dict[str, Any]]:
    return run_example("figure_3_1")["toys"]


@pytest.mark.long
def test_fast_run_scales(toys: list[dict[str, Any]]) -> None:
    """Three grid sizes of the two-dimensional toys already fall with at least the theorem's fourth power."""
    assert [toy["formula"] for toy in toys] == list(TARGETS[1:])
    for toy in toys:
        (kan,), best = toy["kans"], toy["best_mlps"]
        assert kan["exponent"] > 3.5
        assert kan["front"][-1][1] < 0.1 * best["front"][-1][1]
        least = max(run["seconds"] for run in kan["runs"])
        assert all(run["seconds"] >= least > 0 for one in toy["mlps"] for run in one["runs"])


@pytest.mark.long
def test_results_follow_from_their_runs(toys: list[dict[str, Any]]) -> None:
    """Medians, fronts and exponents are those of the runs."""
    for toy in toys:
        for one in networks(toy):
            assert one["median"] == [[run["parameters"], run["test_rmse"]] for run in one["runs"]]
            assert front([(n, e) for n, e in one["median"]]) == [(n, e) for n, e in one["front"]]
            assert exponent(one["median"]) == one["exponent"]
        points = [point for one in toy["mlps"] for point in one["median"]]
        assert exponent(points) == toy["best_mlps"]["exponent"]


def test_median_of_the_seeds() -> None:
    """Of three seeds at one size the middle one counts."""
    runs = [{"parameters": n, "test_rmse": e} for n in (10, 20) for e in (3.0 / n, 1.0 / n, 2.0 / n)]
    assert network(runs)["median"] == [(10, 0.2), (20, 0.1)] and network(runs)["exponent"] == 1.0


def test_committed_results_reach_the_targets() -> None:
    """In one and two dimensions: an exponent of 3.5 or more, and an RMSE of 1e-5 or less."""
    rows = json.loads((RESULTS / "figure_3_1.json").read_text())["summary"]
    for formula in TARGETS:
        row = next(row for row in rows if row["what"].startswith(f"{formula}: ") and "KAN" in row["what"])
        slope, error = map(float, re.match(r"([\d.]+); ([\d.e-]+) with", row["ours"]).groups())  # type: ignore
        assert slope >= 3.5 and error <= 1e-5


@pytest.mark.long
def test_picture(toys: list[dict[str, Any]], tmp_path: Path) -> None:
    """A panel for each toy, with all networks and both laws; the same bytes twice."""
    pytest.importorskip("matplotlib")
    from examples.scaling_picture import draw
    from kan_kernels.plotting import save

    figure = draw(toys)
    for panel, toy in zip(figure.axes, toys, strict=True):
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        assert len(panel.lines) == 2 * len(networks(toy)) + 2
        law = panel.lines[-2]
        (n, m), (e, f) = law.get_data()
        assert math.log(f / e) / math.log(m / n) == pytest.approx(-4)
    save(figure, tmp_path / "a.svg")
    save(draw(toys), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
