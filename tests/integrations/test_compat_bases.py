"""FastKAN and ChebyKAN of kan_kernels.compat: the peers' golden numbers, state dicts and first weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden import check_peer
from kan_kernels.integrations.cheby_kan import ChebyKANLayer
from kan_kernels.integrations.fast_kan import FastKAN, FastKANLayer, RadialBasisFunction

BACKENDS = ("reference", "native")
F64 = torch.float64


@pytest.mark.parametrize("name", ("fast_kan", "cheby_kan"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(name: str, backend: str) -> None:
    """y, dx, the gradient of every parameter the peer trains, and the second-order hv."""
    check_peer(backend, name)


@pytest.mark.parametrize("dtype", (torch.float32, F64))
@pytest.mark.parametrize("backend", BACKENDS)
def test_saturation(backend: str, dtype: torch.dtype) -> None:
    """Where tanh is +-1 exactly the output is sum_r (+-1)^r c_r and every gradient is finite and right."""
    torch.manual_seed(0)
    layer = ChebyKANLayer(2, 3, 6, backend=backend).to(dtype)
    near = 9.0 if dtype == F64 else 3.0  # not saturated: 1 - tanh^2 is known to 1e-8, and to 1e-5
    x = torch.tensor([[40.0, -40.0], [torch.inf, -torch.inf], [near, -near]], dtype=dtype, requires_grad=True)
    assert torch.equal(torch.tanh(x[0]).abs(), torch.ones(2, dtype=dtype))
    y = layer(x)
    signs = torch.stack([torch.ones(7, dtype=dtype), (-1.0) ** torch.arange(7, dtype=dtype)])
    want = torch.einsum("ir,ior->o", signs, layer.cheby_coeffs.detach())
    torch.testing.assert_close(y[:2].detach(), want.expand(2, -1))
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(dx[:2], torch.zeros(2, 2, dtype=dtype))  # 1 - tanh^2 is 0 there
    (second,) = torch.autograd.grad(dx.sum(), x)
    assert torch.equal(second[:2], torch.zeros(2, 2, dtype=dtype))
    z = (
        x[2].detach().double().requires_grad_()
    )  # arccos(tanh z) = 2 arctan(exp(-z)), and T_r(cos a) = cos(r a)
    angles = torch.arange(7) * 2 * torch.atan(torch.exp(-z)).unsqueeze(-1)
    y = torch.einsum("ir,ior->", torch.cos(angles), layer.cheby_coeffs.detach().double())
    (first,) = torch.autograd.grad(y, z, create_graph=True)
    (bend,) = torch.autograd.grad(first.sum(), z)
    for got, want in ((dx[2], first), (second[2], bend)):
        torch.testing.assert_close(got.detach().double(), want.detach(), rtol=1e-4, atol=0)


def test_states_and_first_weights() -> None:
    """Keys, shapes and the very numbers that the peers' constructors draw from the same seed."""
    torch.manual_seed(5)
    fast = FastKANLayer(4, 3, -1.0, 1.0, 5)
    shapes = {k: tuple(v.shape) for k, v in fast.state_dict().items()}
    assert shapes == {
        "layernorm.weight": (4,), "layernorm.bias": (4,), "rbf.grid": (5,),
        "spline_linear.weight": (3, 20), "base_linear.weight": (3, 4), "base_linear.bias": (3,),
    }  # fmt: skip
    torch.manual_seed(5)
    weight = nn.init.trunc_normal_(torch.empty(3, 20), mean=0, std=0.1)
    base = nn.Linear(4, 3)
    assert torch.equal(fast.spline_linear.weight, weight) and torch.equal(
        fast.base_linear.weight, base.weight
    )
    assert torch.equal(fast.rbf.grid, torch.linspace(-1, 1, 5)) and not fast.rbf.grid.requires_grad
    torch.manual_seed(5)
    cheby = ChebyKANLayer(4, 3, 6)
    torch.manual_seed(5)
    assert torch.equal(cheby.cheby_coeffs, nn.init.normal_(torch.empty(4, 3, 7), std=1 / 28))
    assert list(cheby.state_dict()) == ["cheby_coeffs", "arange"]
    cheby.load_state_dict({"cheby_coeffs": cheby.cheby_coeffs.detach()})  # an older checkpoint
    with pytest.raises(RuntimeError, match="size mismatch"):
        cheby.load_state_dict({"cheby_coeffs": torch.zeros(4, 3, 6)})


