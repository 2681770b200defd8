"""Mean and deviation of edges by the compiled ops, against the plain reference and where curves are flat."""

from __future__ import annotations

import random

import pytest
import torch
from torch.autograd import grad

from harness import DEVICE, FUSED
from kan_kernels import functional as F
from kan_kernels.backends import native, reference

F64 = torch.float64
pytestmark = pytest.mark.skipif("native" not in FUSED or DEVICE != "cpu", reason="for the compiled CPU ops")


def test_moments_are_the_reference() -> None:
    """Every result of the two ops on random layers; splines that sum to 1 and rows outside of the cells."""
    for seed in range(60):
        draw = random.Random(seed)
        batch, fan_in, out, cells = (draw.randint(*ends) for ends in ((2, 300), (1, 6), (1, 20), (1, 12)))
        order, base, correction = draw.randint(0, 5), draw.randint(0, 2), draw.randint(0, 1)
        torch.manual_seed(seed)
        knots = torch.arange(-order, cells + order + 1, dtype=F64) * 2 / cells - 1
        grid = knots.repeat(fan_in, 1) + 0.01 * torch.rand(fan_in, 1, dtype=F64)
        x = (torch.rand(batch, fan_in, dtype=F64) - 0.5) * draw.choice((1.9, 3.0))
        dtype = draw.choice((torch.float32, F64, torch.bfloat16, torch.float16))
        weight = (torch.randn(fan_in, cells + order, out) + draw.randint(-3, 3)).to(dtype)
        base_weight = torch.randn(fan_in, out).to(dtype) if base else None
        d_mean, d_std = torch.randn(2, fan_in, out, dtype=F64)
        given = (x, weight, base_weight, grid, order, base, correction)
        got, want = (module.edge_moments(*given) for module in (native, reference))
        cotangents = draw.choice(((d_mean, d_std), (None, d_std), (d_mean, None)))
        for needs in ((True, True), (True, False), (False, True)):
            pairs = [
                module.edge_moments_backward(*given, *cotangents, *results[1:], *needs)
                for module, results in ((native, got), (reference, want))
            ]
            for one, other in zip((*got, *pairs[0]), (*want, *pairs[1]), strict=True):
                if other is not None:
                    assert one.dtype == other.dtype
                    rounding = 2 * torch.finfo(one.dtype).eps if one.dtype != F64 else 1e-9
                    size = float(other.abs().amax()) if other.numel() else 0.0
                    torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * size)


def test_almost_flat_edges_keep_their_digits() -> None:
    """Deviation and gradient of 1 + 1e-6 phi inside of the cells, to 12 digits of those of phi itself."""
    x, grid = torch.rand(200, 3, dtype=F64) * 0.9, torch.linspace(-2.2, 2.2, 12, dtype=F64).repeat(3, 1)
    little = (3e-6 * torch.randn(3, 8, 4, dtype=F64) + 1).sub(1)  # what is left of it behind the 1
    results = []
    for weight in (little, little + 1):
        weight.requires_grad_()
        std = F.edge_moments(x, weight, grid, spline_order=3, base=None)[1]
        results.append((std.detach(), *grad(std.sum(), weight)))
    (std, d), (std_beside, d_beside) = results
    assert (std > 3e-7).all()
    torch.testing.assert_close(std_beside, std, rtol=1e-12, atol=0)
    torch.testing.assert_close(d_beside, d, rtol=1e-12, atol=1e-12 * float(d.abs().amax()))


@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("past", (0.0, 1e-9, 1e-6, 1e-3))
def test_gradient_of_x_at_the_end_of_the_cells(order: int, past: float) -> None:
    """Of a row at the last knot of the cells, or just behind it, where splines no longer sum to 1."""
    torch.manual_seed(0)
    grid = torch.linspace(-1 - 0.5 * order, 1 + 0.5 * order, 2 * order + 5, dtype=F64).repeat(2, 1)
    x, weight = torch.rand(5000, 2, dtype=F64) * 1.9 - 0.95, torch.randn(2, 4 + order, 3, dtype=F64) + 5
    x[7] = grid[0, -order - 1] + past
    given = (x, weight, None, grid, order, 0, 1)
    cotangents = torch.randn(2, 2, 3, dtype=F64)
    found = [
        module.edge_moments_backward(*given, *cotangents, *module.edge_moments(*given)[1:], True, True)[0]
        for module in (native, reference)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
