"""polish: all constants of a model's formulas fitted together, in any units, those that are frozen left."""

from __future__ import annotations

import pytest
import torch

from kan_kernels import KAN, KANLinear
from kan_kernels.symbolic import discover, fix, polish


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e3, 1e5])
def test_units_of_x_decide_nothing(unit: float) -> None:
    """Constants of very different sizes are fitted to rounding error all the same."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(300, 2, dtype=torch.float64, generator=generator) * 2 - 1) * unit
    y = torch.exp(torch.sin(3 * x[:, :1] / unit) + (x[:, 1:] / unit) ** 2)
    net = KAN([2, 1, 1], dtype=torch.float64)
    fix(net.layers[0], 0, 0, "sin", params=(2.9 / unit, 0.1, 1.0, 0.0))
    fix(net.layers[0], 1, 0, "x^2", params=(1.0, 0.1 * unit, unit**-2, 0.0))
    fix(net.layers[1], 0, 0, "exp", params=(1.0, 0.0, 0.9, 0.0))
    assert polish(net, x, y) < 1e-13


@pytest.mark.parametrize("name, most", [("x^1.5", 1e-12), ("sqrt", 1e-3), ("log", 1e-12)])
def test_at_the_end_of_a_domain(name: str, most: float) -> None:
    """What stands outside of a function is fitted where no step of its argument leads on."""
    x = torch.linspace(0, 1, 200, dtype=torch.float64)[:, None]
    function, shift = {"x^1.5": (x**1.5, 0.0), "sqrt": (x.sqrt(), 1e-3), "log": ((x + 0.01).log(), 1e-3)}[
        name
    ]
    layer = KANLinear(1, 1, dtype=torch.float64)
    fix(layer, 0, 0, name, params=(1.0, shift, 0.9, 0.1))
    assert polish(layer, x, function) < most


def test_frozen_formulas_stay() -> None:
    """Only what requires gradients is fitted."""
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    net = KAN([1, 1, 1], dtype=torch.float64)
    fix(net.layers[0], 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    fix(net.layers[1], 0, 0, "x", params=(1.0, 0.0, 1.0, 0.0))
    net.layers[0].symbolic.affine.requires_grad_(False)
    assert polish(net, x, 3 * x.sin() + 1) < 1e-12
    assert net.layers[0].symbolic.affine.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="all its formulas and biases are frozen"):
        polish(net, x, x)


def test_laws_in_any_units() -> None:
    """discover: the law of the data in other units of x, to rounding error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 2, dtype=torch.float64, generator=generator) * 2 - 1
    y = torch.exp(torch.sin(3 * x[:, :1]) + x[:, 1:] ** 2)
    options = {"seeds": [0, 1], "shapes": [[2, 1, 1]], "functions": ["x", "x^2", "sin", "exp"], "work": 2000}
    for unit in (1.0, 1e3):
        found = discover(x * unit, y, **options)
        assert found.best.exact and found.best.loss < 1e-13
