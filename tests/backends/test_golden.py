"""Golden numbers of the real efficient-kan and pykan layers: y, dx, every parameter gradient, hv, to
1e-10.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KANLinear
from kan_kernels import functional as F

FIXTURES = Path(__file__).parents[1] / "fixtures"
PEERS = ("efficient_kan_", "pykan_layer_")  # the others: test_compat_bases.py
FILES = sorted(path.stem for path in FIXTURES.glob("*.npz") if path.stem.startswith(PEERS))
Tensors = dict[str, Tensor]


def load(name: str) -> tuple[dict, Tensors]:  # type: ignore[type-arg]
    """The fixture's meta and its tensors."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as data:
        meta = json.loads(str(data["meta"]))
        return meta, {key: torch.from_numpy(data[key]).to(DEVICE) for key in data.files if key != "meta"}


def efficient_kan(p: Tensors, data: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """efficient-kan's parameters as ours: (spline_weight, base_weight, grid). All weights there are (out, in,
    ...).
    """
    scaled = p["spline_weight"] * p["spline_scaler"].unsqueeze(-1)
    return scaled.permute(1, 2, 0), p["base_weight"].t(), data["buffer:grid"]


def pykan(p: Tensors, data: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """pykan's parameters as ours: y = mask (scale_base silu + scale_sp spline), coef there is (in, out,
    G+k).
    """
    scale = (data["param:mask"] * p["scale_sp"]).unsqueeze(-1)
    return (p["coef"] * scale).transpose(1, 2), data["param:mask"] * p["scale_base"], data["param:grid"]


def close(got: Tensor, want: Tensor, what: str) -> None:
    """1e-10, relative to the largest entry where that is above 1."""
    size = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * size, msg=lambda m: f"{what}: {m}")


def order_of(meta: dict) -> int:  # type: ignore[type-arg]
    return int(meta["spline_order"] if "spline_order" in meta else meta["k"])


@pytest.mark.parametrize("name", FILES)
def test_golden(backend: str, name: str) -> None:
    """y, dx, the gradient of every parameter the peer trains, and the second-order hv."""
    meta, data = load(name)
    adapt: Callable[[Tensors, Tensors], tuple[Tensor, Tensor, Tensor]]
    adapt = efficient_kan if name.startswith("efficient_kan") else pykan
    trained = [key.removeprefix("grad:") for key in data if key.startswith("grad:")]
    p = {key: data[f"param:{key}"].clone().requires_grad_() for key in trained}
    x = data["x"].clone().requires_grad_()
    spline_weight, base_weight, grid = adapt(p, data)
    y = F.kan_linear(
        x,
        spline_weight,
        grid,
        spline_order=order_of(meta),
        base_weight=base_weight,
        base="silu",
        backend=backend,
    )
    close(y, data["y"], "y")
    dx, *grads = torch.autograd.grad(y, [x, *p.values()], data["gy"], create_graph=True)
    close(dx, data["dx"], "dx")
    for key, grad in zip(p, grads, strict=True):
        close(grad, data[f"grad:{key}"], f"d{key}")
    (hv,) = torch.autograd.grad(dx, x, data["v"], retain_graph=True)
    close(hv, data["hv"], "hv")


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
