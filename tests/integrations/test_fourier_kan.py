"""FourierKAN on the kernels: the drop-in layer and accelerated ones, against the formula in plain torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks import basis_forms as forms
from kan_kernels import use_backend
from kan_kernels.integrations import accelerate, explain, fourier_kan, is_accelerated, restore
from kan_kernels.integrations.fourier_kan import NaiveFourierKANLayer
from peer_bases import F64, FOURIER, check_left_alone, pair, results, same, same_results

BACKENDS = ("reference", "native")


@pytest.fixture(params=FOURIER)
def peer(request: pytest.FixtureRequest) -> type[Any]:
    return FOURIER[request.param]


def textbook(layer: Any, x: Tensor) -> Tensor:
    """One frequency after the other, as a Fourier series is written."""
    y = x.new_zeros(*x.shape[:-1], layer.outdim)
    for g in range(1, layer.gridsize + 1):
        y = y + torch.cos(g * x) @ layer.fouriercoeffs[0, :, :, g - 1].t()
        y = y + torch.sin(g * x) @ layer.fouriercoeffs[1, :, :, g - 1].t()
    return y + layer.bias[0] if layer.addbias else y


class Textbook(nn.Module):
    """The layer's parameters, its formula."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return textbook(self.layer, x)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("sizes", [(5, 4, 7), (1, 1, 1), (3, 9, 40), (2, 3, 2, False), (4, 2, 3, True, True)])
def test_drop_in(sizes: tuple[Any, ...], name: str) -> None:
    """y, first and second derivatives for any shape of x are those of the series."""
    layer = NaiveFourierKANLayer(*sizes, backend=name).double()
    if layer.addbias:
        nn.init.normal_(layer.bias)
    for shape in [(9, sizes[0]), (2, 3, sizes[0]), (sizes[0],)]:
        x = 3 * torch.randn(shape, dtype=F64)
        same_results(results(layer, x), results(Textbook(layer), x))
    assert layer(torch.randn(0, 2, sizes[0], dtype=F64)).shape == (0, 2, sizes[1])


