"""refine: knots are inserted exactly, other sizes are fitted best."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from harness import DEVICE
from kan_kernels import KAN, use_backend
from kan_kernels.grids import refine, update_grid
from knots_and_points import make_grid
from spline_cases import F64, ORDERS, everywhere, layer_of, normal, splines

KNOTS = ("uniform", "ranges", "adaptive", "steep", "repeated", "clamped", "collapsed")


@pytest.mark.parametrize("knots", KNOTS)
@pytest.mark.parametrize("k", ORDERS)
def test_knot_insertion_is_exact(k: int, knots: str) -> None:
    """Multiples keep the splines everywhere, on the old knots, in extension cells and outside."""
    layer = layer_of(k, 4)
    layer.grid.copy_(make_grid(knots, 3, 4, k, torch.Generator().manual_seed(k)))
    x, old_knots = everywhere(layer), layer.grid.clone()
    old = splines(layer, x)
    size = layer.spline_weight.detach().abs().max()
    for factor in (2, 5):
        fine = copy.deepcopy(layer)
        refine(fine, 4 * factor)
        assert fine.grid_size == 4 * factor and fine.spline_weight.shape == (3, 4 * factor + k, 4)
        assert torch.equal(fine.grid[:, k : fine.grid.shape[1] - k][:, ::factor], old_knots[:, k : 5 + k])
        assert torch.equal(fine.grid[:, :k], old_knots[:, :k])
        torch.testing.assert_close(splines(fine, x), old, rtol=0, atol=1e-13 * float(size))
        assert fine.spline_weight.abs().max() <= size * (1 + 1e-14), "convex combinations only"


def test_insertion_in_float32_and_again() -> None:
    """5, 10, 20, 80 cells of a float32 model: what it computes stays within rounding, its layers still
    run.
    """
    model = KAN([3, 5, 2], device=DEVICE)
    for layer in model.layers:
        nn.init.normal_(layer.spline_weight)
    x = normal(100, 3, dtype=torch.float32)
    y = model(x)
    optimizer_parameters = list(model.parameters())
    for size in (10, 20, 80):
        refine(model, size)
        torch.testing.assert_close(model(x), y, rtol=0, atol=2e-5)
    assert all(layer.grid_size == 80 and layer.spline_weight.requires_grad for layer in model.layers)
    assert not any(layer.spline_weight is p for layer in model.layers for p in optimizer_parameters)
    fresh = KAN([3, 5, 2], device=DEVICE)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("k", ORDERS)
@pytest.mark.parametrize("with_data", [False, True])
def test_other_sizes_fit_best(backend: str, k: int, with_data: bool) -> None:
    """5 -> 7 cells: the least-squares optimum over the span, or on the data, as lstsq finds it on dense
    points.
    """
    layer = layer_of(k, 5)
    x = normal(300, 3) if with_data else None
    old_layer = copy.deepcopy(layer)
    with use_backend(backend):
        refine(layer, 7, x)
    assert layer.grid_size == 7
    assert torch.equal(layer.grid[:, :k], old_layer.grid[:, :k])
    assert torch.equal(layer.grid[:, [k, -1 - k]], old_layer.grid[:, [k, -1 - k]])
    if x is None:
        grid = layer.grid[0].cpu().double()
        edges = torch.cat([grid, old_layer.grid[0].cpu()]).unique()
        nodes, shares = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(k + 1))
        points = (edges[:-1, None] + edges.diff()[:, None] * (nodes + 1) / 2).flatten()
        roots = (edges.diff()[:, None] * shares).sqrt().flatten().unsqueeze(1)
        points = points.unsqueeze(1).expand(-1, 3)
    else:
        points, roots = x.cpu(), torch.ones(len(x), 1, dtype=F64)
    basis, old = oracle.basis(points, layer.grid.cpu(), k), splines(old_layer, points)
    for i in range(3):
        A, y = (roots * basis[:, i]).numpy(), (roots * old[:, i]).numpy()
        best, *_ = np.linalg.lstsq(A, y, rcond=None)
        found = layer.spline_weight[i].detach().cpu().numpy()
        optimum, got = np.linalg.norm(A @ best - y), np.linalg.norm(A @ found - y)
        assert optimum > 1e-5 and got <= optimum * (1 + 1e-6 * 10 ** max(0, k - 3))


def test_refine_with_data_goes_through_the_old_layers(backend: str) -> None:
    """The second layer is fitted on what the first one computed before it was refined."""
    model = KAN([2, 4, 3], 4, dtype=F64, device=DEVICE)
    for layer in model.layers:
        nn.init.normal_(layer.spline_weight)
    x = normal(90, 2)
    second = copy.deepcopy(model.layers[1])
    with use_backend(backend):
        hidden = model.layers[0](x).detach()
        refine(model, 7, x)
        refine(second, 7, hidden)
    assert torch.equal(model.layers[1].spline_weight, second.spline_weight)


def test_layers_of_that_size_stay() -> None:
    """Refining to the present size changes nothing, and mixed sizes meet."""
    model = KAN([2, 3, 2], 4, dtype=F64, device=DEVICE)
    refine(model.layers[0], 8)
    before = [layer.spline_weight for layer in model.layers]
    refine(model, 8)
    assert model.layers[0].spline_weight is before[0] and model.layers[1].spline_weight is not before[1]
    assert all(layer.grid_size == 8 for layer in model.layers)


def test_many_cells() -> None:
    """A thousand cells: exact from 500, and a fit of 1000 from 300 as good as on few."""
    layer = layer_of(3, 300, 2, 2)
    with torch.no_grad():  # a smooth function: coefficients near its values
        layer.spline_weight.copy_(torch.sin(3 * layer.grid[:, 2:-2]).unsqueeze(2).expand(-1, -1, 2))
    x = normal(2000, 2, scale=0.3)
    old = splines(layer, x)
    refine(layer, 1000)
    torch.testing.assert_close(splines(layer, x), old, rtol=0, atol=1e-7)
    update_grid(layer, x)
    torch.testing.assert_close(splines(layer, x), old, rtol=0, atol=1e-6)
