"""FastKAN and ChebyKAN: edited copies and what the kernels lack are left alone, or run their own code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks import basis_forms as forms
from kan_kernels.integrations import accelerate, cheby_kan, explain, fast_kan
from peer_bases import CHEBY, F64, FAST, check_left_alone, pair, results, same_results


@pytest.fixture(params=FAST)
def fast_peer(request: pytest.FixtureRequest) -> type[Any]:
    return FAST[request.param]


@pytest.fixture(params=CHEBY)
def cheby_peer(request: pytest.FixtureRequest) -> type[Any]:
    return CHEBY[request.param]


def renamed(layer: type[Any], **methods: Any) -> type[Any]:
    """A copy of a stand-in's class in which methods were edited, as forks do."""
    return type(layer.__name__, (nn.Module,), {**vars(layer), **methods})


class OwnForward(forms.FastKANLayer):
    def forward(self, x: Tensor, use_layernorm: bool = True) -> Tensor:
        return super().forward(x, use_layernorm)


class Biased(forms.FastKANLayer):
    """One that adds nothing to the function, but a parameter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.shift = nn.Parameter(torch.ones(2, 2))


def normalised(child: str) -> nn.Module:
    layer = forms.FastKANLayer(3, 2)
    parametrizations.weight_norm(getattr(layer, child), "weight")
    return layer


class OtherBasis(forms.GaussianBasis):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-((x[..., None] - self.grid) / self.denominator).abs())


def with_rbf(rbf: nn.Module) -> nn.Module:
    layer = forms.FastKANLayer(3, 2)
    layer.rbf = rbf
    return layer


def with_dropout(self: Any, x: Tensor) -> Tensor:
    y = self.spline_linear(self.rbf(self.layernorm(x)).flatten(-2))
    return nn.functional.dropout(y, 0.1, self.training) + self.base_linear(self.base_activation(x))


def rescaled(self: Any, x: Tensor) -> Tensor:
    angle = torch.acos(torch.tanh(0.5 * x))[..., None] * self.arange
    return torch.einsum("bir,ior->bo", torch.cos(angle), self.cheby_coeffs)


def detached(self: Any, x: Tensor) -> Tensor:
    angle = torch.acos(torch.tanh(x.detach()))[..., None] * self.arange
    return torch.einsum("bir,ior->bo", torch.cos(angle), self.cheby_coeffs)


def normed(norm: nn.Module) -> nn.Module:
    layer = forms.FastKANLayer(3, 2)
    layer.layernorm = norm
    return layer


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: OwnForward(3, 2), "OwnForward has a forward of its own"),
        (lambda: with_rbf(OtherBasis(-2.0, 2.0, 8)), "self.denominator).abs())) calls abs"),
        (lambda: renamed(forms.FastKANLayer, forward=with_dropout)(3, 2), "reads training, which Fast"),
        (lambda: normed(nn.BatchNorm1d(3)), "layernorm is BatchNorm1d"),
        (lambda: normed(nn.LayerNorm((4, 3))), "layernorm is LayerNorm((4, 3)"),
        (lambda: forms.FastKANLayer(3, 2, num_grids=257), "rbf.grid is (257,)"),
        (lambda: normalised("spline_linear"), "spline_linear is parametrized"),
        (lambda: normalised("base_linear"), "base_linear is parametrized"),
        (lambda: parametrizations.weight_norm(Biased(3, 2), "shift"), "it is parametrized"),
        (lambda: Biased(3, 2), "more than the peer's tensors: shift"),
        (lambda: fast_kan.FastKANLayer(3, 2), "drop-in of kan_kernels"),
        (lambda: renamed(forms.ChebyKANLayer, forward=rescaled)(3, 2, 4), "something else than ChebyKAN's"),
        (lambda: renamed(forms.ChebyKANLayer, forward=detached)(3, 2, 4), "calls detach"),
        (lambda: forms.ChebyKANLayer(3, 2, 256), "degree is 256"),
        (lambda: parametrizations.weight_norm(forms.ChebyKANLayer(3, 2, 4), "cheby_coeffs"), "parametrized"),
        (lambda: cheby_kan.ChebyKANLayer(3, 2, 4), "drop-in of kan_kernels"),
    ],
)  # fmt: skip
def test_left_alone(make: Any, why: str) -> None:
    """What is no plain layer of the peer keeps its class, and the report says why."""
    check_left_alone(make(), why)


def older(self: Any, x: Tensor, time_benchmark: bool = False) -> Tensor:
    """As revisions before the argument use_layernorm had it."""
    z = x if time_benchmark else self.layernorm(x)
    return self.spline_linear(self.rbf(z).flatten(-2)) + self.base_linear(self.base_activation(x))


def test_older_revision() -> None:
    """The plain call runs the kernels, the other argument its own code."""
    own, fast = pair(renamed(forms.FastKANLayer, forward=older)(3, 2))
    x = torch.randn(6, 3, dtype=F64)
    same_results(results(fast, x), results(own, x))
    assert torch.equal(fast(x, time_benchmark=True), own(x, time_benchmark=True))
    with pytest.raises(TypeError, match="use_layernorm"):
        fast(x, use_layernorm=False)


def gained(parent: type[Any], read: Any) -> type[Any]:
    """A copy whose forward reads what the peer has not, by a helper."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.read() * parent_forward(self, x)

    parent_forward = parent.forward
    names = {"forward": forward, "read": read, "names": lambda self: (self.rbf, self.spline_linear)}
    return type(parent.__name__, (parent,), names)


