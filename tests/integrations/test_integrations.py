"""The frame: what is taken and what is left, and that a taken layer stays the peer's own object."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import peer_efficient_kan as peer
from kan_kernels import KAN, integrations
from kan_kernels.integrations import Accelerated, accelerate, explain, restore
from kan_kernels.integrations import efficient_kan as drop_in


class Block(nn.Module):
    """A KAN inside something that knows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed = peer.KAN([8, 6, 8])
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.norm(x + self.attention(x, x, x)[0]))


def taken(report: Any) -> list[str]:
    return [entry.name for entry in report.taken]


def test_finds_layers_anywhere() -> None:
    """In a transformer block, in containers, as the root, and a shared layer once."""
    model = nn.Sequential(Block(), nn.ModuleDict({"a": peer.KANLinear(8, 8)})["a"], nn.Linear(8, 8))
    model.append(model[1])
    x = torch.randn(2, 4, 8)
    want = model(x)
    report = accelerate(model)
    assert taken(report) == ["0.feed.layers.0", "0.feed.layers.1", "1"] and not report.left
    assert model[3] is model[1]
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    root = peer.KANLinear(2, 2)
    assert taken(accelerate(root)) == [""] and "(the model)" in str(accelerate(root))


def test_stays_the_same_object() -> None:
    """Class, parameters, state dict, hooks, methods: the peer's own."""
    layer = peer.KANLinear(3, 2)
    parameters, state, seen = list(layer.parameters()), layer.state_dict(), []
    layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    before = set(vars(layer))  # what is kept of the judgement is no attribute of the peer's
    accelerate(layer)
    assert isinstance(layer, peer.KANLinear) and type(layer).__name__ == "AcceleratedKANLinear"
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == list(state)
    assert {name for name in vars(layer) if not name.startswith("_kan_kernels_")} == before
    layer(torch.randn(5, 3))
    assert seen == [(5, 2)]
    layer.load_state_dict(peer.KANLinear(3, 2).state_dict())
    assert layer.b_splines(torch.zeros(1, 3)).shape == (1, 3, 8)


def test_twice_and_back() -> None:
    """A second call changes nothing and says so; restore gives the class back, again only once."""
    model = peer.KAN([3, 4, 2])
    x = torch.randn(7, 3)
    own = model(x)
    first = accelerate(model)
    classes = [type(layer) for layer in model.layers]
    again = accelerate(model)
    assert len(first.taken) == 2 and not again.taken
    assert [entry.why for entry in again.left] == ["is accelerated already"] * 2
    assert [type(layer) for layer in model.layers] == classes and classes[0] is classes[1]
    assert explain(model).count("runs the kernels") == 2
    back = restore(model)
    assert taken(back) == ["layers.0", "layers.1"] and not restore(model).taken
    assert all(type(layer) is peer.KANLinear for layer in model.layers)
    assert torch.equal(model(x), own)
    assert explain(model) == "nothing in this model is accelerated"
    assert "2 restored" in str(back) and "layers.1" in str(back)


class OwnForward(peer.KANLinear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnBasis(peer.KANLinear):
    def b_splines(self, x: Tensor) -> Tensor:
        return super().b_splines(torch.tanh(x))


class OwnUpdate(peer.KANLinear):
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        self.updated = True


class Harmless(peer.KANLinear):
    """A subclass that adds nothing to the function."""

    def size(self) -> int:
        return self.in_features


def edited(**methods: Any) -> type:
    """A copy of the peer's class with other methods, as forks are."""
    body = {
        key: value for key, value in vars(peer.KANLinear).items() if key not in ("__dict__", "__weakref__")
    }
    return type("Fork", (nn.Module,), body | methods)


def with_extra(layer: nn.Module) -> nn.Module:
    layer.bias = nn.Parameter(torch.zeros(2))
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def dropout(self: Any, x: Tensor) -> Tensor:
    return peer.KANLinear.forward(self, nn.functional.dropout(x, 0.5, self.training))


def detached(self: Any, x: Tensor) -> Tensor:
    rows = self.b_splines(x.detach()).flatten(1)
    return self.base_activation(x) @ self.base_weight.t() + rows @ self.scaled_spline_weight.flatten(1).t()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: OwnForward(3, 2), "OwnForward has a forward of its own"),
        (lambda: OwnBasis(3, 2), "OwnBasis has a b_splines of its own"),
        (
            lambda: edited(forward=dropout)(3, 2),
            "test_integrations.py (return peer.KANLinear.forward(self, nn.f",
        ),
        (lambda: edited(forward=detached)(3, 2), "self.b_splines(x.detach()).flatten(1)) calls detach"),
        (lambda: edited(forward=lambda self, x: self.missing)(3, 2), "source that is not what runs"),
        (lambda: with_extra(peer.KANLinear(3, 2)), "has more than the peer's tensors: bias"),
        (lambda: replaced(peer.KANLinear(3, 2)), "forward was replaced on this instance"),
        (lambda: peer.KANLinear(3, 2, 5, 11), "spline_order is 11"),
        (lambda: parametrizations.weight_norm(peer.KANLinear(3, 2), "base_weight"), "parametrized"),
        (lambda: drop_in.KANLinear(3, 2), "drop-in of kan_kernels"),
        (lambda: KAN([2, 2]).layers[0], "is a layer of kan_kernels"),
    ],
)
def test_left_alone(make: Any, why: str) -> None:
    """What is no plain layer of the peer keeps its class and its numbers, and the report says why."""
    layer = make()
    cls, state = type(layer), torch.get_rng_state()
    report = accelerate(nn.Sequential(layer))
    assert torch.equal(torch.get_rng_state(), state), "the probe took from the caller's random numbers"
    assert not report.taken and type(layer) is cls
    assert [entry.name for entry in report.left] == ["0"] and why in report.left[0].why, str(report)
    assert why in str(report)


