"""Layers of few outputs on short grids, whose rows find their own cells: what lies on knots and beyond."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kan_kernels import use_backend
from kan_kernels.functional import kan_linear

DTYPES = (torch.float32, torch.float64)


def even_knots(low: float, high: float, cells: int, order: int, dtype: torch.dtype) -> Tensor:
    """Return the knots of `cells` equal cells from low to high, extended on both sides."""
    width = (high - low) / cells
    count = cells + 2 * order + 1
    return torch.linspace(low - order * width, high + order * width, count, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cells", (1, 2, 3, 5, 6, 7, 10, 13, 20, 24))
@pytest.mark.parametrize("order", (0, 1, 2, 3))
@pytest.mark.parametrize("low,high", ((-1.0, 1.0), (0.3, 0.7), (-100.0, 171.3), (4000.0, 4001.0)))
def test_a_knot_belongs_to_the_cell_on_its_right(
    low: float, high: float, order: int, cells: int, dtype: torch.dtype
) -> None:
    """Cells of even knots are computed from x; steps of the k-th derivative show what is beside a knot."""
    knots, width = even_knots(low, high, cells, order, dtype), (high - low) / cells
    at = torch.cat([knots, knots.nextafter(knots - 1), knots.nextafter(knots + 1)]).repeat(6)
    far = torch.finfo(dtype).max
    x = torch.cat([at, torch.tensor([-torch.inf, torch.inf, far, -far], dtype=dtype)]).unsqueeze(1)
    weight = torch.randn(1, cells + order, 2, generator=torch.Generator().manual_seed(order)).to(dtype)
    options = {"spline_order": order, "base": None}
    precision = 100 * torch.finfo(dtype).eps * max(1.0, 0.01 * max(abs(low), abs(high)) / width)
    for m in range(order + 1):
        y = kan_linear(x, weight, knots.unsqueeze(0), derivative=m, backend="native", **options)
        with use_backend("reference"):
            expected = kan_linear(
                x.double(), weight.double(), knots.double().unsqueeze(0), derivative=m, **options
            )
        scale = weight.abs().max() * max(1, (2 * order / width) ** m)
        assert (y - expected)[:-4].abs().max() <= precision * scale, m
        assert torch.equal(y[-4:], torch.zeros_like(y[-4:]))  # the reference overflows there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", (1, -1))
def test_grids_of_the_largest_numbers(sign: int, dtype: torch.dtype) -> None:
    """Where knots reach as far as the dtype does, a spline is 0 beyond them too, and so are its gradients."""
    far = 0.9 * torch.finfo(dtype).max
    knots = torch.tensor([-1.0, 0.0, 1.0, 2.0, far], dtype=dtype).mul(sign).sort().values.unsqueeze(0)
    x = torch.tensor([0.5, torch.inf, -torch.inf, far * 1.1, -far * 1.1], dtype=dtype).mul(sign)
    x = x.repeat(20).unsqueeze(1).requires_grad_()
    weight = torch.ones(1, 3, 2, dtype=dtype, requires_grad=True)
    y = kan_linear(x, weight, knots, spline_order=1, base=None)
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    expected = torch.tensor([1.0, 0, 0, 0, 0], dtype=dtype).repeat(20).unsqueeze(1).expand(-1, 2)
    assert torch.equal(y, expected) and torch.equal(dx, torch.zeros_like(dx))
    order = slice(None, None, sign)
    assert torch.equal(dw[0, :, 0], torch.tensor([10.0, 10, 0], dtype=dtype)[list(range(3))[order]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_stay_where_their_functions_are(dtype: torch.dtype) -> None:
    """An infinite coefficient reaches the cells of its function, an infinite cotangent the functions of its
    row's cell, and NaN in one feature no other.
    """
    knots, order = even_knots(-1, 1, 5, 3, dtype), 3
    x = torch.linspace(-0.99, 0.99, 300, dtype=dtype).unsqueeze(1).repeat(1, 2)
    weight = torch.ones(2, 8, 3, dtype=dtype)
    weight[1, 0, 2] = torch.inf
    y = kan_linear(x, weight, knots.repeat(2, 1), spline_order=order, base=None)
    assert torch.equal(y[:, 2].isinf(), x[:, 1] < knots[order + 1])
    assert y[:, :2].isfinite().all() and not y.isnan().any()

    x[7, 1] = torch.nan
    weight = torch.ones(2, 8, 3, dtype=dtype, requires_grad=True)
    g = torch.ones(300, 3, dtype=dtype)
    g[150, 0] = torch.inf
    y = kan_linear(x, weight, knots.repeat(2, 1), spline_order=order, base=None)
    (found,) = torch.autograd.grad(y, weight, g)
    assert found[1].isnan().all() and found[0, :, 1:].isfinite().all()
    cell = int((knots <= x[150, 0]).sum()) - 1
    assert found[0, :, 0].isinf().nonzero().flatten().tolist() == list(range(cell - order, cell + 1))
    assert not found[0].isnan().any()
