"""Golden numbers of the real efficient-kan and pykan layers: y, dx, every parameter gradient, hv, to
1e-10.
"""

from __future__ import annotations

import pytest
import torch

from golden import FILES, check_layer, close, efficient_kan, load
from harness import DEVICE
from kan_kernels import KANLinear


@pytest.mark.parametrize("name", FILES)
def test_golden(backend: str, name: str) -> None:
    """y, dx, the gradient of every parameter the peer trains, and the second-order hv."""
    check_layer(backend, name)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("efficient_kan")])
def test_golden_through_the_module(backend: str, name: str) -> None:
    """The same numbers through KANLinear, whose grid and weights are set from outside."""
    meta, data = load(name)
    layer = KANLinear(
        meta["in_features"], meta["out_features"], meta["grid_size"], meta["spline_order"],
        backend=backend, dtype=torch.float64, device=DEVICE,
    )  # fmt: skip
    p = {key.removeprefix("param:"): value for key, value in data.items() if key.startswith("param:")}
    spline_weight, base_weight, grid = efficient_kan(p, data)
    with torch.no_grad():
        layer.spline_weight.copy_(spline_weight)
        layer.base_weight.copy_(base_weight)
        layer.grid.copy_(grid)
    y = layer(data["x"])
    close(y, data["y"], "y")
    y.backward(data["gy"])
    want = data["grad:base_weight"].t()
    close(layer.base_weight.grad, want, "base_weight.grad")
    # d/d(scaled weight), seen through the scaler: the peer's gradient divided by it
    scaled = data["grad:spline_weight"] / p["spline_scaler"].unsqueeze(-1)
    close(layer.spline_weight.grad, scaled.permute(1, 2, 0), "spline_weight.grad")


def test_every_fixture_is_used() -> None:
    """Nine layers of two peers lie in fixtures/; none is skipped by a slip in a name."""
    assert len([n for n in FILES if n.startswith("efficient_kan_")]) == 5
    assert len([n for n in FILES if n.startswith("pykan_layer_")]) == 4
    assert len(FILES) == 9