def reads_gain(self: Any) -> float:
    return self.gain


def reads_gain_by_name(self: Any) -> float:
    return getattr(self, "gain", 1.0)


def in_basis(read: Any) -> nn.Module:
    layer = forms.FastKANLayer(3, 2)
    layer.rbf = gained(forms.GaussianBasis, read)(-2.0, 2.0, 8)
    return layer


@pytest.mark.parametrize(
    "read, why",
    [
        (reads_gain, "reads gain, which FastKAN rbf's does not"),
        (reads_gain_by_name, "passes the layer itself on"),
    ],
)
@pytest.mark.parametrize("on_class", [False, True])
def test_attributes_that_the_peer_has_not(read: Any, why: str, on_class: bool) -> None:
    """A probe sees one moment: a forward that reads more can change later. What is only carried may stay."""
    layer: Any = in_basis(read)
    (type(layer.rbf) if on_class else layer.rbf).gain = 1.0
    check_left_alone(layer, why)
    layer = forms.FastKANLayer(3, 2)
    layer.gain = layer.rbf.gain = 1.0
    assert accelerate(layer).taken


def test_another_basis_later(fast_peer: type[Any]) -> None:
    """An rbf put in place of the probed one is probed itself, in copies and pickles too."""
    own, fast = pair(fast_peer(3, 2))
    x = torch.randn(6, 3, dtype=F64)
    own.rbf, fast.rbf = (OtherBasis(-2.0, 2.0, 8).double() for _ in range(2))
    for layer in (fast, copy.deepcopy(fast)):
        assert "rbf (OtherBasis): line" in explain(layer) and "calls abs" in explain(layer)
        assert torch.equal(layer(x), own(x))
    own.rbf, fast.rbf = (forms.GaussianBasis(-1.0, 2.0, 8).double() for _ in range(2))
    assert "runs the kernels" in explain(fast)
    same_results(results(fast, x), results(own, x))


def test_cheby_kan_sizes_changed_later(cheby_peer: type[Any]) -> None:
    """The peer's view, and its error, follow outdim, inputdim and degree."""
    own, fast = pair(cheby_peer(4, 2, 3))
    x = torch.randn(6, 4, dtype=F64)
    for name in ("inputdim", "outdim", "degree"):
        before = getattr(own, name)
        setattr(own, name, 1), setattr(fast, name, 1)
        assert "cheby_coeffs is (4, 2, 4)" in explain(fast)
        outcomes = []
        for layer in (own, fast):
            try:
                outcomes.append(layer(x))
            except RuntimeError as error:
                outcomes.append(str(error))
        assert outcomes[0] is not None and str(outcomes[0]) == str(outcomes[1])
        setattr(own, name, before), setattr(fast, name, before)
    assert "runs the kernels" in explain(fast)


def hook(layer: Any, child: str) -> None:
    getattr(layer, child).register_forward_hook(lambda module, args, out: 2 * out)


@torch.no_grad()
def break_centre(layer: Any) -> None:
    layer.rbf.grid[1] = torch.nan


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda layer: layer.rbf.grid.requires_grad_(), "centres ask for a gradient"),
        (lambda layer: setattr(layer.rbf, "denominator", -0.7), "width is -0.7"),
        (break_centre, "centres are not finite"),
        (lambda layer: hook(layer, "rbf"), "rbf has hooks"),
        (lambda layer: hook(layer, "spline_linear"), "spline_linear has hooks"),
        (lambda layer: hook(layer, "base_linear"), "base_linear has hooks"),
        (lambda layer: setattr(layer, "base_activation", nn.SiLU(inplace=True)), "works in place"),
        (lambda layer: layer.rbf.float(), "torch.float32"),
    ],
)
def test_fast_kan_falls_back(fast_peer: type[Any], change: Any, why: str) -> None:
    """What the kernels would compute differently now runs the peer's own code: the same bits."""
    own, fast = pair(fast_peer(4, 3))
    x = torch.randn(6, 4, dtype=F64)
    fast(x)
    change(own), change(fast)
    assert why in explain(fast), explain(fast)
    torch.testing.assert_close(fast(x.clone()), own(x.clone()), rtol=0, atol=0, equal_nan=True)
    if own.rbf.grid.requires_grad:
        grads = [torch.autograd.grad(layer(x).sum(), layer.rbf.grid)[0] for layer in (own, fast)]
        assert grads[0].abs().max() > 0 and torch.equal(*grads)
    twin = own.double()
    report = accelerate(twin)
    assert len(report.taken + report.left) == 1 and (why in str(report) or "float32" in why), str(report)


def scaled(self: Any, x: Tensor, scale: float = 1.0) -> Tensor:
    angle = torch.acos(torch.tanh(x))[..., None] * self.arange
    return scale * torch.einsum("bir,ior->bo", torch.cos(angle), self.cheby_coeffs)


def test_more_arguments_than_x() -> None:
    """A call with another argument runs its own code; dimensions that it cannot take raise as they did."""
    own, fast = pair(renamed(forms.ChebyKANLayer, forward=scaled)(3, 2, 4))
    x = torch.randn(6, 3, dtype=F64)
    same_results(results(fast, x), results(own, x))
    assert torch.equal(fast(x, 2.0), own(x, 2.0)) and torch.equal(fast(x, scale=3.0), own(x, scale=3.0))
    for layer in (own, fast):
        with pytest.raises(RuntimeError):
            layer(x[None])