@pytest.mark.parametrize("smooth", [False, True])
def test_state_and_first_weights(peer: type[Any], smooth: bool) -> None:
    """Names, shapes and the very numbers that the original draws from the same seed."""
    torch.manual_seed(5)
    layer = NaiveFourierKANLayer(4, 3, 6, smooth_initialization=smooth)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "fouriercoeffs": (2, 3, 4, 6), "bias": (1, 3),
    }  # fmt: skip
    torch.manual_seed(5)
    drawn = torch.randn(2, 3, 4, 6)
    factor = (torch.arange(6) + 1) ** 2 if smooth else np.sqrt(6)
    assert torch.equal(layer.fouriercoeffs, drawn / (np.sqrt(4) * factor)) and not layer.bias.any()
    torch.manual_seed(5)
    theirs = peer(4, 3, 6, smooth_initialization=smooth)
    assert torch.equal(theirs.fouriercoeffs, layer.fouriercoeffs)
    theirs.load_state_dict(layer.state_dict()), layer.load_state_dict(theirs.state_dict())
    assert NaiveFourierKANLayer(2, 1).gridsize == 300
    assert list(NaiveFourierKANLayer(2, 1, 3, False).state_dict()) == ["fouriercoeffs"]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: NaiveFourierKANLayer(0, 2), ValueError, "inputdim: got 0"),
        (lambda: NaiveFourierKANLayer(2, 2.0), TypeError, "outdim: got 2.0"),  # type: ignore[arg-type]
        (lambda: NaiveFourierKANLayer(2, 2, 513), ValueError, "gridsize: got 513, expected an int in 1..512"),
        (lambda: NaiveFourierKANLayer(2, 2, 3, backend="gpu"), ValueError, "backend"),
        (lambda: NaiveFourierKANLayer(3, 2, 4)(torch.ones(4, 2)), ValueError, r"x: got shape \(4, 2\)"),
        (lambda: NaiveFourierKANLayer(3, 2, 4)(torch.ones(4, 3).double()), TypeError, "x: got torch.float64"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("sizes", [(5, 4, 7), (1, 1, 1), (3, 2, 300), (2, 3, 2, False), (64, 40, 4, True)])
def test_accelerated(peer: type[Any], backend: str, sizes: tuple[Any, ...]) -> None:
    """y, dx, the parameters' gradients and second order are those of the peer's own code."""
    own, fast = pair(peer(*sizes))
    assert is_accelerated(fast) and list(fast.state_dict()) == list(own.state_dict())
    with use_backend(backend):
        for shape in [(9, sizes[0]), (2, 3, sizes[0]), (sizes[0],)]:
            x = torch.randn(shape, dtype=F64)
            same_results(results(fast, x), results(own, x))


def test_it_runs_the_kernels(peer: type[Any], monkeypatch: Any) -> None:
    """And its own code again once it is restored; a copy and a pickle are accelerated too."""
    own, fast = pair(peer(3, 4, 5))
    x = torch.randn(5, 3, dtype=F64)
    want, before = fast(x), set(vars(own))
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert is_accelerated(twin) and torch.equal(twin(x), want)

    def forbidden(*args: Any) -> Tensor:
        raise AssertionError("the peer's own code ran")

    monkeypatch.setattr(peer, "forward", forbidden)
    assert torch.equal(fast(x), want)
    restore(fast)
    assert set(vars(fast)) == before and type(fast) is peer
    with pytest.raises(AssertionError, match="own code"):
        fast(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(peer: type[Any], dtype: torch.dtype) -> None:
    """At least as close to float64 as the peer, which rounds g x; float32 under autocast, as there."""
    own, fast = pair(peer(6, 4, 16))
    x = torch.randn(64, 6, dtype=F64).to(dtype)
    own.to(dtype), fast.to(dtype)
    truth = copy.deepcopy(own).double()(x.double()).detach()
    got, want = fast(x), own(x)
    assert got.dtype == want.dtype == dtype
    error, theirs = (float((y.detach().double() - truth).abs().max()) for y in (got, want))
    assert error <= max(theirs, 4 * torch.finfo(dtype).eps * float(truth.abs().max()))
    drop_in = NaiveFourierKANLayer(6, 4, 16).to(dtype)
    drop_in.load_state_dict(own.state_dict())
    assert torch.equal(drop_in(x), got)
    if dtype != torch.float32:
        for layer in (own, fast, drop_in):
            layer.float()
        with torch.autocast("cpu", dtype):
            for layer in (fast, drop_in):
                got = layer(x.float())
                assert got.dtype == own(x.float()).dtype == torch.float32
                same(got.double(), truth, 1e-5)
            assert drop_in(x).dtype == torch.float32  # of a layer before it
            assert torch.equal(fast(x), own(x))


def test_other_inputs(peer: type[Any]) -> None:
    """x of another dtype or width is the peer's to take, or to refuse."""
    own, fast = pair(peer(3, 2, 4))
    x = torch.randn(6, 3)
    assert torch.equal(fast(x), own(x))  # float32 beside float64: torch promotes
    assert torch.equal(fast(torch.arange(6).view(2, 3)), own(torch.arange(6).view(2, 3)))
    for layer in (own, fast):
        with pytest.raises(RuntimeError):
            layer(torch.randn(3, 4, dtype=F64))


def replaced(layer: Any) -> None:
    layer.fouriercoeffs = nn.Parameter(torch.randn(2, layer.outdim, layer.inputdim, layer.gridsize))


@pytest.mark.parametrize(
    "change, why",
    [
        (replaced, "torch.float32"),
        (lambda layer: setattr(layer, "gridsize", 3), "fouriercoeffs is (2, 3, 4, 5), expected (2, 3, 4, 3)"),
        (lambda layer: setattr(layer, "bias", nn.Parameter(torch.ones(1, 1, dtype=F64))), "bias is (1, 1)"),
        (lambda layer: setattr(layer, "forward", lambda x: 2 * x), "forward was replaced on this instance"),
    ],
)
def test_falls_back(peer: type[Any], change: Any, why: str) -> None:
    """What the kernels cannot take now runs the peer's own code: the same bits, or the same error."""
    own, fast = pair(peer(4, 3, 5))
    x = torch.randn(6, 4, dtype=F64)
    torch.manual_seed(1), change(own), torch.manual_seed(1), change(fast)
    assert why in explain(fast), explain(fast)
    outcomes = []
    for layer in (own, fast):
        try:
            outcomes.append(layer(x))
        except RuntimeError as error:
            outcomes.append(str(error))
    assert torch.equal(*outcomes) if isinstance(outcomes[0], Tensor) else outcomes[0] == outcomes[1]


def test_without_its_bias(peer: type[Any]) -> None:
    """addbias that is switched off later is obeyed by the kernels."""
    own, fast = pair(peer(4, 3, 5))
    own.addbias = fast.addbias = False
    x = torch.randn(6, 4, dtype=F64)
    same_results(results(fast, x), results(own, x))
    assert "runs the kernels" in explain(fast)


def renamed(**methods: Any) -> type[Any]:
    """A copy of the stand-in's class in which methods were edited, as forks do."""
    cls = forms.NaiveFourierKANLayer
    return type(cls.__name__, (nn.Module,), {**vars(cls), **methods})


class OwnForward(forms.NaiveFourierKANLayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def from_zero(self: Any, x: Tensor) -> Tensor:
    angle = x[:, None, :, None] * torch.arange(self.gridsize)
    return (torch.cos(angle) * self.fouriercoeffs[0] + torch.sin(angle) * self.fouriercoeffs[1]).sum(
        (-2, -1)
    ) + self.bias


def detached(self: Any, x: Tensor) -> Tensor:
    return forms.NaiveFourierKANLayer.forward(self, x.detach()) + 0 * self.fouriercoeffs.sum()


def with_gain(self: Any, x: Tensor) -> Tensor:
    return self.gain * forms.NaiveFourierKANLayer.forward(self, x) + 0 * self.fouriercoeffs.sum()


def gained() -> nn.Module:
    layer = renamed(forward=with_gain)(3, 2, 4)
    layer.gain = 1.0
    return layer


def more() -> nn.Module:
    layer = forms.NaiveFourierKANLayer(3, 2, 4)
    layer.scale = nn.Parameter(torch.ones(1))
    return layer


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: OwnForward(3, 2, 4), "OwnForward has a forward of its own"),
        (lambda: renamed(forward=from_zero)(3, 2, 4), "something else than FourierKAN's"),
        (
            lambda: renamed(forward=detached)(3, 2, 4),
            "forward(self, x.detach()) + 0 * self.fouriercoeffs.sum()) names",
        ),
        (gained, "reads gain, which FourierKAN's does not"),
        (more, "more than the peer's tensors: scale"),
        (lambda: forms.NaiveFourierKANLayer(3, 2, 513), "gridsize is 513, the kernels have 1 to 512"),
        (
            lambda: parametrizations.weight_norm(forms.NaiveFourierKANLayer(3, 2, 4), "fouriercoeffs"),
            "parametrized",
        ),
        (lambda: fourier_kan.NaiveFourierKANLayer(3, 2, 4), "drop-in of kan_kernels"),
    ],
)
def test_left_alone(make: Any, why: str) -> None:
    """What is no plain layer of the peer keeps its class, and the report says why."""
    check_left_alone(make(), why)