def test_subclasses_that_are_taken() -> None:
    """A subclass without a forward of its own, and one whose update_grid stays its own."""
    layer = Harmless(3, 2)
    assert taken(accelerate(layer)) == [""] and isinstance(layer, Harmless) and layer.size() == 3
    own = OwnUpdate(3, 2)
    report = accelerate(own)
    assert "update_grid is its own" in report.taken[0].why
    own.update_grid(torch.randn(50, 3))
    assert own.updated and own(torch.randn(4, 3)).shape == (4, 2)
    fork = edited(update_grid=lambda self, x, margin=0.01: self.spline_weight.data.mul_(2))(3, 2)
    assert "update_grid is its own" in accelerate(fork).taken[0].why
    before = fork.spline_weight.detach().clone()
    fork.update_grid(torch.randn(50, 3))
    assert torch.equal(fork.spline_weight, 2 * before)


class Tensors(nn.Module):
    """Of somebody else, with a parameter of this name."""

    def __init__(self, name: str = "weight") -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(2)))


class WaveletKANLayer(nn.Module):
    """A KAN that nobody knows, without a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2)


def test_unknown_layers_are_reported() -> None:
    """What looks like a KAN is named with the reason; the rest is counted, torch's own is not."""
    parts = [
        nn.Linear(2, 2),
        Tensors(),
        nn.BatchNorm1d(2),
        Tensors("coef"),
        WaveletKANLayer(),
        Tensors("scale"),
    ]
    report = accelerate(nn.Sequential(*parts, peer.KAN([2, 2])))
    assert [entry.name for entry in report.left] == ["3", "4"] and taken(report) == ["6.layers.0"]
    assert report.left[0].why.startswith(
        "it has coef, but no adapter knows this class (there are adapters for effic"
    )
    assert report.left[1].why.startswith("the class is called WaveletKANLayer, but no adapter knows")
    assert report.others == 2 and "2 other modules have parameters and nothing of a KAN" in str(report)


def test_what_a_copy_lacks_is_named() -> None:
    """A copy without one of the peer's attributes hears which."""
    layer = peer.KANLinear(3, 2, enable_standalone_scale_spline=False)
    del layer.enable_standalone_scale_spline, layer.grid_eps
    why = accelerate(layer).left[0].why
    assert (
        why
        == "efficient-kan: lacks enable_standalone_scale_spline, grid_eps, which efficient-kan's layers have"
    )


@pytest.mark.parametrize("function", [accelerate, restore])
def test_bad_argument(function: Any) -> None:
    with pytest.raises(TypeError, match=r"model: got int, expected a torch\.nn\.Module"):
        function(3)


def test_nothing_changes_if_one_layer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is decided before anything changes."""
    from kan_kernels.integrations.efficient_kan import adapter

    model = peer.KAN([2, 2, 2])
    answers = iter([None, RuntimeError("broken adapter")])

    def reason(module: nn.Module) -> str | None:
        answer = next(answers)
        if answer is not None:
            raise answer
        return None

    monkeypatch.setattr(adapter, "reason", reason)
    with pytest.raises(RuntimeError, match="broken adapter"):
        accelerate(model)
    assert all(type(layer) is peer.KANLinear for layer in model.layers)


class Remembering(Accelerated):
    """A mixin that keeps something on the instance."""

    def _kan_kernels_attach(self) -> None:
        self.__dict__["_kan_kernels_seen"] = []

    def _kan_kernels_detach(self) -> None:
        self.bias.data.add_(len(self._kan_kernels_seen))

    def forward(self, x: Tensor) -> Tensor:
        self._kan_kernels_seen.append(len(x))
        return super().forward(x)


def test_what_a_mixin_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """attach and detach are called; what is kept stays out of copies, and goes with restore."""
    adapter = SimpleNamespace(
        NAME="fake",
        claims=lambda module: isinstance(module, nn.Linear),
        lacks=lambda module: None,
        reason=lambda module: None,
        mixin=lambda module: Remembering,
    )
    monkeypatch.setattr(integrations, "adapters", lambda: [adapter])
    layer = nn.Linear(2, 2)
    before, state = layer.bias.detach().clone(), set(vars(layer))
    assert taken(accelerate(layer)) == [""]
    layer(torch.zeros(3, 2)), layer(torch.zeros(4, 2))
    assert layer._kan_kernels_seen == [3, 4]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._kan_kernels_seen == []
    restore(layer)
    assert type(layer) is nn.Linear and set(vars(layer)) == state
    torch.testing.assert_close(layer.bias.detach(), before + 2)
