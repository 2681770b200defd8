"""Section 3.2: the special functions are what their names say, and the fast run finds what it claims."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

from harness import run_example

pytest.importorskip("scipy")


def example(name: str) -> Any:
    return importlib.import_module(f"examples.{name}")


def test_functions_on_their_domains() -> None:
    """Every function is finite on all samples, standardised by the training part, on the domain stated."""
    table = example("special_table")
    assert len(table.FUNCTIONS) == 15 and table.FUNCTIONS.keys() == table.PAPER.keys()
    for function, *domains in table.FUNCTIONS.values():
        data, deviation = table.samples(function, *domains)
        assert [len(x) for x, _ in data] == [1000, 4000, 4000]
        assert all(x.abs().max() <= 1 and y.shape == (len(x), 1) for x, y in data)
        assert all(bool(y.isfinite().all()) for _, y in data)
        assert abs(data[0][1].mean()) < 1e-5 and abs(data[0][1].std() - 1) < 1e-5 and deviation > 0
    (x, y), *_ = table.samples(lambda a, b: a * b, (0, 4), (-1, 3))[0]
    product = (2 + 2 * x[:, 0]) * (1 + 2 * x[:, 1])
    torch.testing.assert_close(
        y[:, 0], ((product - product.mean()) / product.std()).to(y), rtol=1e-5, atol=1e-5
    )


def test_closed_forms() -> None:
    """Order of arguments, degree and order: against formulas of elementary functions."""
    functions = {name: function for name, (function, *_) in example("special_table").FUNCTIONS.items()}
    a, b = 1.1, 0.7
    expected = {
        "ellipj(x, y), sn": (1.1, 0.0, math.sin(1.1)),
        "ellipkinc(x, y)": (1.1, 0.0, 1.1),
        "ellipeinc(x, y)": (1.1, 1.0, math.sin(1.1)),
        "jv(x, y)": (0.5, a, math.sqrt(2 / (math.pi * a)) * math.sin(a)),
        "yv(x, y)": (0.5, a, -math.sqrt(2 / (math.pi * a)) * math.cos(a)),
        "kv(x, y)": (0.5, a, math.sqrt(math.pi / (2 * a)) * math.exp(-a)),
        "iv(x, y)": (0.5, a, math.sqrt(2 / (math.pi * a)) * math.sinh(a)),
        "lpmv(0, x, y)": (2.0, b, (3 * b**2 - 1) / 2),
        "lpmv(1, x, y)": (2.0, b, -3 * b * math.sqrt(1 - b**2)),
        "lpmv(2, x, y)": (2.0, b, 3 * (1 - b**2)),
        "sph_harm(0, 1, x, y)": (a, b, math.sqrt(3 / (4 * math.pi)) * math.cos(b)),
        "sph_harm(1, 1, x, y)": (a, b, -math.sqrt(3 / (8 * math.pi)) * math.sin(b) * math.cos(a)),
        "sph_harm(0, 2, x, y)": (a, b, math.sqrt(5 / (16 * math.pi)) * (3 * math.cos(b) ** 2 - 1)),
        "sph_harm(1, 2, x, y)": (
            a,
            b,
            -math.sqrt(15 / (8 * math.pi)) * math.sin(b) * math.cos(b) * math.cos(a),
        ),
        "sph_harm(2, 2, x, y)": (a, b, math.sqrt(15 / (32 * math.pi)) * math.sin(b) ** 2 * math.cos(2 * a)),
    }
    assert expected.keys() == functions.keys()
    for name, (x, y, value) in expected.items():
        assert functions[name](x, y) == pytest.approx(value, rel=1e-12), name


def test_knock_out() -> None:
    """The time is spent, and the one that is left in the end had more of it than those that went first."""
    contest = example("contest")
    generator = torch.Generator().manual_seed(0)
    data = []
    for rows in (50, 40, 40):
        x = torch.rand(rows, 2, generator=generator, dtype=torch.float64) * 2 - 1
        data.append((x, (x[:, :1] * x[:, 1:]).sin()))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        choices = [(2, 2, torch.nn.ReLU), (3, 2, torch.nn.Tanh), (8, 3, torch.nn.Tanh), (3, 3, torch.nn.SiLU)]
        nets = contest.mlps(choices, data, 0.5)
    finally:
        torch.set_default_dtype(default)
    assert [net["shape"] for net in nets] == [[2, 2, 1], [2, 3, 1], [2, 8, 8, 1], [2, 3, 3, 1]]
    assert [net["parameters"] for net in nets] == [9, 13, 105, 25]
    # rounds of a third each for 4, 2 and 1 networks; seconds are rounded to hundredths
    share = 0.5 / 3
    least = [share / 4, share / 4, share * (1 / 4 + 1 / 2), share * (1 / 4 + 1 / 2 + 1)]
    ordered = sorted(nets, key=lambda net: net["seconds"])
    assert all(net["seconds"] > time - 0.01 for net, time in zip(ordered, least, strict=True))
    assert ordered[-1]["validation"] < 0.05 < data[1][1].std()


def test_frontier() -> None:
    """A network belongs to it unless a smaller or equally large one is better; validation decides."""
    sizes = [(30, 0.2, 1.0), (10, 0.5, 2.0), (20, 0.6, 3.0), (30, 0.1, 4.0), (40, 0.3, 5.0), (50, 0.05, 6.0)]
    nets = [{"parameters": n, "validation": v, "test": t} for n, v, t in sizes]
    assert example("contest").frontier(nets) == ([10, 30, 50], [2.0, 4.0, 6.0])


@pytest.mark.long
def test_kans_beat_the_bound() -> None:
    """Both functions of the fast run are found below 1e-2; the best KAN is chosen by validation only."""
    found = run_example("special_functions")["functions"]
    assert [f["function"] for f in found] == ["ellipkinc(x, y)", "sph_harm(0, 1, x, y)"]
    for f in found:
        assert f["smallest"]["validation"] <= 1e-2 and f["smallest"]["test"] <= 2e-2
        assert f["best"]["validation"] == min(net["validation"] for net in f["kans"])
        assert f["mlp"]["validation"] == min(net["validation"] for net in f["mlps"])
        assert f["smallest"]["edges"] == min(n["edges"] for n in f["kans"] if n["validation"] <= 1e-2)
        assert f["seconds"]["mlps"] >= 0.99 * f["seconds"]["kans"]
    assert found[0]["best"]["test"] < 5e-3 and found[1]["best"]["test"] < 5e-4
    pruned = [net for f in found for net in f["kans"] if net["lamb"]]
    assert pruned and all(net["shape"][1] <= 5 and net["edges"] < 15 for net in pruned)
