"""KANLinear and KAN behave as torch.nn modules do."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear, use_backend
from kan_kernels import functional as F


def layer(**options: Any) -> KANLinear:
    return KANLinear(4, 7, 6, 2, **{"bias": True, "device": DEVICE, **options})


def test_shapes_and_defaults() -> None:
    """Names, shapes and defaults are the public contract."""
    plain = KANLinear(4, 7)
    assert {name: tuple(p.shape) for name, p in plain.named_parameters()} == {
        "spline_weight": (4, 8, 7), "base_weight": (4, 7),
    }  # fmt: skip
    assert plain.bias is None and tuple(plain.grid.shape) == (4, 12)
    assert [name for name, _ in plain.named_buffers()] == ["grid"] and not plain.grid.requires_grad
    assert (plain.in_features, plain.out_features, plain.grid_size, plain.spline_order) == (4, 7, 5, 3)
    with_bias = layer(base=None)
    assert with_bias.base_weight is None and tuple(with_bias.bias.shape) == (7,)
    net = KAN([2, 5, 1])
    assert isinstance(net.layers, torch.nn.ModuleList) and len(net.layers) == 2
    assert [(item.in_features, item.out_features) for item in net.layers] == [(2, 5), (5, 1)]
    options = KAN(
        (3, 4, 2), 7, 2, base="identity", bias=True, grid_range=(0.0, 2.0), dtype=torch.float64
    ).layers
    for item in options:
        assert (item.grid_size, item.spline_order, item.base) == (7, 2, "identity")
        assert item.bias is not None and item.spline_weight.dtype == torch.float64


@pytest.mark.parametrize(
    "grid_size,order,low,high", [(5, 3, -1.0, 1.0), (1, 0, 0.0, 2.0), (30, 10, -3.0, -1.0)]
)
def test_grid_is_uniform(grid_size: int, order: int, low: float, high: float) -> None:
    """Knots low + h (j - k), the same for every feature, strictly increasing."""
    made = KANLinear(3, 2, grid_size, order, grid_range=(low, high), dtype=torch.float64)
    h = (high - low) / grid_size
    want = torch.tensor(
        [low + h * (j - order) for j in range(grid_size + 2 * order + 1)], dtype=torch.float64
    )
    torch.testing.assert_close(made.grid, want.expand(3, -1), rtol=0, atol=1e-12)
    assert bool((made.grid.diff() > 0).all())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
def test_factory_dtype(backend: str, dtype: torch.dtype) -> None:
    """dtype= is the parameters'; the knots of 16-bit layers are float32; x may be float32 beside 16-bit
    weights.
    """
    made = layer(dtype=dtype, backend=backend)
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert made.grid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.rand(5, 4, device=DEVICE)
    assert made(x.to(dtype)).dtype == dtype
    if dtype not in (torch.float32, torch.float64):
        assert made(x).dtype == dtype
        made(x.requires_grad_()).float().sum().backward()
        assert x.grad is not None and x.grad.dtype == torch.float32


def test_default_dtype() -> None:
    """Without dtype= torch's default holds, as for nn.Linear."""
    torch.set_default_dtype(torch.float64)
    try:
        assert KANLinear(2, 3).spline_weight.dtype == torch.nn.Linear(2, 3).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_meta_device(backend: str) -> None:
    """Built on meta, materialised with to_empty, initialised by reset_parameters; runs on meta without
    data.
    """
    net = KAN([3, 5, 2], bias=True, backend=backend, device="meta")
    assert all(t.is_meta for t in (*net.parameters(), *net.buffers()))
    assert KAN([3, 5, 2], device="meta")(torch.empty(6, 3, device="meta")).shape == (6, 2)
    net = net.to_empty(device=DEVICE)
    for t in (*net.parameters(), *net.buffers()):
        t.data.fill_(torch.nan)
    for item in net.layers:
        item.reset_parameters()
    y = net(torch.rand(6, 3, device=DEVICE))
    assert bool(y.isfinite().all()) and bool((y != 0).any())
    torch.testing.assert_close(net.layers[0].grid, KANLinear(3, 5, device=DEVICE).grid)


