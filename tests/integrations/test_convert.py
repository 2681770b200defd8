"""Converters between efficient-kan, jaxKAN's arrays and KAN: the same function, or what cannot be held."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import peer_efficient_kan as peer
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.integrations import accelerate
from kan_kernels.integrations import efficient_kan as drop_in
from kan_kernels.integrations.convert import from_efficient_kan, from_jaxkan, to_efficient_kan

F64 = torch.float64


def points(rows: int, features: int) -> Tensor:
    """Inside the knots, in the extension cells and outside."""
    return 1.5 * torch.randn(rows, features, dtype=F64)


def same(got: Tensor, want: Tensor) -> None:
    """Two orders of a float64 sum."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13 * max(1.0, float(want.detach().abs().max())))


@pytest.mark.parametrize("package", [peer, drop_in])
@pytest.mark.parametrize("base", [nn.SiLU, nn.Identity])
@pytest.mark.parametrize("fast", [False, True])
def test_from_efficient_kan(package: Any, base: Any, fast: bool) -> None:
    """Networks and layers, with knots that follow the data; the copy shares nothing with the original."""
    model = package.KAN([3, 5, 2], 6, 2, base_activation=base).double()
    x = points(200, 3)
    model(x, update_grid=True)
    want = model(x)
    if fast:
        accelerate(model)
    made = from_efficient_kan(model)
    assert isinstance(made, KAN)
    same(made(x), want)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    same(model(x), want)
    layer = from_efficient_kan(model.layers[1])
    assert isinstance(layer, KANLinear)
    hidden = points(9, 5)
    same(layer(hidden), model.layers[1](hidden))


@pytest.mark.parametrize("base", ["silu", "identity", None])
def test_to_efficient_kan(base: str | None) -> None:
    """A masked KAN of any base; the state dict goes into the peer's own class, and back."""
    model = KAN([3, 5, 2], 6, 2, base=base, dtype=F64, grid_range=(-2.0, 1.0))
    model.layers[0].set_edge_mask((torch.rand(3, 5) > 0.3).double())
    x = points(100, 3)
    made = to_efficient_kan(model)
    assert isinstance(made, drop_in.KAN)
    same(made(x), model(x))
    theirs = peer.KAN(
        [3, 5, 2], 6, 2, base_activation=nn.Identity if base == "identity" else nn.SiLU
    ).double()
    theirs.load_state_dict(made.state_dict())
    same(theirs(x), model(x))
    same(from_efficient_kan(made)(x), model(x))
    layer = to_efficient_kan(model.layers[1])
    assert isinstance(layer, drop_in.KANLinear)
    hidden = points(9, 5)
    same(layer(hidden), model.layers[1](hidden))


def test_layers_of_different_grids() -> None:
    """Grid size and order may differ from layer to layer."""
    model = KAN([2, 3, 1], 4, dtype=F64)
    model.layers[1] = KANLinear(3, 1, 7, 2, dtype=F64, base="identity")
    x = points(50, 2)
    made = to_efficient_kan(model)
    same(made(x), model(x))
    back = from_efficient_kan(made)
    same(back(x), model(x))
    assert [layer.grid_size for layer in back.layers] == [4, 7]
    assert [layer.base for layer in back.layers] == ["silu", "identity"]


def test_a_conversion_draws_no_random_numbers() -> None:
    model, state = KAN([2, 3, 1]), torch.get_rng_state()
    to_efficient_kan(model)
    from_efficient_kan(to_efficient_kan(model))
    assert torch.equal(torch.get_rng_state(), state)


def symbolic_layer() -> KANLinear:
    layer = KANLinear(2, 2)
    symbolic.fix(layer, 0, 1, "sin", params=(1.0, 0.0, 1.0, 0.0))
    return layer


