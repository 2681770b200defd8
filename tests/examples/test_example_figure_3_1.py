"""Figure 3.1: the exponent is that of a power law, the fast run scales as theory says, the results keep
their promises.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from examples.scaling import exponent, front
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


@pytest.mark.long
def test_fast_run_scales() -> None:
    """Three grid sizes of the two-dimensional toys already fall with at least the theorem's fourth power."""
    toys = run_example("figure_3_1")["toys"]
    assert [toy["formula"] for toy in toys] == list(TARGETS[1:])
    for toy in toys:
        (kan,), best = toy["kans"], toy["best_mlps"]
        assert kan["exponent"] > 3.5
        assert kan["front"][-1][1] < 0.1 * best["front"][-1][1]
        least = max(run["seconds"] for run in kan["runs"])
        assert all(run["seconds"] >= least for one in toy["mlps"] for run in one["runs"])


@pytest.fixture(scope="module")
def toys() -> list[dict[str, Any]]:
    return json.loads((RESULTS / "figure_3_1.json").read_text())["toys"]


def test_results_follow_from_their_runs(toys: list[dict[str, Any]]) -> None:
    """Every seed of every size is there, and medians, fronts and exponents are theirs."""
    assert len(toys) == 5
    for toy in toys:
        assert [one["depth"] for one in toy["mlps"]] == [2, 3, 4, 5, 6]
        for one in networks(toy):
            for size, error in one["median"]:
                runs = [run for run in one["runs"] if run["parameters"] == size]
                assert sorted(run["seed"] for run in runs) == [0, 1, 2]
                assert sorted(run["test_rmse"] for run in runs)[1] == error
            assert front([(n, e) for n, e in one["median"]]) == [(n, e) for n, e in one["front"]]
            assert exponent(one["median"]) == one["exponent"]
        assert (
            exponent([point for one in toy["mlps"] for point in one["median"]])
            == toy["best_mlps"]["exponent"]
        )


def test_results_reach_the_targets(toys: list[dict[str, Any]]) -> None:
    """In one and two dimensions: an exponent of 3.5 or more, and an RMSE of 1e-5 or less."""
    (line, *planes) = [toy for toy in toys if toy["inputs"] <= 2]
    assert [toy["formula"] for toy in (line, *planes)] == list(TARGETS)
    for toy in (line, *planes):
        assert toy["kans"][0]["exponent"] >= 3.5
        assert toy["kans"][0]["front"][-1][1] <= 1e-5


def test_mlps_had_the_time(toys: list[dict[str, Any]]) -> None:
    for toy in toys:
        for seed in (0, 1, 2):
            kans = [r["seconds"] for one in toy["kans"] for r in one["runs"] if r["seed"] == seed]
            mlps = [r["seconds"] for one in toy["mlps"] for r in one["runs"] if r["seed"] == seed]
            assert len(mlps) >= 10 and min(mlps) >= max(kans) > 0


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
