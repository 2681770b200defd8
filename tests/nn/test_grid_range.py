"""Where a layer's knots are: repr, grid_range and reset_parameters know it, whoever placed them."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kan_kernels import KAN, KANConv2d, KANLinear
from kan_kernels.grids import refine, update_grid
from kan_kernels.integrations import convert
from kan_kernels.pruning import prune_inputs


def uniform(layer: KANLinear) -> Tensor:
    """The inner knots, which must be evenly spaced."""
    inner = layer.grid[:, layer.spline_order : -layer.spline_order]
    steps = inner.diff()
    torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=1e-4, atol=1e-5)
    return inner[:, [0, -1]]


def moved(layer: KANLinear) -> KANLinear:
    """By update_grid, to 10..20 in all features."""
    update_grid(layer, torch.linspace(10, 20, 101).unsqueeze(1).expand(-1, layer.in_features), margin=0.0)
    return layer


def loaded(layer: KANLinear) -> KANLinear:
    other = KANLinear(layer.in_features, layer.out_features)
    other.load_state_dict(moved(layer).state_dict())
    return other


def assigned(layer: KANLinear) -> KANLinear:
    other = KANLinear(layer.in_features, layer.out_features, device="meta")
    other.load_state_dict(moved(layer).state_dict(), assign=True)
    return other


def converted(layer: KANLinear) -> KANLinear:
    return convert.from_efficient_kan(convert.to_efficient_kan(moved(layer)))  # type: ignore[return-value]


def refined(layer: KANLinear) -> KANLinear:
    refine(moved(layer), 10)
    return layer


PLACED: dict[str, Callable[[KANLinear], KANLinear]] = {
    "update_grid": moved,
    "load_state_dict": loaded,
    "assign": assigned,
    "deepcopy": lambda layer: copy.deepcopy(moved(layer)),
    "pickle": lambda layer: pickle.loads(pickle.dumps(moved(layer))),
    "converter": converted,
    "refine": refined,
    "half": lambda layer: moved(layer).half().float(),
    "to_empty": lambda layer: moved(layer).to_empty(device="cpu"),
}


@pytest.mark.parametrize("place", PLACED.values(), ids=PLACED)
def test_the_range_of_placed_knots(place: Callable[[KANLinear], KANLinear]) -> None:
    """repr, grid_range and reset_parameters know where the knots are, whoever placed them."""
    layer = place(KANLinear(3, 2))
    if place is not PLACED["to_empty"]:  # the knots are garbage then, until the reset
        assert "grid_range=(10.0, 20.0)" in repr(layer), repr(layer)
    low, high = layer.grid_range
    assert low == pytest.approx(10.0, abs=1e-4) and high == pytest.approx(20.0, abs=1e-4)
    layer.reset_parameters()
    torch.testing.assert_close(uniform(layer), torch.tensor([10.0, 20.0]).expand(3, 2), rtol=1e-5, atol=1e-5)


def test_ranges_of_features() -> None:
    """Each feature keeps its own; a constant one, whose knots only moved, too. Pruning takes them along."""
    layer = KANLinear(3, 2)
    x = torch.rand(200, 3) * torch.tensor([1.0, 1000.0, 0.0]) + torch.tensor([0.0, 5000.0, 7.0])
    update_grid(layer, x, margin=0.0)
    before = layer.grid[:, [3, -4]].clone()
    assert re.search(r"grid_range=\(0\.\d{1,9}, 599\d\.\d+\) over all features", repr(layer)), repr(layer)
    small, _ = prune_inputs(KAN([3, 2]), x, keep=[0, 1, 2])
    small.layers[0].load_state_dict(layer.state_dict())
    small, report = prune_inputs(small, x, keep=[2, 1])
    layer.reset_parameters()
    torch.testing.assert_close(uniform(layer), before)
    small.layers[0].reset_parameters()
    torch.testing.assert_close(uniform(small.layers[0]), before[report.kept[0]])


def test_a_range_that_did_not_move_stays_exact() -> None:
    """Loading a state of its own leaves the numbers that the constructor got, and so the knots' bits."""
    layer = KANLinear(3, 2, 7, grid_range=(-0.3, 1.7))
    before = layer.grid.clone()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    layer.double().float()
    assert "grid_range=(-0.3, 1.7)" in repr(layer) and layer.grid_range == (-0.3, 1.7)
    layer.reset_parameters()
    assert torch.equal(layer.grid, before)


def test_repr_tells_knots_that_other_code_wrote() -> None:
    """They are seen by repr; reset_parameters goes back to where the layer's own methods placed them."""
    layer = KANLinear(3, 2)
    with torch.no_grad():
        layer.grid.mul_(5)
    assert "grid_range=(-5.0, 5.0)" in repr(layer) and layer.grid_range == (-1.0, 1.0)
    layer.reset_parameters()
    assert "grid_range=(-1.0, 1.0)" in repr(layer)
    layer.grid.fill_(float("nan"))
    assert "grid_range=(nan, nan)" in repr(layer)
    layer.grid_range = (0, 3)
    layer.reset_parameters()
    assert "grid_range=(0.0, 3.0)" in repr(layer)
    with pytest.raises(ValueError, match="grid_range: got"):
        layer.grid_range = (3.0, 0.0)
    assert "grid_range=(0.0, 3.0)" in repr(KANLinear(3, 2, grid_range=(0, 3), device="meta"))


def test_the_range_of_convolutions() -> None:
    layer = KANConv2d(3, 2, 3)
    other = KANConv2d(3, 2, 3, grid_range=(10.0, 20.0))
    layer.load_state_dict(other.state_dict())
    assert "grid_range=(10.0, 20.0)" in repr(layer)
    layer.reset_parameters()
    torch.testing.assert_close(layer.grid, other.grid)


def test_a_failed_load_keeps_the_range() -> None:
    layer = KANLinear(3, 2)
    state = moved(KANLinear(3, 2)).state_dict()
    state["surprise"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="surprise"):
        layer.load_state_dict(state)
    assert layer.grid_range == (-1.0, 1.0)