@pytest.mark.parametrize("make", [NaiveFourierKANLayer, forms.NaiveFourierKANLayer])
def test_compile_and_transforms(make: Any) -> None:
    """No graph break, the same numbers and gradients; per-sample gradients; half the loss in some steps."""
    torch.manual_seed(0)
    net = nn.Sequential(make(3, 8, 4, True, True), make(8, 1, 4, True, True))
    accelerate(net)
    x = torch.rand(100, 3) * 2 - 1
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    parameters = dict(net.named_parameters())
    for a, b in zip(
        *(torch.autograd.grad(f(x).square().sum(), [*parameters.values()]) for f in (compiled, net)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)

    def loss(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(net, p, (row[None],)).square().sum()

    many = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:5])
    for n in range(5):
        one = torch.func.grad(loss)(parameters, x[n])
        for name, value in one.items():
            torch.testing.assert_close(many[name][n], value, rtol=1e-5, atol=1e-5)
    target = torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        mean = (net(x) - target).square().mean()
        mean.backward()
        optimizer.step()
        losses.append(float(mean.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_makes_nothing_of_every_edge() -> None:
    """What autograd keeps is x and the weights, once more as the kernels read them: no batch x out x in."""
    layer, x = NaiveFourierKANLayer(24, 40, 8), torch.randn(500, 24, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda t: t):
        layer(x)
    assert sizes and sum(sizes) <= x.numel() + layer.fouriercoeffs.numel()
