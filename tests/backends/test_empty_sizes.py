"""Layers without rows, inputs or outputs, on every path: empty results, and gradients that are zero."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import kan_kernels.functional as F

SIZES = [sizes for sizes in itertools.product((0, 3), repeat=3) if 0 in sizes]
SPLINES = [(5, 3), (200, 3), (5, 10), (4, 0)]  # grid_size, spline_order: small, long, high and constant
BASES = ["rbf", "chebyshev", "fourier"]


def check(y: torch.Tensor, sizes: tuple[int, int, int], bias: torch.Tensor, leaves: dict[str, Any]) -> None:
    """y is the bias in every row, and no gradient but the bias's is anything else than 0."""
    assert torch.equal(y, bias.expand(sizes[0], sizes[2]))
    y.sum().backward()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, torch.zeros_like(leaf)), name
    assert torch.equal(bias.grad, torch.full_like(bias, sizes[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spline", SPLINES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_splines(sizes: tuple[int, int, int], spline: tuple[int, int], dtype: torch.dtype) -> None:
    (batch, fan_in, fan_out), (grid_size, order) = sizes, spline
    knots = torch.arange(grid_size + 2 * order + 1.0).expand(fan_in, -1).contiguous()
    leaves = {
        "x": torch.rand(batch, fan_in),
        "weight": torch.zeros(fan_in, grid_size + order, fan_out),
        "base_weight": torch.zeros(fan_in, fan_out),
    }
    leaves = {name: t.to(dtype).requires_grad_() for name, t in leaves.items()}
    bias = torch.ones(fan_out, dtype=dtype, requires_grad=True)
    x, weight, base_weight = leaves.values()
    knots = knots.to(torch.float64 if dtype == torch.float64 else torch.float32)
    y = F.kan_linear(x, weight, knots, spline_order=order, base_weight=base_weight, bias=bias)
    check(y, sizes, bias, leaves)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bases(sizes: tuple[int, int, int], basis: str) -> None:
    batch, fan_in, fan_out = sizes
    grid = torch.linspace(1, 2, 5).expand(fan_in, -1) if basis == "rbf" else None
    x, weight = (
        torch.rand(batch, fan_in, requires_grad=True),
        torch.zeros(fan_in, 4, fan_out, requires_grad=True),
    )
    bias = torch.ones(fan_out, requires_grad=True)
    check(F.basis_linear(x, weight, grid, basis=basis, bias=bias), sizes, bias, {"x": x, "weight": weight})
