"""float32 means float32: sums over many inputs err no more than twice as much as plain torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kan_kernels.functional as F
from kan_kernels import KANConv2d, use_backend

ORDER = 3


def problem(batch: int, inputs: int, outputs: int, grid_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, knots, spline weight and base weight, in float32."""
    generator = torch.Generator().manual_seed(0)
    step = 2 / grid_size
    knots = torch.arange(grid_size + 2 * ORDER + 1) * step - 1 - ORDER * step
    return (
        torch.rand(batch, inputs, generator=generator) * 2 - 1,
        knots.expand(inputs, -1).contiguous(),
        torch.randn(inputs, grid_size + ORDER, outputs, generator=generator) * 0.1,
        torch.randn(inputs, outputs, generator=generator) * 0.1,
    )


def plain(x: Tensor, knots: Tensor, weight: Tensor, base_weight: Tensor) -> Tensor:
    """The same layer on materialised bases."""
    basis = F.bspline_basis(x, knots, spline_order=ORDER)
    return torch.nn.functional.silu(x) @ base_weight + basis.flatten(1) @ weight.flatten(0, 1)


# strips, long grids, few outputs, few rows, and one input more than are added up at once
SHAPES = (
    (1024, 256, 256, 5),
    (600, 1000, 40, 5),
    (600, 500, 64, 20),
    (300, 1000, 5, 5),
    (90, 1000, 100, 5),
    (40, 33, 9, 3),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_in_float32(shape: tuple[int, int, int, int]) -> None:
    """Root mean square and largest error."""
    x, knots, weight, base_weight = problem(*shape)
    wide = plain(x.double(), knots.double(), weight.double(), base_weight.double())
    got = F.kan_linear(x, weight, knots, spline_order=ORDER, base_weight=base_weight, backend="native")
    error, other = got.double() - wide, plain(x, knots, weight, base_weight).double() - wide
    assert error.norm() <= 2 * other.norm()
    assert error.abs().max() <= 2 * other.abs().max()


@pytest.mark.parametrize("channels", [16, 200])
def test_convolution_in_float32(channels: int) -> None:
    """The root mean square, against the sum of products that plain torch makes."""
    generator = torch.Generator().manual_seed(0)
    layer = KANConv2d(channels, 12, 3, padding=1)
    torch.nn.init.normal_(layer.spline_weight, 0, 0.1, generator=generator)
    x = torch.rand(3, channels, 9, 9, generator=generator) * 2 - 1
    with torch.no_grad():
        with use_backend("reference"):
            other = layer(x)
        with use_backend("native"):
            got = layer(x)
        wide = layer.double()(x.double())
    assert (got - wide).norm() <= 2 * (other - wide).norm()
