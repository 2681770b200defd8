"""The banded solver of the refit."""

from __future__ import annotations

import copy

import pytest
import torch

from harness import DEVICE
from kan_kernels.refit import refit, solve_banded
from spline_cases import F64, layer_of, normal, splines


@pytest.mark.parametrize("width", [0, 1, 3, 10])
def test_solve_banded(width: int) -> None:
    """The solution is found again, with badly scaled rows too; an empty row and column gives 0."""
    gen = torch.Generator().manual_seed(width)
    n = 12
    factor = torch.randn(4, n, n, generator=gen, dtype=F64).tril().triu(-width)
    factor.diagonal(dim1=1, dim2=2).abs_().add_(2.0 + width)
    factor *= 10.0 ** torch.linspace(-4, 4, n, dtype=F64).unsqueeze(1)
    matrix = factor @ factor.transpose(1, 2)
    want = torch.randn(4, n, 5, generator=gen, dtype=F64)
    right = matrix @ want
    band = torch.zeros(4, n, width + 1, dtype=F64)
    for d in range(width + 1):
        band[:, : n - d, d] = matrix.diagonal(d, 1, 2)
    got = solve_banded(band.to(DEVICE), right.to(DEVICE)).cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)  # condition numbers reach 1e7
    band[:, 4], right[:, 4] = 0.0, 0.0
    for d in range(1, width + 1):
        band[:, 4 - d if d <= 4 else 4, d] = 0.0
    assert (solve_banded(band.to(DEVICE), right.to(DEVICE))[:, 4] == 0).all()


def test_fewer_functions_than_bands() -> None:
    """One cell of order 8: nine functions, all of which overlap."""
    layer = layer_of(8, 1)
    x = normal(200, 3, scale=0.3)
    moved = refit(layer.spline_weight.detach(), layer.grid, layer.grid, 8, x)
    kept = copy.deepcopy(layer)
    with torch.no_grad():
        kept.spline_weight.copy_(moved)
    torch.testing.assert_close(splines(kept, x), splines(layer, x), rtol=0, atol=1e-9)
