"""A state dict that does not fit leaves a model as it was, whichever layer or part of it is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness import DEVICE
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.grids import refine

AFFINE = (1.3, 0.2, 0.7, -0.1)


def make(grid_size: int = 5, **options: Any) -> KAN:
    return KAN([2, 3, 2], grid_size, **{"dtype": torch.float64, "device": DEVICE, **options})


def foreign() -> dict[str, Tensor]:
    """Of a model with another grid size, a mask and formulas in both layers."""
    net = make(bias=True)
    refine(net, 8)
    for layer, name in zip(net.layers, ("sin", "exp"), strict=True):
        symbolic.fix(layer, 1, 1, name, params=AFFINE)
    return net.state_dict()


def unknown(state: dict[str, Any]) -> None:
    state["layers.1.symbolic._extra_state"] = torch.tensor(list(b'["sinus"]'), dtype=torch.uint8)


def missing(state: dict[str, Any]) -> None:
    del state["layers.1.bias"]


def misshapen(state: dict[str, Any]) -> None:
    state["layers.1.base_weight"] = state["layers.1.base_weight"][:, :1]


@pytest.mark.parametrize("assign", (False, True))
@pytest.mark.parametrize(
    "spoil,error", [(unknown, ValueError), (missing, RuntimeError), (misshapen, RuntimeError)]
)
@pytest.mark.parametrize("fixed", (False, True))
def test_nothing_is_half_loaded(
    spoil: Callable[[dict], None], error: type[Exception], fixed: bool, assign: bool
) -> None:
    """An error in the last layer: the first has its grid size, formulas, parameters and values back."""
    net = make(bias=True)
    if fixed:
        symbolic.fix(net.layers[0], 0, 2, "cos", params=AFFINE)
        symbolic.fix(net.layers[1], 1, 1, "exp", params=AFFINE)
    before, parameters = copy.deepcopy(net), dict(net.named_parameters())
    state = dict(foreign())
    spoil(state)
    with pytest.raises(error):
        net.load_state_dict(state, assign=assign)
    assert [layer.grid_size for layer in net.layers] == [5, 5]
    after = net.state_dict()
    assert after.keys() == before.state_dict().keys()
    assert all(torch.equal(value, after[key]) for key, value in before.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
    x = torch.rand(7, 2, dtype=torch.float64, device=DEVICE)
    assert torch.equal(net(x), before(x))
    assert net.load_state_dict(foreign()) == ([], [])
    assert [layer.symbolic.names for layer in net.layers] == [["sin"], ["exp"]]


def test_a_layer_alone() -> None:
    """A key too few in one layer: what was there is put back."""
    layer, other = (KANLinear(2, 3, size, bias=True, device=DEVICE) for size in (5, 9))
    before, state = copy.deepcopy(layer.state_dict()), other.state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(state)
    assert layer.grid_size == 5
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    layer.load_state_dict(state, strict=False)
    assert layer.grid_size == 9 and torch.equal(layer.spline_weight, other.spline_weight)


def test_lazy_modules_of_a_subclass() -> None:
    """Parameters without values yet do not get in the way."""

    class Longer(KAN):
        def __init__(self) -> None:
            super().__init__([2, 2], device=DEVICE)
            self.last = nn.LazyLinear(1, device=DEVICE)

    net, other = Longer(), Longer()
    other.last(torch.ones(1, 2, device=DEVICE))
    with pytest.raises(RuntimeError):
        net.load_state_dict({**other.state_dict(), "more": torch.ones(1)})
    assert not torch.equal(net.layers[0].spline_weight, other.layers[0].spline_weight)
    assert net.load_state_dict(other.state_dict()) == ([], [])


def test_what_fits_is_not_copied_first() -> None:
    """Loading a state of the same shapes clones nothing; one that may fail is loaded beside a copy."""

    class Clones(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten.clone.default
            return func(*args, **(kwargs or {}))

    net, state = make(), make().state_dict()
    with Clones() as seen:
        net.load_state_dict(state)
    assert seen.count == 0
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    state["layers.1.grid"] = state["layers.1.grid"].to("meta")  # torch's own copy refuses it
    before = copy.deepcopy(net.state_dict())
    state["layers.0.base_weight"] = state["layers.0.base_weight"] + 1
    with Clones() as seen, pytest.raises(RuntimeError):
        net.load_state_dict(state)
    assert seen.count > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_names_of_formulas_are_read_before_anything_changes() -> None:
    """Keys and shapes agree, but a name of the last layer is none: the first keeps its values."""
    net = make()
    for layer in net.layers:
        symbolic.fix(layer, 1, 1, "sin", params=AFFINE)
    before = copy.deepcopy(net.state_dict())
    state = {key: value + 1 if value.is_floating_point() else value for key, value in before.items()}
    state["layers.1.symbolic._extra_state"] = torch.tensor(list(b'["sun"]'), dtype=torch.uint8)
    assert state["layers.1.symbolic._extra_state"].shape == before["layers.1.symbolic._extra_state"].shape
    with pytest.raises(ValueError):
        net.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_part_of_a_state_leaves_the_rest() -> None:
    """Without strict, what is missing is named and stays: masks and formulas too. A whole state says all."""
    layer, plain = KANLinear(3, 4, device=DEVICE), KANLinear(3, 4, device=DEVICE)
    layer.set_edge_mask(torch.eye(3, 4))
    symbolic.fix(layer, 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    x = torch.rand(5, 3, device=DEVICE)
    y, state = layer(x), layer.state_dict()
    part = {key: state[key] for key in ("spline_weight", "grid")}
    missing = layer.load_state_dict(part, strict=False).missing_keys
    assert {"base_weight", "edge_mask", "symbolic.affine"} <= set(missing) and torch.equal(layer(x), y)
    layer.load_state_dict(plain.state_dict())
    assert layer.edge_mask is None and layer.symbolic is None and torch.equal(layer(x), plain(x))
