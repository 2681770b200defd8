"""Cases of the convolutions, and what they are by torch's convolutions of the materialised bases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as TF

from kan_kernels import KANConv1d, KANConv2d, KANConv3d
from kan_kernels import functional as F
from kan_kernels._engine import layer as engine
from kan_kernels.backends import native

LAYERS = {1: KANConv1d, 2: KANConv2d, 3: KANConv3d}

CONVS = {1: TF.conv1d, 2: TF.conv2d, 3: TF.conv3d}

SIZES = {1: (13,), 2: (9, 11), 3: (5, 6, 4)}

BASES = {"silu": TF.silu, "identity": lambda x: x}

CASES: tuple[dict[str, Any], ...] = (
    {"dims": 2, "kernel_size": 3},
    {"dims": 2, "kernel_size": 3, "padding": 1, "bias": True},
    {"dims": 2, "kernel_size": 1},
    {"dims": 2, "kernel_size": (1, 5), "stride": 3, "padding": (2, 4)},
    {"dims": 2, "kernel_size": 3, "stride": (2, 3), "padding": (3, 2), "dilation": (2, 1), "groups": 2},
    {"dims": 2, "kernel_size": (3, 2), "padding": "same", "dilation": 2, "base": None},
    {"dims": 2, "kernel_size": 4, "stride": 4, "base": "identity", "bias": True},
    {"dims": 2, "kernel_size": (9, 11), "groups": 2},
    {"dims": 2, "kernel_size": 2, "stride": 2, "dilation": 3, "padding": "valid", "groups": 4},
    {"dims": 2, "kernel_size": 2, "padding": 4, "dilation": 9},
    {"dims": 1, "kernel_size": 5, "padding": 2, "stride": 2, "bias": True},
    {"dims": 1, "kernel_size": 4, "padding": "same", "groups": 2, "spline_order": 1, "grid_size": 4},
    {"dims": 3, "kernel_size": (2, 3, 2), "padding": (1, 0, 2), "stride": (1, 2, 1), "spline_order": 2},
)


def made(dims: int, **options: Any) -> Any:
    return LAYERS[dims](4, 8, **{"dtype": torch.float64, **options})


def image(dims: int, dtype: torch.dtype = torch.float64, batch: int = 3) -> Tensor:
    """Values inside the grid, beyond it, and exactly on knots."""
    x = torch.randn(batch, 4, *SIZES[dims], dtype=dtype)
    x.view(-1)[::7] = 0.2
    return x


def compose(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on convolutions are composed of `kan_linear`."""
    can_run = native.can_run

    def without(problem: Any) -> str | None:
        return "the test says so" if problem.op == "kan_conv" else can_run(problem)

    monkeypatch.setattr(native, "can_run", without)
    monkeypatch.setattr(engine, "_specs", {})


def expected(layer: Any, x: Tensor) -> Tensor:
    """The image of the bases, padded with zeros, through torch's convolution: one group after the other."""
    dims, groups = layer.DIMS, layer.groups
    options = (None, layer.stride, layer.padding, layer.dilation)
    parts = []
    for xs, knots, n in zip(x.chunk(groups, 1), layer.grid.chunk(groups), range(groups), strict=True):
        channels = slice(n * len(knots), (n + 1) * len(knots))
        bases = F.bspline_basis(xs.movedim(1, -1), knots, layer.spline_order).flatten(-2).movedim(-1, 1)
        y = CONVS[dims](bases, layer.spline_weight[channels].flatten(0, 1).movedim(-1, 0), *options)
        if layer.base:
            weight = layer.base_weight[channels].movedim(-1, 0)
            y = y + CONVS[dims](BASES[layer.base](xs), weight, *options)
        parts.append(y)
    y = torch.cat(parts, 1)
    return y if layer.bias is None else y + layer.bias.view(-1, *(1,) * dims)