def test_skip_init() -> None:
    """torch.nn.utils.skip_init, which needs device= and meta support, works as for nn.Linear."""
    made = torch.nn.utils.skip_init(KANLinear, 3, 5, 4, bias=True)
    assert tuple(made.spline_weight.shape) == (3, 7, 5) and not made.spline_weight.is_meta


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4), (2, 0, 4)])
def test_leading_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    """Any leading dimensions, none and empty ones too, forward and backward."""
    made = layer(backend=backend, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    y = made(x)
    assert y.shape == (*shape[:-1], 7)
    flat = made(x.reshape(-1, 4))
    torch.testing.assert_close(y.reshape(-1, 7), flat)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape
    torch.testing.assert_close(dx, torch.autograd.grad(flat.sum(), x)[0])


def test_permuted_input(backend: str) -> None:
    """A channels-first tensor moved to the end, whose rows cannot be flattened without a copy."""
    made = layer(backend=backend)
    x = torch.randn(2, 4, 5, 6, device=DEVICE).permute(0, 2, 3, 1)
    torch.testing.assert_close(made(x), made(x.contiguous()))


def test_repr() -> None:
    """extra_repr says what it takes to build the layer again."""
    text = repr(KANLinear(4, 7, 6, 2, base="identity", bias=True))
    for part in ("KANLinear(4, 7", "grid_size=6", "spline_order=2", "identity", "bias=True"):
        assert part in text, text
    assert "KANLinear(2, 5" in repr(KAN([2, 5, 1])) and "backend='reference'" in repr(
        layer(backend="reference")
    )


def same(a: torch.nn.Module, b: torch.nn.Module, x: Tensor) -> None:
    assert torch.equal(a(x), b(x))
    assert a.state_dict().keys() == b.state_dict().keys()


def test_copies(backend: str) -> None:
    """deepcopy, pickle and torch.save of the whole module give independent equal modules."""
    net = KAN([3, 5, 2], bias=True, backend=backend, device=DEVICE)
    x = torch.randn(6, 3, device=DEVICE)
    net(x)  # whatever is cached by a call must not get in the way
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)]
    for other in copies:
        same(net, other, x)
        with torch.no_grad():
            other.layers[0].spline_weight.add_(1.0)
        assert not torch.equal(net(x), other(x))


def test_state_dict(backend: str) -> None:
    """Round trip through torch.load(weights_only=True) into a differently initialised net; grid included;
    versioned.
    """
    net = KAN([3, 5, 2], bias=True, backend=backend, device=DEVICE)
    with torch.no_grad():
        net.layers[1].grid.mul_(1.7)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert set(state) == {
        f"layers.{n}.{k}" for n in (0, 1) for k in ("spline_weight", "base_weight", "bias", "grid")
    }
    assert state._metadata["layers.0"]["version"] >= 1
    other = KAN([3, 5, 2], bias=True, backend=backend, device=DEVICE)
    x = torch.randn(6, 3, device=DEVICE)
    other(x)
    assert other.load_state_dict(state).missing_keys == []
    same(net, other, x)
    with pytest.raises(RuntimeError, match="size mismatch"):
        KAN([3, 5, 2], spline_order=2, bias=True, device=DEVICE).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        KAN([3, 6, 2], bias=True, device=DEVICE).load_state_dict(state)


def test_state_dict_brings_its_grid_size(backend: str) -> None:
    """A layer takes over the grid size of the checkpoint: a refined net loads into a fresh one."""
    net = KAN([3, 5, 2], 9, bias=True, backend=backend, device=DEVICE)
    x = torch.randn(6, 3, device=DEVICE)
    for grid_size in (1, 5, 20):
        other = KAN([3, 5, 2], grid_size, bias=True, backend=backend, device=DEVICE)
        other(x)
        other.layers[0].spline_weight.requires_grad_(False)
        other.load_state_dict(net.state_dict())
        same(net, other, x)
        assert [item.grid_size for item in other.layers] == [9, 9]
        assert [item.spline_weight.requires_grad for item in other.layers] == [False, True]
    empty = KAN([3, 5, 2], bias=True, backend=backend, device="meta")
    empty.load_state_dict(net.state_dict(), assign=True)
    same(net, empty.to(DEVICE), x)


def test_assign_and_strict() -> None:
    """load_state_dict(assign=True) onto a meta module, and strict=False with a bias missing."""
    net = KAN([3, 5, 2])
    empty = KAN([3, 5, 2], device="meta")
    empty.load_state_dict(net.state_dict(), assign=True)
    same(net, empty, torch.randn(4, 3))
    result = KAN([3, 5, 2], bias=True).load_state_dict(net.state_dict(), strict=False)
    assert result.missing_keys == ["layers.0.bias", "layers.1.bias"]


@pytest.mark.parametrize("cast", ("half", "bfloat16"))
def test_half_cast_keeps_the_grid(backend: str, cast: str) -> None:
    """.half() and .bfloat16() round parameters, not knots, and not by way of 16 bits; .double() follows; and
    back.
    """
    net = KAN([3, 5, 2], 50, backend=backend, device=DEVICE)
    knots = net.layers[0].grid.clone()
    getattr(net, cast)()
    assert net.layers[0].spline_weight.dtype in (torch.float16, torch.bfloat16)
    assert net.layers[0].grid.dtype == torch.float32 and torch.equal(net.layers[0].grid, knots)
    assert bool(net(torch.rand(6, 3, device=DEVICE)).isfinite().all())
    net.to(torch.bfloat16)
    assert torch.equal(net.layers[0].grid, knots)
    net.double()
    assert net.layers[0].grid.dtype == torch.float64
    assert net(torch.rand(6, 3, dtype=torch.float64, device=DEVICE)).dtype == torch.float64
    net.float()
    assert torch.equal(net.layers[0].grid, knots)


