"""Transforms that torch.compile and make_fx record: eager's numbers, one graph, and no silent zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from kan_kernels import KAN, KANConv1d, KANConv2d, KANLinear
from kan_kernels.nn import MultiHeadKANLinear

F64 = torch.float64
torch.manual_seed(0)
NET = KAN([2, 5, 1], dtype=F64)
LAYER = KANLinear(2, 3, dtype=F64)
CONV = KANConv1d(2, 3, 2, dtype=F64)
PARAMETERS = {name: value.detach() for name, value in NET.named_parameters()}


def laplacian(x: Tensor) -> Tensor:
    return vmap(lambda v: torch.diagonal(jacrev(jacrev(lambda w: NET(w)[0]))(v)).sum())(x)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "grad": lambda x: grad(lambda v: NET(v).square().sum())(x),
    "grad of parameters": lambda x: grad(lambda p: functional_call(NET, p, (x,)).square().sum())(PARAMETERS),
    "vmap": lambda x: vmap(lambda v: NET(v))(x),
    "jacrev": lambda x: vmap(jacrev(NET))(x),
    "jvp": lambda x: jvp(NET, (x,), (torch.ones_like(x),))[1],
    "jvp of a layer": lambda x: jvp(LAYER, (x,), (x.cos(),))[1],
    "jvp of a convolution": lambda x: jvp(CONV, (x.T[None],), (x.T[None].cos(),))[1],
    "laplacian": laplacian,
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_eager(name: str) -> None:
    x = torch.randn(7, 2, dtype=F64)
    function = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


# Each with the shape of one sample.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "products": (lambda: KAN([2, (1, 1)], mult_arity=3), (2,)),
    "heads": (lambda: MultiHeadKANLinear(4, 6, 2), (4,)),
    "convolution": (lambda: KANConv1d(2, 3, 3), (2, 5)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_modules_equal_eager(name: str) -> None:
    """Reverse and forward mode, parameters' gradients and second derivatives of samples, in one graph."""
    torch.manual_seed(0)
    make, shape = MODULES[name]
    net = make().to(F64)
    parameters = {n: value.detach() for n, value in net.named_parameters()}

    def of_sample(v: Tensor) -> Tensor:
        return net(v[None]).sin().sum()

    def everything(x: Tensor) -> Any:
        return (
            jvp(net, (x,), (x.cos(),))[1],
            grad(lambda p: functional_call(net, p, (x,)).square().sum())(parameters),
            vmap(jacrev(jacrev(of_sample)))(x),
        )

    x = torch.randn(3, *shape, dtype=F64)
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), everything(x))


def test_jvp_is_not_zero() -> None:
    """The op in a graph has no tangent, so it must not be there."""
    x = torch.randn(4, 2, dtype=F64)
    compiled = torch.compile(FUNCTIONS["jvp of a layer"], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), FUNCTIONS["jvp of a layer"](x))


RECORDED: dict[str, Callable[[Tensor], Any]] = {
    "a network": NET,
    "a layer": LAYER,
    **{name: FUNCTIONS[name] for name in ("grad", "grad of parameters", "jvp", "laplacian")},
    "autograd twice": lambda x: slope(NET, x, 2),
}


def slope(net: nn.Module, x: Tensor, order: int) -> Tensor:
    """The derivative of some order of a sum of outputs, by autograd."""
    x = x.detach().requires_grad_()
    found = net(x).square().sum()
    for n in range(order):
        (found,) = torch.autograd.grad(found.sum(), x, create_graph=n + 1 < order)
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_make_fx(name: str) -> None:
    """What make_fx records are ops, with eager's numbers for other values."""
    function = RECORDED[name]
    graph = make_fx(function)(torch.randn(7, 2, dtype=F64))
    x = torch.randn(7, 2, dtype=F64)
    torch.testing.assert_close(graph(x), function(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ("a network", "grad", "autograd twice"))
def test_make_fx_of_any_batch(name: str) -> None:
    """With symbolic sizes one graph serves every batch."""
    function = RECORDED[name]
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        torch.randn(7, 2, dtype=F64)
    )
    for rows in (7, 1, 12):
        x = torch.randn(rows, 2, dtype=F64)
        torch.testing.assert_close(graph(x), function(x), rtol=1e-12, atol=1e-12)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(F64)


@pytest.mark.parametrize("make", (plain, lambda: KAN([2, 5, 1], dtype=F64)), ids=("nn.Linear", "KAN"))
def test_second_derivatives_of_a_compiled_module(make: Callable[[], nn.Module]) -> None:
    """Through a compiled module from outside torch refuses them, in the same words for its own layers."""
    compiled = torch.compile(make(), backend="aot_eager")
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        slope(compiled, torch.randn(7, 2, dtype=F64), 2)


@pytest.mark.long
@pytest.mark.parametrize("make", (plain, lambda: KAN([2, 5, 1], dtype=F64)), ids=("nn.Linear", "KAN"))
def test_second_derivatives_within(make: Callable[[], nn.Module]) -> None:
    """Of a residual in the compiled function torch.func has them, and so does autograd where torch traces it;
    the loss can be differentiated outside.
    """
    net, x = make(), torch.randn(7, 2, dtype=F64)
    weights = list(net.parameters())

    def by_func(x: Tensor) -> Tensor:
        return grad(lambda v: net(v).square().sum())(x).square().sum()

    def by_autograd(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return first.square().sum()

    want = torch.autograd.grad(by_autograd(x), weights, allow_unused=True)
    compiled = torch.compile(by_func, backend="aot_eager", fullgraph=True)
    for got, true in zip(torch.autograd.grad(compiled(x), weights, allow_unused=True), want, strict=True):
        if true is not None:
            torch.testing.assert_close(got, true)
        else:
            assert got is None or not got.any()  # of a bias that the derivative does not see


class Larger(nn.Module):
    """A model with layers of ours among torch's."""

    def __init__(self) -> None:
        super().__init__()
        # no nn.Conv2d: torch compiles it anew from 16 images on
        self.images = nn.Sequential(KANConv2d(1, 4, 3), nn.ReLU(), KANConv2d(4, 6, 2), nn.Flatten())
        self.norm, self.inner = nn.LayerNorm(6), KAN([6, 7, 5], bias=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.head = KANLinear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norm(self.images(x)))[:, None]
        return self.head(y + self.attention(y, y, y, need_weights=False)[0])[:, 0]


@pytest.mark.long
def test_one_graph_in_a_larger_model() -> None:
    """No break, and one compilation for five batch sizes, forward and backward."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.manual_seed(0)
    net, count = Larger(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=count, fullgraph=True, dynamic=True)
    compiled(torch.randn(7, 1, 4, 4))
    frames = count.frame_count
    for rows in (9, 2, 32, 11, 100):
        x = torch.randn(rows, 1, 4, 4)
        got, want = compiled(x), net(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        weights = list(net.parameters())
        for one, true in zip(
            torch.autograd.grad(got.square().sum(), weights),
            torch.autograd.grad(want.square().sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(one, true, rtol=1e-3, atol=1e-3)
    assert count.frame_count == frames
