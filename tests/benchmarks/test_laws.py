"""The laws of benchmarks.laws: what counts as their structure, and what was committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import laws

sympy = pytest.importorskip("sympy")
NOISY = laws.LAWS[-1]
PAGE = Path(__file__).parents[2] / "docs" / "symbolic.md"


@pytest.mark.parametrize(
    ("formula", "off", "structure"),
    [
        ("x1**2 + x3*x4 + sin(pi*x2)", 0.0, True),
        ("0.9971*x1**2 + x3*x4 + sin(pi*x2)", 0.0029, True),
        ("x1**2 + x3*x4 + sin(3.1371*x2 + 0.0025)", 0.0045, True),
        ("x1**2 + x3*x4 - 1.002*cos(pi*x2 + 1.5701)", 0.002, True),
        ("x1**2 + x3*x4 + sin(pi*x2) + 0.0012*x5", None, False),
        ("x1**2 + x3*x4 + sin(pi*x2) + 0.0012", None, False),
        ("x1**2 + x3*x4 + sin(pi*x2 + 0.003*x1)", None, False),
        ("x1**2 + 0.98*x3*x4 + sin(pi*x2)", None, False),
        ("x1**2 + sin(pi*x2)", None, False),
    ],
)
def test_structure(formula: str, off: float | None, structure: bool) -> None:
    """Constants may be off by a little; a term too many or one that is missing is never forgiven."""
    straight, most = laws.straightened(sympy.sympify(formula))
    assert laws.equal(straight, NOISY.law) == structure
    if off is not None:
        assert most == pytest.approx(off, abs=5e-5)


def test_data() -> None:
    """Noise is that share of y's spread, in the rows that are fitted alone; a draw is the same again."""
    x, y, new_x, new_y = laws.data(NOISY, 0)
    clean = x[:, 0] ** 2 + torch.sin(torch.pi * x[:, 1]) + x[:, 2] * x[:, 3]
    assert x.shape == new_x.shape == (laws.ROWS, 6)
    assert float((y - clean).std() / clean.std()) == pytest.approx(0.02, rel=0.1)
    again = new_x[:, 0] ** 2 + torch.sin(torch.pi * new_x[:, 1]) + new_x[:, 2] * new_x[:, 3]
    torch.testing.assert_close(new_y, again)
    assert torch.equal(laws.data(NOISY, 0)[1], y) and not torch.equal(laws.data(NOISY, 1)[1], y)


def test_committed_results() -> None:
    """The tables say what the runs do, and the runs that found their law are as many as promised."""
    runs = json.loads((laws.RESULTS / "laws.json").read_text())["runs"]
    assert (laws.RESULTS / "laws.md").read_text() == laws.tables(runs)
    for name in laws.NAMES:
        own = [r for r in runs if r["law"] == name]
        assert len(own) >= (3 if name == laws.MOONS else 10)
        assert sum(r["found"] for r in own) >= 0.9 * len(own), name
    page = PAGE.read_text()
    clean = [r for r in runs if r["law"] not in (NOISY.law, laws.MOONS)]
    noisy, moons = ([r for r in runs if r["law"] == name] for name in (NOISY.law, laws.MOONS))
    structure, plain = (sum(r[key] for r in noisy) for key in ("structure", "equal"))
    assert f"found in {sum(r['found'] for r in clean)} of {len(clean)} draws" in page
    assert f"exact in {structure} of {len(noisy)}, all constants plain in {plain} of {len(noisy)}" in page
    assert f"0.005 at most, in {sum(r['found'] for r in moons)} of {len(moons)}" in page