def biased() -> KANLinear:
    layer = KANLinear(2, 2, bias=True)
    nn.init.ones_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (symbolic_layer, "layer 0 has symbolic edges"),
        (biased, "layer 0 has a bias that is not zero"),
        (lambda: KANLinear(2, 2, 5, 0), "layer 0 has spline_order 0"),
        (lambda: KANLinear(2, 2, dtype=torch.bfloat16), "torch.bfloat16 weights and torch.float32 knots"),
    ],
)
def test_what_efficient_kan_cannot_hold(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_efficient_kan(make())


def test_what_kan_kernels_cannot_hold() -> None:
    with pytest.raises(ValueError, match="layer 0: base_activation GELU"):
        from_efficient_kan(peer.KAN([2, 2], base_activation=nn.GELU))

    class Own(peer.KANLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="Own has a forward of its own"):
        from_efficient_kan(Own(2, 2))
    for wrong in (nn.Linear(2, 2), KAN([2, 2]), nn.Sequential(), 3):
        with pytest.raises(TypeError, match="model: got"):
            from_efficient_kan(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: got Linear"):
        to_efficient_kan(nn.Linear(2, 2))


def jax_layer(
    fan_in: int, fan_out: int, size: int, order: int, generator: np.random.Generator
) -> dict[str, Any]:
    """jaxKAN's SplineLayer as arrays, all its parts present."""
    knots = np.cumsum(generator.uniform(0.2, 0.6, (fan_in, size + 2 * order + 1)), 1) - 1.5
    return {
        "c_basis": generator.normal(size=(fan_out, fan_in, size + order)),
        "c_spl": generator.normal(size=(fan_out, fan_in)),
        "c_res": generator.normal(size=(fan_out, fan_in)),
        "grid": knots,
        "bias": generator.normal(size=fan_out),
    }


def jax_forward(layer: dict[str, Any], x: Tensor, order: int) -> Tensor:
    """Its equation, written down anew over the oracle's basis."""
    p = {key: torch.from_numpy(value) for key, value in layer.items()}
    spline = torch.einsum("bir,oir,oi->bo", oracle.basis(x, p["grid"], order), p["c_basis"], p["c_spl"])
    return spline + nn.functional.silu(x) @ p["c_res"].t() + p["bias"]


@pytest.mark.parametrize("order", [1, 3])
def test_from_jaxkan(order: int) -> None:
    """A stack of two layers of different grids, from numpy arrays and from what numpy can read."""
    generator = np.random.default_rng(0)
    arrays = [jax_layer(3, 4, 5, order, generator), jax_layer(4, 2, 7, order, generator)]
    x = points(60, 3)
    want = jax_forward(arrays[1], jax_forward(arrays[0], x, order), order)
    same(from_jaxkan(arrays, order)(x), want)
    lists = [{key: value.tolist() for key, value in layer.items()} for layer in arrays]
    same(from_jaxkan(lists, order)(x), want)
    narrow = from_jaxkan([{k: v.astype(np.float32) for k, v in layer.items()} for layer in arrays], order)
    assert narrow.layers[0].spline_weight.dtype == torch.float32


def test_from_jaxkan_base_layer() -> None:
    """Its BaseLayer numbers edges o in + i and repeats the knots for every output."""
    layer = jax_layer(3, 4, 5, 2, np.random.default_rng(1))
    flat = layer | {
        "c_basis": layer["c_basis"].reshape(12, 7),
        "grid": np.tile(layer["grid"], (4, 1)),
    }
    x = points(20, 3)
    same(from_jaxkan([flat], 2)(x), jax_forward(layer, x, 2))
    flat["grid"] = flat["grid"] + np.arange(12)[:, None] * 1e-3
    with pytest.raises(ValueError, match="the outputs have different knots for one input"):
        from_jaxkan([flat], 2)


def test_from_jaxkan_without_parts() -> None:
    """No residual, no external weights, no bias; None counts as absent."""
    layer = jax_layer(3, 4, 5, 2, np.random.default_rng(2))
    bare = {"c_basis": layer["c_basis"], "grid": layer["grid"], "c_spl": None, "bias": None}
    x = points(20, 3)
    made = from_jaxkan([bare], 2, base=None)
    want = oracle.basis(x, torch.from_numpy(layer["grid"]), 2)
    same(made(x), torch.einsum("bir,oir->bo", want, torch.from_numpy(layer["c_basis"])))
    assert made.layers[0].base is None and made.layers[0].bias is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c_basis": None}, "layers[0]: has no c_basis"),
        ({"c_res": None}, "layers[0]: has no c_res"),
        ({"c_basis": np.zeros((4, 3, 2))}, "expected more than spline_order 2"),
        ({"c_basis": np.zeros((4, 3))}, "layers[0]['c_basis']: got shape (4, 3), expected (12, 3)"),
        ({"grid": np.zeros((3, 9))}, "layers[0]['grid']: got shape (3, 9), expected (3, 10)"),
        ({"grid": np.zeros((3, 10))[:, ::-1] - np.arange(10)}, "grid: knot 1 of feature 0"),
        ({"bias": np.zeros(3)}, "layers[0]['bias']: got shape (3,), expected (4,)"),
        ({"weight": np.zeros(3)}, "layers[0]: got weight, expected c_basis"),
        ({"c_spl": np.array(["a"])}, "layers[0]['c_spl']: got <U1"),
    ],
)
def test_bad_jaxkan(change: dict[str, Any], message: str) -> None:
    layer = jax_layer(3, 4, 5, 2, np.random.default_rng(3))
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        from_jaxkan([layer | change], 2)


