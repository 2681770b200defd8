"""Golden numbers of the real peers, and what is held to them: y, dx, every gradient, hv, to 1e-10."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import harness
from harness import DEVICE
from kan_kernels import functional as F
from kan_kernels.integrations.cheby_kan import ChebyKANLayer
from kan_kernels.integrations.fast_kan import FastKANLayer

FIXTURES = Path(__file__).parents[1] / "fixtures"

PEERS = ("efficient_kan_", "pykan_layer_")  # the others: check_peer

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


def check_layer(backend: str, name: str) -> None:
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


def peer(name: str, backend: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The layer with the peer's own state, every key of it used, and the fixture's tensors."""
    meta, data = load(name)
    sizes = meta["in_features"], meta["out_features"]
    layer = FastKANLayer(*sizes) if name == "fast_kan" else ChebyKANLayer(*sizes, meta["degree"])
    layer.backend = backend
    state = {k.split(":")[1]: v for k, v in data.items() if k.startswith(("param:", "buffer:"))}
    layer.double().load_state_dict(state)
    device = DEVICE if backend in harness.BACKENDS else "cpu"
    return layer.to(device), {k: v.to(device) for k, v in data.items()}


def check_peer(backend: str, name: str) -> None:
    """y, dx, the gradient of every parameter the peer trains, and the second-order hv."""
    layer, data = peer(name, backend)
    x = data["x"].clone().requires_grad_()
    y = layer(x)
    close(y, data["y"], "y")
    trained = {k: p for k, p in layer.named_parameters() if p.requires_grad}
    assert {f"grad:{k}" for k in trained} == {k for k in data if k.startswith("grad:")}
    dx, *grads = torch.autograd.grad(y, [x, *trained.values()], data["gy"], create_graph=True)
    close(dx, data["dx"], "dx")
    for key, grad in zip(trained, grads, strict=True):
        close(grad, data[f"grad:{key}"], f"d{key}")
    (hv,) = torch.autograd.grad(dx, x, data["v"])
    close(hv, data["hv"], "hv")
