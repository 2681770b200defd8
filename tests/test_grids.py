"""update_grid and refine: where the knots go, that the function stays, and what bad data does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import make_grid
from harness import DEVICE
from torch import Tensor, nn

from kan_kernels import KAN, KANLinear, use_backend
from kan_kernels.grids import refine, update_grid
from kan_kernels.spline_refit import refit, solve_banded

F64 = torch.float64
ORDERS = (0, 1, 2, 3, 5, 8)
KNOTS = ("uniform", "ranges", "adaptive", "steep", "repeated", "clamped", "collapsed")


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


# ---- update_grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid_eps", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 3])
def test_knots_are_those_of_efficient_kan(grid_eps: float, k: int) -> None:
    """The published rule in NumPy: quantiles blended with uniform knots, extended by the uniform step."""
    layer, size, margin = layer_of(k, 5), 5, 0.01
    x = normal(257, 3)
    update_grid(layer, x, grid_eps=grid_eps, margin=margin)
    points = np.sort(x.cpu().numpy(), axis=0)
    for i in range(3):
        column = points[:, i]
        adaptive = column[[j * 256 // size for j in range(size + 1)]]
        step = (column[-1] - column[0] + 2 * margin) / size
        uniform = column[0] - margin + step * np.arange(size + 1)
        inner = grid_eps * uniform + (1 - grid_eps) * adaptive
        before, after = inner[0] - step * np.arange(k, 0, -1), inner[-1] + step * np.arange(1, k + 1)
        want = np.concatenate([before, inner, after])
        np.testing.assert_allclose(layer.grid[i].cpu().numpy(), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", ORDERS)
def test_fit_is_the_least_squares_optimum(backend: str, k: int) -> None:
    """The distance from the old splines on the data is that of numpy.linalg.lstsq on sampled targets."""
    layer, x = layer_of(k, 6), normal(400, 3, scale=0.5)
    old = splines(layer, x)
    with use_backend(backend):
        update_grid(layer, x)
    basis = oracle.basis(x.cpu(), layer.grid.cpu(), k)
    moved = splines(layer, x)
    for i in range(3):
        best, *_ = np.linalg.lstsq(basis[:, i].numpy(), old[:, i].numpy(), rcond=None)
        optimum = np.linalg.norm(basis[:, i].numpy() @ best - old[:, i].numpy())
        assert optimum > 0.01, "the knots should have lost something"
        # up to what the span counts for beside the data: 1e-12 of the square, where the optimum is far off
        got = float((moved[:, i] - old[:, i]).norm())
        assert got <= optimum * (1 + 1e-6 * 10 ** max(0, k - 3)), f"{got} against {optimum}"


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_representable_functions_stay(backend: str, dtype: torch.dtype) -> None:
    """A cubic on all knots is one on any knots: base, bias and masks untouched, the function kept on the
    data.
    """
    layer = layer_of(3, 8, base="silu", bias=True, dtype=dtype)
    x = normal(300, 3, scale=0.4, dtype=dtype).clamp(-0.99, 0.99)
    grid = layer.grid.double()
    # spline coefficients of t^3: the product of three neighbouring knots (Marsden's identity)
    cubic = torch.stack([grid[:, r + 1] * grid[:, r + 2] * grid[:, r + 3] for r in range(11)], 1)
    with torch.no_grad():
        layer.spline_weight.copy_(cubic.unsqueeze(2).expand(-1, -1, 4))
    layer.set_edge_mask(torch.tensor([[1, 0, 1, 1]] * 3, device=DEVICE))
    before, y, parameters = state(layer), layer(x), dict(layer.named_parameters())
    with use_backend(backend):
        update_grid(layer, x, margin=0.1)
    assert not torch.equal(layer.grid, before["grid"])
    for key, parameter in layer.named_parameters():
        assert parameter is parameters[key] and (
            key == "spline_weight" or torch.equal(parameter, before[key])
        )
    assert torch.equal(layer.edge_mask, before["edge_mask"])
    tolerance = {torch.float32: 1e-5, F64: 1e-11, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(layer(x), y, rtol=0, atol=tolerance)


def test_layers_see_what_the_old_ones_computed(backend: str) -> None:
    """A model is updated layer by layer, each on the inputs it had: the same as by hand."""
    model = KAN([3, 6, 5, 2], dtype=F64, device=DEVICE)
    for layer in model.layers:
        nn.init.normal_(layer.spline_weight)
    x = normal(5, 80, 3)
    inputs, by_hand = [x.reshape(-1, 3)], copy.deepcopy(model)
    with use_backend(backend):
        for layer in model.layers:
            inputs.append(layer(inputs[-1]).detach())
        update_grid(model, x)
        for layer, rows in zip(by_hand.layers, inputs, strict=False):
            update_grid(layer, rows)
    for key, value in model.state_dict().items():
        assert torch.equal(value, by_hand.state_dict()[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("k", ORDERS)
def test_degenerate_data(backend: str, k: int, dtype: torch.dtype) -> None:
    """Constant columns, two values, fewer samples than cells, one sample: finite, and the old function at
    them.
    """
    columns = {
        "constant inside": torch.full((7,), 0.3),
        "constant outside": torch.full((7,), 40.0),
        "two values": torch.tensor([0.1, 0.7, 0.7, 0.1, 0.1, 0.7, 0.1]),
        "nearly constant": 0.5 + 1e-6 * torch.arange(7),
        "few": torch.linspace(-0.9, 0.9, 7),
    }
    for count in (7, 1):
        layer = layer_of(k, 20, len(columns), dtype=dtype)
        x = torch.stack(list(columns.values()), 1)[:count].to(DEVICE, dtype)
        old = splines(layer, x)
        for options in ({}, {"margin": 0.0}, {"grid_eps": 0.0, "margin": 0.0}, {"grid_eps": 1.0}):
            moved = copy.deepcopy(layer)
            with use_backend(backend):
                update_grid(moved, x, **options)  # type: ignore[arg-type]
            assert moved.grid.isfinite().all() and moved.spline_weight.isfinite().all()
            assert (moved.grid.diff(dim=1) >= 0).all()
            basis = oracle.basis(x.double().cpu(), moved.grid.double().cpu(), k).transpose(0, 1).numpy()
            target = old.transpose(
                0, 1
            ).numpy()  # two samples may have come to share a cell: the best there is
            best = basis @ (np.linalg.pinv(basis) @ target) - target
            got = splines(moved, x).transpose(0, 1).numpy() - target
            tolerance = 2e-4 if dtype != F64 else 1e-6
            assert (np.linalg.norm(got, axis=1) <= np.linalg.norm(best, axis=1) + tolerance).all()
            if count == 1:  # every column is constant
                kept = moved.grid - layer.grid
                torch.testing.assert_close(kept, kept[:, :1].expand_as(kept), rtol=0, atol=1e-5)
                assert torch.equal(moved.grid[0], layer.grid[0]) and kept[1, 0] > 30


def test_the_old_function_stays_where_there_is_no_data(backend: str) -> None:
    """Two clusters: between them the new spline is the closest to the old one, not zero and not wild."""
    layer = layer_of(3, 10, 1, 1)
    x = torch.cat([torch.linspace(-0.9, -0.7, 50), torch.linspace(0.7, 0.9, 50)]).to(DEVICE, F64).unsqueeze(1)
    with torch.no_grad():
        layer.spline_weight.fill_(2.0)
    with use_backend(backend):
        update_grid(layer, x, grid_eps=1.0)
    inside = torch.linspace(-0.9, 0.9, 200, dtype=F64).unsqueeze(1)
    torch.testing.assert_close(
        splines(layer, inside), torch.full((200, 1, 1), 2.0, dtype=F64), rtol=0, atol=1e-6
    )


def test_order_zero_holds_the_largest_sample() -> None:
    """Without extension cells, the half-open last cell must not lose the sample that it ends at."""
    layer, x = layer_of(0, 4), normal(50, 3)
    for margin in (0.0, 0.01):
        update_grid(layer, x, margin=margin)
        assert (layer.grid[:, -1] > x.amax(0)).all()


# ---- refine ----------------------------------------------------------------------------------------------


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


# ---- the solver ------------------------------------------------------------------------------------------


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


# ---- errors ----------------------------------------------------------------------------------------------


def _nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[3, 1] = torch.nan
    return x


@pytest.mark.parametrize(
    "error, match, call",
    [
        (ValueError, "x: sample 3 of feature 1", lambda m, x: update_grid(m, _nan(x))),
        (ValueError, "x: sample 3 of feature 1", lambda m, x: refine(m, 7, _nan(x))),
        (ValueError, "x: got no samples", lambda m, x: update_grid(m, x[:0])),
        (ValueError, r"x: got shape \(20, 2\)", lambda m, x: update_grid(m, x[:, :2])),
        (TypeError, "x: got torch.float32", lambda m, x: update_grid(m, x.float())),
        (TypeError, "x: got list", lambda m, x: update_grid(m, [1.0])),
        (ValueError, "x: its range is too large", lambda m, x: update_grid(m, x * 5e307)),
        (ValueError, "grid_eps: got 1.5", lambda m, x: update_grid(m, x, grid_eps=1.5)),
        (TypeError, "grid_eps: got '1'", lambda m, x: update_grid(m, x, grid_eps="1")),
        (ValueError, "margin: got -1", lambda m, x: update_grid(m, x, margin=-1)),
        (ValueError, "new_grid_size: got 4, but layer 0 has 5", lambda m, x: refine(m, 4)),
        (ValueError, "new_grid_size: got 0", lambda m, x: refine(m, 0)),
        (TypeError, "new_grid_size: got 7.5", lambda m, x: refine(m, 7.5)),
        (TypeError, "model: got Linear", lambda m, x: update_grid(nn.Linear(3, 3), x)),
    ],
)
def test_errors_change_nothing(error: type[Exception], match: str, call: Callable[..., None]) -> None:
    """The message names the argument; every tensor of the model is as it was."""
    model, x = KAN([3, 4, 2], dtype=F64, device=DEVICE), normal(20, 3)
    before, parameters = state(model), list(model.parameters())
    with pytest.raises(error, match=match):
        call(model, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_an_error_in_a_later_layer_changes_nothing() -> None:
    """Inputs of the second layer that are not finite, and one that is parametrized."""
    x = normal(20, 3)
    broken = KAN([3, 4, 2], dtype=F64, device=DEVICE)
    with torch.no_grad():
        broken.layers[0].base_weight[0, 0] = torch.inf
    wrapped = KAN([3, 4, 2], dtype=F64, device=DEVICE)
    nn.utils.parametrizations.weight_norm(wrapped.layers[1], "spline_weight")
    for model, match in ((broken, "inputs of layer 1 are not finite"), (wrapped, "parametrized")):
        before = state(model)
        for call in (lambda m=model: update_grid(m, x), lambda m=model: refine(m, 7, x)):
            with pytest.raises(ValueError, match=match):
                call()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="parametrized"):
        refine(wrapped, 10)


def test_the_largest_sample_has_a_cell_where_knots_are_rounded_together() -> None:
    """float32 cannot tell the extension knots of a narrow range far from 0 apart."""
    layer = KANLinear(1, 1, 20, 3, base=None, device=DEVICE)
    x = torch.tensor([[1e7], [1e7 + 1], [1e7 + 2]], device=DEVICE)
    update_grid(layer, x)
    assert float(layer.grid[0, -1]) > 1e7 + 2
    basis = oracle.basis(x.double().cpu(), layer.grid.double().cpu(), 3)
    assert bool((basis.sum(-1) > 0).all())