def plain(layer: FastKANLayer, x: Tensor, use_layernorm: bool = True) -> Tensor:
    """The layer in plain torch."""
    z = layer.layernorm(x) if layer.layernorm is not None and use_layernorm else x
    y = layer.spline_linear(layer.rbf(z).flatten(-2))
    return y + layer.base_linear(layer.base_activation(x)) if layer.use_base_update else y


@pytest.mark.parametrize("norm", (True, False))
@pytest.mark.parametrize("activation", (nn.functional.silu, nn.SiLU, torch.tanh, None))
def test_fast_kan_options(norm: bool, activation: Any) -> None:
    """With and without the layernorm and the base, any activation, leading dimensions: as in plain torch."""
    options: dict[str, Any] = {"use_base_update": activation is not None, "use_layernorm": norm}
    if activation is not None:
        options["base_activation"] = activation
    layer = FastKANLayer(5, 4, num_grids=6, **options).double()
    for shape in ((7, 5), (2, 3, 5), (5,), (0, 5)):
        x = torch.randn(shape, dtype=F64, requires_grad=True)
        for use in (True, False):
            got, want = layer(x, use), plain(layer, x, use)
            torch.testing.assert_close(got, want)
            weights = [p for p in layer.parameters() if p.requires_grad]
            grads = [
                torch.autograd.grad(y.square().sum(), [x, *weights], allow_unused=True) for y in (got, want)
            ]
            for a, b in zip(*grads, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)


def test_centres_are_followed() -> None:
    """Centres or a width that change in place, by a cast or by loading are the ones that the kernels use."""
    layer = FastKANLayer(3, 2)
    x = torch.randn(6, 3)
    layer(x)
    with torch.no_grad():
        layer.rbf.grid.mul_(0.5)
    torch.testing.assert_close(layer(x), plain(layer, x))
    layer.rbf.denominator = 1.25
    torch.testing.assert_close(layer(x), plain(layer, x))
    layer.double()
    torch.testing.assert_close(layer(x.double()), plain(layer, x.double()))
    other = FastKANLayer(3, 2, -1.0, 1.0).double()
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x.double()), plain(layer, x.double()))


def trained(layer: nn.Module, y: Tensor) -> dict[str, Tensor]:
    """The gradient of y's squares for all parameters that want one, 0 where y does not depend on it."""
    wanted = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    loss = y.square().sum()
    grads = torch.autograd.grad(loss, [*wanted.values()], allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, grads, strict=True))


def test_centres_that_learn() -> None:
    """Freezing and unfreezing makes parameters of the centres: plain torch then, with their gradient."""
    layer = FastKANLayer(3, 2).double()
    x = torch.randn(6, 3, dtype=F64)
    frozen = layer(x)
    layer.requires_grad_(False)
    layer.requires_grad_(True)
    y = layer(x)
    torch.testing.assert_close(y, frozen)
    got, want = trained(layer, y), trained(layer, plain(layer, x))
    assert set(got) >= {"rbf.grid", "spline_linear.weight", "base_linear.bias"}
    assert float(got["rbf.grid"].abs().max()) > 0
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), frozen)


def test_functional_transforms() -> None:
    """grad over all parameters, the centres included, and an ensemble by vmap, as torch.func has them."""
    layer = FastKANLayer(3, 2).double()
    x = torch.randn(6, 3, dtype=F64)
    layer(x)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    got = torch.func.grad(loss)(dict(layer.named_parameters()))
    layer.requires_grad_(True)
    torch.testing.assert_close(got, trained(layer, plain(layer, x)))
    layers = [FastKANLayer(3, 2, grid_max=2.0 + n).double() for n in range(3)]
    for each in layers:
        each.rbf.denominator = 0.5
    state = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    many = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(*state)
    torch.testing.assert_close(many, torch.stack([plain(each, x) for each in layers]))


@pytest.mark.parametrize("name", ("base_linear", "spline_linear", "rbf", "base_activation", "layernorm"))
@pytest.mark.parametrize("norm", (True, False))
def test_children_that_are_watched(name: str, norm: bool) -> None:
    """Hooks of a child run, once, and what they return counts; so does a child put in its place."""
    layer = FastKANLayer(3, 2, base_activation=nn.SiLU).double()
    x = torch.randn(2, 6, 3, dtype=F64)
    assert layer._fused()
    calls: list[str] = []
    child = getattr(layer, name)
    handle = child.register_forward_hook(lambda module, args, y: calls.append(name) or 2 * y)
    got = layer(x, norm)
    assert calls == [name] * (name != "layernorm" or norm)
    want = plain(layer, x, norm)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(trained(layer, got), trained(layer, want))
    handle.remove()
    if name.endswith("linear"):
        setattr(layer, name, nn.Sequential(child, nn.Tanh()))
        torch.testing.assert_close(layer(x, norm), plain(layer, x, norm))


