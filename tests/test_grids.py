"""update_grid: where the knots go, that the function stays; what bad data does to it and to refine."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
from harness import DEVICE
from kan_kernels import KAN, KANLinear, use_backend
from kan_kernels.grids import refine, update_grid
from spline_cases import F64, ORDERS, layer_of, normal, splines, state


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


def test_a_layer_that_is_there_twice() -> None:
    """Its knots hold what reaches it at both places; a finer one keeps its function."""
    net = KAN([3, 3, 3, 3], dtype=F64, device=DEVICE)
    net.layers[2] = net.layers[0]
    x = normal(200, 3) * 2
    inner = net.layers[1](net.layers[0](x))
    every = torch.cat([x, inner])
    update_grid(net, x, margin=0.01, grid_eps=1.0)
    k, knots = 3, net.layers[0].grid
    torch.testing.assert_close(knots[:, k], every.amin(0) - 0.01, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(knots[:, -1 - k], every.amax(0) + 0.01, rtol=1e-12, atol=1e-12)
    want = net(x)
    refine(net, 10)
    torch.testing.assert_close(net(x), want, rtol=1e-9, atol=1e-9)
    refine(net, 13, x)
    assert net.layers[2] is net.layers[0] and net.layers[0].grid_size == 13


def test_order_zero_holds_the_largest_sample() -> None:
    """Without extension cells, the half-open last cell must not lose the sample that it ends at."""
    layer, x = layer_of(0, 4), normal(50, 3)
    for margin in (0.0, 0.01):
        update_grid(layer, x, margin=margin)
        assert (layer.grid[:, -1] > x.amax(0)).all()


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
