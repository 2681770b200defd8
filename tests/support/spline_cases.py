"""What the tests of grids share: layers with large splines, points, and splines by the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import oracle
from harness import DEVICE
from kan_kernels import KANLinear

F64 = torch.float64
ORDERS = (0, 1, 2, 3, 5, 8)


def layer_of(k: int = 3, size: int = 5, features: int = 3, out: int = 4, **options: Any) -> KANLinear:
    """A layer whose splines are of size 1."""
    layer = KANLinear(features, out, size, k, dtype=options.pop("dtype", F64), device=DEVICE, **options)
    nn.init.normal_(layer.spline_weight)
    return layer


def splines(layer: KANLinear, x: Tensor) -> Tensor:
    """The spline part of every edge, (B, in, out), by the oracle in float64."""
    basis = oracle.basis(x.double().cpu(), layer.grid.double().cpu(), layer.spline_order)
    return torch.einsum("bir,iro->bio", basis, layer.spline_weight.detach().double().cpu())


def everywhere(layer: KANLinear, count: int = 500) -> Tensor:
    """Points over the whole span, beyond it, and on every knot: (P, in)."""
    grid = layer.grid.double()
    low, high = grid[:, 0], grid[:, -1]
    steps = torch.linspace(-0.1, 1.1, count, dtype=F64, device=grid.device).unsqueeze(1)
    return torch.cat([low + (high - low) * steps, grid.t()])


def normal(*shape: int, scale: float = 0.7, dtype: torch.dtype = F64) -> Tensor:
    gen = torch.Generator().manual_seed(3)
    return (scale * torch.randn(*shape, generator=gen, dtype=F64)).to(DEVICE, dtype)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}