def test_reset_parameters() -> None:
    """The paper's initialisation: spline near zero, Xavier for the base, bias zero; seeded; with the grid
    restored.
    """
    torch.manual_seed(0)
    wide = KANLinear(200, 300, 5, 3, bias=True)
    w = wide.base_weight.detach()
    assert abs(float(w.mean())) < 3 * float(w.std()) / math.sqrt(w.numel())
    assert float(w.std()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)  # Glorot, normal or uniform
    c = wide.spline_weight.detach()
    assert abs(float(c.mean())) < 4 * float(c.std()) / math.sqrt(c.numel()) and 0 < float(c.std()) <= 0.11
    assert not bool(wide.bias.any())
    x = torch.rand(500, 200) * 2 - 1
    y = wide(x)
    assert 0.05 < float(y.detach().std()) < 5, "a signal neither vanishes nor explodes"
    torch.manual_seed(0)
    same(wide, KANLinear(200, 300, 5, 3, bias=True), x)
    before = c.clone()
    with torch.no_grad():
        wide.grid.mul_(2)
    wide.reset_parameters()
    torch.testing.assert_close(wide.grid, KANLinear(200, 1).grid)
    assert not torch.equal(wide.spline_weight.detach(), before)
    deep = KAN([50, 50, 50, 50, 50])
    assert 0.02 < float(deep(torch.rand(500, 50) * 2 - 1).detach().std()) < 5


def test_grid_may_change(backend: str) -> None:
    """New knots in place or as another tensor take effect on the next call: nothing about a grid is cached
    wrongly.
    """
    made = layer(backend=backend, dtype=torch.float64)
    x = torch.rand(9, 4, dtype=torch.float64, device=DEVICE)
    made(x)
    for change in ("in place", "another tensor", "through state_dict"):
        knots = made.grid * 1.31 + 0.07 * torch.rand(4, 1, dtype=torch.float64, device=DEVICE)
        knots = (knots + torch.rand_like(knots) * 0.2).sort(-1).values
        if change == "in place":
            made.grid.copy_(knots)
        elif change == "another tensor":
            made.grid = knots
        else:
            made.load_state_dict({**made.state_dict(), "grid": knots})
        want = F.kan_linear(
            x, made.spline_weight, knots, spline_order=2, base_weight=made.base_weight, bias=made.bias,
            backend="reference",
        )  # fmt: skip
        torch.testing.assert_close(made(x), want, rtol=1e-12, atol=1e-12, msg=f"{change}: no effect")


def test_backend_choice() -> None:
    """A layer's own backend wins over use_backend; None follows it."""
    free, bound = layer(), layer(backend="reference")
    x = torch.randn(3, 4, device=DEVICE)
    with use_backend("reference"):
        assert "Forward" not in type(free(x).grad_fn).__name__
    with use_backend(None):
        assert bound(x).shape == free(x).shape


@pytest.mark.parametrize("optimizer", ("Adam", "SGD", "LBFGS"))
def test_training_reduces_the_loss(backend: str, optimizer: str) -> None:
    """The paper's toy f(x, y) = exp(sin(pi x) + y^2): any optimizer of torch brings the loss far down."""
    torch.manual_seed(0)
    net = KAN([2, 5, 1], backend=backend, device=DEVICE)
    x = torch.rand(300, 2, device=DEVICE) * 2 - 1
    target = (torch.sin(torch.pi * x[:, :1]) + x[:, 1:].square()).exp()
    rate = {"Adam": 0.05, "SGD": 0.02, "LBFGS": 1.0}[optimizer]
    steps = {"Adam": 150, "SGD": 300, "LBFGS": 15}[optimizer]
    engine = getattr(torch.optim, optimizer)(net.parameters(), lr=rate)

    def closure() -> Tensor:
        engine.zero_grad()
        loss = torch.nn.functional.mse_loss(net(x), target)
        loss.backward()
        return loss

    first = float(closure().detach())
    for _ in range(steps):
        engine.step(closure)
    assert float(closure().detach()) < first / {"Adam": 50, "SGD": 4, "LBFGS": 500}[optimizer]


def test_modules_compose(backend: str) -> None:
    """Inside nn.Sequential, with hooks, parametrizations and train/eval, as any module."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), layer(backend=backend), torch.nn.ReLU()).to(DEVICE)
    seen: list[torch.Size] = []
    kan: Any = net[1]
    kan.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.nn.utils.parametrizations.weight_norm(kan, "base_weight")
    net.train()(torch.randn(5, 3, device=DEVICE)).sum().backward()
    net.eval()
    assert seen == [(5, 7)]
    assert kan.parametrizations.base_weight.original0.grad is not None