def test_bad_jaxkan_stack() -> None:
    generator = np.random.default_rng(4)
    layer = jax_layer(3, 4, 5, 2, generator)
    with pytest.raises(ValueError, match=re.escape("layers[1]: has 3 inputs, expected 4")):
        from_jaxkan([layer, layer], 2)
    with pytest.raises(ValueError, match="layers: got none"):
        from_jaxkan([], 2)
    with pytest.raises(ValueError, match="spline_order: got 11"):
        from_jaxkan([layer], 11)
    with pytest.raises(TypeError, match="expected a mapping"):
        from_jaxkan([3], 2)  # type: ignore[list-item]


class Residual(nn.Module):
    """Layers that go into each other, and something else around them."""

    def __init__(self, package: Any = peer) -> None:
        super().__init__()
        self.layers = nn.ModuleList([package.KANLinear(3, 3), package.KANLinear(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Normed(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)


class Dropped(peer.KAN):
    """Another function in training only."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        return nn.functional.dropout(super().forward(x, update_grid), 0.5, self.training)


class Clamped(peer.KAN):
    """Another function far outside the knots only."""

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        return super().forward(x.clamp(-1000, 1000), update_grid)


class Heads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([peer.KANLinear(4, width), peer.KANLinear(4, width)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers)  # type: ignore[return-value]


class Broken(peer.KAN):
    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Residual, "model: Residual computes something else than its layers one after the other"),
        (lambda: Residual(drop_in), "model: Residual computes something else"),
        (Normed, "model: Normed has norm beside its layers"),
        (lambda: Clamped([3, 4, 2]), "model: Clamped computes something else"),
        (lambda: Dropped([3, 4, 2]).eval(), "model: Dropped computes something else"),
        (lambda: Heads(4), "model: Heads computes something else"),
        (lambda: Heads(3), "model: layer 1: has 4 inputs, expected 3 like"),
        (lambda: Broken([3, 2]), "model: Broken could not be run on a probe: RuntimeError: not today"),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_only_plain_stacks_of_efficient_kan(make: Any, message: str, fast: bool) -> None:
    """Whatever the network does beside its layers is no part of a KAN, so it is refused; modes stay."""
    model = make()
    if fast:
        accelerate(model)
    training, state = model.training, torch.get_rng_state()
    with pytest.raises(ValueError, match=re.escape(message)):
        from_efficient_kan(model)
    assert model.training == training and torch.equal(torch.get_rng_state(), state)


def test_a_wide_network_of_efficient_kan() -> None:
    """More inputs than the probe has rows."""
    model = peer.KAN([3000, 2], grid_size=2, spline_order=1)
    x = torch.rand(4, 3000)
    torch.testing.assert_close(from_efficient_kan(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_hooks_are_not_run_by_a_conversion() -> None:
    model, calls = peer.KAN([3, 4, 2]), []
    for module in (model, *model.layers):
        module.register_forward_hook(lambda *args: calls.append(1))
        module.register_forward_pre_hook(lambda *args: calls.append(1))
    made = from_efficient_kan(model)
    assert not calls
    x = torch.randn(5, 3)
    torch.testing.assert_close(made(x), model(x))
    assert len(calls) == 6


@pytest.mark.parametrize("fast", [False, True])
def test_coincident_knots_of_efficient_kan(fast: bool) -> None:
    """The peer divides by zero there, the kernels do not; the drop-in is the kernels."""
    model = peer.KAN([3, 2])
    if fast:
        accelerate(model)
    model.layers[0].grid[1, 5] = model.layers[0].grid[1, 4]
    assert model(torch.rand(9, 3)).isnan().any()
    with pytest.raises(ValueError, match="model: layer 0: knots coincide"):
        from_efficient_kan(model)
    ours = drop_in.KAN([3, 2])
    ours.layers[0].grid[1, 5] = ours.layers[0].grid[1, 4]
    x = torch.rand(9, 3)
    torch.testing.assert_close(from_efficient_kan(ours)(x), ours(x))


def test_from_jaxkan_has_one_dtype() -> None:
    """A stack of two dtypes cannot run; float64 knots that float32 cannot tell apart are not rounded."""
    generator = np.random.default_rng(5)
    wide, narrow = jax_layer(3, 4, 5, 2, generator), jax_layer(4, 2, 5, 2, generator)
    narrow = {key: value.astype(np.float32) for key, value in narrow.items()}
    with pytest.raises(ValueError, match=re.escape("layers[1]: is torch.float32, expected torch.float64")):
        from_jaxkan([wide, narrow], 2)
    mixed = narrow | {"grid": narrow["grid"].astype(np.float64)}
    assert from_jaxkan([mixed], 2).layers[0].grid.dtype == torch.float32
    mixed["grid"][1, 5:] = mixed["grid"][1, 4] + 1e-9 * np.arange(1, 6)
    with pytest.raises(ValueError, match=re.escape("layers[0]['grid']: knots that are apart")):
        from_jaxkan([mixed], 2)
    mixed["grid"][1, 5:] = mixed["grid"][1, 4]  # they coincide as they are
    from_jaxkan([mixed], 2)