def test_activation_in_place() -> None:
    """It changes what comes after it, as in the peer."""
    layer = FastKANLayer(3, 2, use_layernorm=False, base_activation=nn.SiLU(inplace=True))
    x = torch.randn(6, 3)
    a, b = x.clone(), x.clone()
    torch.testing.assert_close(layer(a), plain(layer, b))
    assert torch.equal(a, b) and not torch.equal(a, x)


@pytest.mark.parametrize(
    "make",
    (lambda: FastKAN([3, 8, 1]), lambda: nn.Sequential(ChebyKANLayer(3, 8, 5), ChebyKANLayer(8, 1, 5))),
)
def test_manners(make: Any) -> None:
    """Copies, pickles and compiled versions compute the same; a few steps of training lower the loss."""
    torch.manual_seed(0)
    net = make()
    x = torch.rand(200, 3) * 2 - 1
    target = torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:]
    y = net(x)
    for twin in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.compile(net, backend="aot_eager"),
    ):
        torch.testing.assert_close(twin(x), y)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16


def test_plot_curve() -> None:
    """The curve of one edge is the layer's own function of that input, without norm, base and other edges."""
    layer = FastKANLayer(3, 2, use_base_update=False)
    x, curve = layer.plot_curve(1, 0, 50)
    assert float(x[0]) == pytest.approx(-2 - 2 * 4 / 7) and x.shape == curve.shape == (50,)
    rows = torch.zeros(50, 3)
    rows[:, 1] = x
    y = layer(rows, use_layernorm=False)[:, 0].detach()
    torch.testing.assert_close(curve - curve[0], y - y[0])
    with pytest.raises(ValueError, match="input_index: got 3"):
        layer.plot_curve(3, 0)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: FastKANLayer(0, 2), ValueError, "input_dim: got 0"),
        (lambda: FastKANLayer(2, 2.0), TypeError, "output_dim: got 2.0"),  # type: ignore[arg-type]
        (lambda: FastKANLayer(1, 2), ValueError, "use_layernorm"),
        (lambda: FastKANLayer(3, 2, 1.0, -1.0), ValueError, "grid_range"),
        (lambda: FastKANLayer(3, 2, num_grids=1), ValueError, "num_grids: got 1"),
        (lambda: FastKANLayer(3, 2, backend="gpu"), ValueError, "backend"),
        (lambda: FastKAN([3]), ValueError, "layers_hidden"),
        (lambda: FastKANLayer(3, 2)(torch.ones(4, 2)), ValueError, r"x: got shape \(4, 2\)"),
        (lambda: ChebyKANLayer(3, 2, -1), ValueError, "degree: got -1"),
        (lambda: ChebyKANLayer(3, 2, 256), ValueError, "degree: got 256"),
        (lambda: ChebyKANLayer(3, 2, 4)(torch.ones(4, 2)), ValueError, r"x: got shape \(4, 2\)"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    """Bad arguments are named."""
    with pytest.raises(error, match=message):
        call()


def test_chebyshev_flattens_as_the_peer_does() -> None:
    """(2, 3, in) becomes (6, out)."""
    layer = ChebyKANLayer(4, 5, 3)
    x = torch.randn(2, 3, 4)
    assert torch.equal(layer(x), layer(x.reshape(6, 4)))


def test_follows_the_default_device() -> None:
    """Every tensor of a layer is made where the caller's default is."""
    with torch.device("meta"):
        layer = FastKANLayer(3, 2)
    assert all(p.is_meta for p in layer.parameters())


def test_refuses_what_is_no_width() -> None:
    """Bad numbers are named when the layer is made, not in forward."""
    with pytest.raises(ValueError, match=r"^denominator: got 0"):
        RadialBasisFunction(denominator=0.0)
    with pytest.raises(TypeError, match=r"^denominator"):
        RadialBasisFunction(denominator="wide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^num_grids: got 300"):
        FastKANLayer(3, 2, num_grids=300)
    with pytest.raises(ValueError, match=r"^spline_weight_init_scale"):
        FastKANLayer(3, 2, spline_weight_init_scale=-1.0)
