"""The Feynman equations and their judge: what counts as the law, and what does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sympy")
pytest.importorskip("scipy")

from benchmarks import feynman
from benchmarks import feynman_judge as judge
from benchmarks.feynman_equations import EQUATIONS
from benchmarks.readme import render

NAMES = ["a", "b"]
LAW = "a*sqrt(b)/(2*pi)"


def rows() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(1, 3, (500, 2))
    return x, x[:, 0] * np.sqrt(x[:, 1]) / (2 * np.pi)


def test_equations() -> None:
    """Different names, up to three variables, all of which are in the formula; finite on their ranges."""
    assert len({e.name for e in EQUATIONS}) == len(EQUATIONS) == 52
    for equation in EQUATIONS:
        law = judge.law_of(equation.formula, list(equation.ranges))
        assert {s.name for s in law.free_symbols} == set(equation.ranges) and 1 <= len(equation.ranges) <= 3
        x, y, new_x, new_y = feynman.data(equation, 0.01)
        assert np.isfinite(y).all() and np.isfinite(new_y).all() and y.std() > 0
        clean = judge.values(law, list(equation.ranges), x)
        assert 0.008 < (y - clean).std() / clean.std() < 0.012
        assert (new_x != x).all()


@pytest.mark.parametrize(
    ("formula", "by"),
    [
        ("0.15915494309189535*v0*v1**0.5", "sympy"),
        ("sqrt(v0**2*v1/(4*pi**2))", "sympy"),
        ("mul(v0, mul(sqrt(v1), 0.15915494309))", "sympy"),
        ("0.15915494309*v0*v1^0.5 + 3e-9*v1", "values"),  # rounding of single precision
        ("0.15915*v0*v1**0.5", ""),
        ("0.15915494309*v0*v1**0.5 + 1e-5*v1", ""),
        ("0.15915494309*v0*v1**0.5 + 1e-9*exp(9*v1)", ""),  # close on the data alone
        ("v0*log(v1 - 5)", ""),
    ],
)
def test_exact(formula: str, by: str) -> None:
    """Without noise: error, values outside of the ranges, and sympy."""
    x, y = rows()
    assert judge.exact(judge.parsed(formula, NAMES), judge.law_of(LAW, NAMES), NAMES, x, y) == by


@pytest.mark.parametrize(
    ("formula", "good"),
    [
        ("0.1583*v0*v1**0.5", True),
        ("0.1583*v0*sqrt(1.01*v1)", True),
        ("0.1*v0*v1**0.5", False),  # off by more than a few per cent
        ("0.1583*v0*v1**0.5 + 0.001", True),
        ("0.1583*v0*v1**0.5 + 0.01", False),
        ("0.1583*(v0 + 0.001)*v1**0.5", False),
        ("0.1583*v0*v1**0.51", False),
        ("0.2*v0*log(v1 + 1.2)", False),
        ("v0*(0.08*v1 + 0.08)", False),
    ],
)
def test_same_structure(formula: str, good: bool) -> None:
    """With noise: constants alone may be off, and by little."""
    x, y = rows()
    found = judge.same_structure(judge.parsed(formula, NAMES), judge.law_of(LAW, NAMES), NAMES, x, y)
    assert found == ("constants" if good else "")


def test_protected_functions() -> None:
    """gplearn's root and logarithm take absolute values and it divides by 0; those of others do not."""
    x = np.array([[1.0, 2.0]])
    assert judge.values(judge.parsed("sqrt(sub(v0, v1))", NAMES, True), NAMES, x)[0] == 1
    assert np.isnan(judge.values(judge.parsed("sqrt(sub(v0, v1))", NAMES), NAMES, x)[0])
    for formula, value in (("div(v0, sub(v1, v1))", 1), ("add(v0, log(sub(v1, v1)))", 1)):
        assert judge.values(judge.parsed(formula, NAMES, True), NAMES, x)[0] == value
    infinite = judge.parsed("add(v0, div(v1, sub(v0, v0)))", NAMES)
    assert np.isnan(judge.values(infinite, NAMES, x)[0])
    assert judge.same_structure(infinite, judge.law_of(LAW, NAMES), NAMES, *rows()) == ""


def run(method: str, **changed) -> dict:
    """What one method made of one equation."""
    common = {"equation": "I.12.1", "noise": 0.0, "seconds": 10.0, "exact": False, "by": "", "error": 0.5}
    return {**common, "method": method, "complexity": 3, "cpu": 1.0, "formula": "2.0*mu", **changed}


def test_longer_limits_start_from_what_the_shorter_left_open() -> None:
    """An exact formula of a rival counts on; ours, where the search went on, has to be found again."""
    runs = [
        run("discover", exact=True, stopped="interrupt"),
        run("discover", equation="I.12.4", exact=True, stopped="exact"),
        run("gplearn"),
        run("gplearn", exact=True, seconds=30.0),
        run("pyoperon", exact=True),
    ]
    assert feynman.within(runs, 10.0) == [runs[0], runs[1], runs[2], runs[4]]
    assert feynman.within(runs, 30.0) == [runs[1], runs[3], runs[4]]
    assert "| 30 s |" not in feynman.summary(runs)
    text = feynman.summary([*runs, run("discover", seconds=30.0)])
    rows = [
        "| 30 s | 0% | discover | 0 of 1",
        "| 30 s | 0% | gplearn | 1 of 1",
        "| 10 s | 0% | gplearn | 0 of 1",
    ]
    assert all(row in text for row in rows)


def test_table_and_picture(tmp_path, monkeypatch) -> None:
    """Written from whatever runs there are."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(feynman, "RESULTS", tmp_path)
    monkeypatch.setattr(feynman, "PICTURE", tmp_path / "feynman.svg")
    monkeypatch.setattr(feynman, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("before\n<!-- feynman:begin -->\n<!-- feynman:end -->\nafter\n")
    runs = [run(method, exact=method == "pyoperon") for method in feynman.METHODS]
    meta = {"machines": {"10": {"cpu": "a processor", "date": "today"}}, "versions": {"gplearn": "0.4.3"}}
    feynman.write({"meta": meta, "runs": runs})
    text = (tmp_path / "feynman.md").read_text()
    assert (tmp_path / "feynman.svg").stat().st_size > 1000
    assert "| 10 s | 0% | pyoperon | 1 of 1 (100%)" in text and "| 0% | I.12.1 | `2.0*mu` |" in text
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "1 of 1 (100%)" in page


def test_committed_results() -> None:
    """The table and the page say what the results do; discover finds more than both rivals at any limit."""
    document = json.loads((feynman.RESULTS / "feynman.json").read_text())
    assert (feynman.RESULTS / "feynman.md").read_text() == feynman.table(document)
    page = feynman.PAGE.read_text()
    assert render(page, feynman.block(document), "feynman") == page
    for limit in feynman.LIMITS:
        for noise in feynman.NOISE:
            common = feynman.run_by_all(document["runs"], noise, limit)
            assert len(common) == len(EQUATIONS)
            runs = [
                r
                for r in feynman.within(document["runs"], limit)
                if r["noise"] == noise and r["equation"] in common
            ]
            count = {m: sum(r["exact"] for r in runs if r["method"] == m) for m in feynman.METHODS}
            assert count["discover"] >= 0.7 * len(common)
            assert count["discover"] > max(count["gplearn"], count["pyoperon"])
