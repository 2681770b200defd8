"""All layers of a KAN in one call: the bits of the layers, and the layers themselves where it is no case."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from harness import DEVICE
from kan_kernels import KAN, KANLinear, explain, use_backend
from kan_kernels._core.checks import GridError
from kan_kernels._engine import network
from kan_kernels.backends import native
from kan_kernels.functional import bspline_basis
from kan_kernels.nn.network import gather
from kan_kernels.symbolic import fix

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
pytestmark = pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")

CASES: list[dict[str, Any]] = [
    {"widths": [2, 5, 1], "batch": 1000},
    {"widths": [2, 5, 5, 1], "batch": 77, "bias": True},
    {"widths": [3, 1], "batch": 1, "dtype": F64, "base": None},
    {"widths": [64, 64, 64], "batch": 300, "grid_size": 3},
    {"widths": [7, 20, 30, 2], "batch": 33, "dtype": BF16, "bias": True},
    {"widths": [4, 9, 70, 3], "batch": 40, "dtype": F64, "spline_order": 5, "base": "identity"},
    {"widths": [5, 4, 3], "batch": 0, "bias": True},
    {"widths": [1, 1, 1, 1, 1], "batch": 9, "spline_order": 0},
    {"widths": [3, 200, 2], "batch": 65, "grid_size": 20, "spline_order": 2},
    {"widths": [2, (3, 2), 1], "batch": 1000},
    {"widths": [3, (2, 2), (0, 1), (1, 2)], "mult_arity": [[], [2, 3], 4, 2], "batch": 70, "bias": True},
    {"widths": [2, (0, 3), 1], "mult_arity": 3, "batch": 33, "dtype": F64, "base": None},
    {"widths": [2, (1, 1), 2], "batch": 0},
]
one_by_one = "its layers are called one by one: "


def make(case: dict[str, Any], adaptive: bool = True) -> tuple[KAN, Tensor]:
    """A KAN with knots that are not uniform, and x with points outside of them, NaN and inf."""
    options = dict(case)
    batch, dtype = options.pop("batch"), options.get("dtype", F32)
    net = KAN(**options, device=DEVICE)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
        for layer in net.layers if adaptive else ():
            layer.grid.copy_(layer.grid + 0.3 * layer.grid.sin())
    x = (torch.randn(batch, case["widths"][0]) * 1.2).to(DEVICE, dtype)
    for row, value in ((5, math.nan), (6, math.inf), (7, -math.inf)):
        x[row : row + 1, 0] = value
    return net, x.requires_grad_()


def whole(net: KAN) -> Callable[[Tensor], Tensor]:
    """The call of all layers, also for x that needs a gradient."""

    def call(x: Tensor) -> Tensor:
        layers = gather(net)
        assert not isinstance(layers, str)
        return network.call(x, layers, native)

    return call


@contextmanager
def layers_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Call the layers one by one inside."""
    with monkeypatch.context() as patch:
        patch.setattr(network, "backend_of", lambda *_: "a test")
        yield


def everything(net: Callable[[Tensor], Tensor], x: Tensor, weights: list[Any]) -> list[Tensor]:
    y = net(x)
    return [y, *torch.autograd.grad(y, [x, *weights], torch.ones_like(y))]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether the bits agree, of NaN whether it is there; numbers but for rounding on a GPU, in whose one
    launch sums have another order.
    """
    loose = {"rtol": 2.0**-6 if one[0].dtype == BF16 else 1e-4, "atol": 1e-4} if DEVICE == "cuda" else {}
    return all(
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and (
            torch.allclose(a, b, equal_nan=True, **loose)
            if loose
            else torch.equal(*map(torch.nan_to_num, (a, b)))
        )
        for a, b in zip(one, other, strict=True)
    )


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of the op, and of its gradient, from now on."""
    seen: list[tuple[Any, ...]] = []
    for name in ("kan_network", "kan_network_backward"):
        real = getattr(native, name)

        def call(*args: Any, real: Any = real, name: str = name) -> Any:
            seen.append((name, *args))
            return real(*args)

        monkeypatch.setattr(native, name, call)
    return seen


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c["widths"])))
def test_bits_of_the_layers(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients, NaN and inf among them, are those of the layers one by one."""
    net, x = make(case)
    weights = list(net.parameters())
    seen = calls(monkeypatch)
    ours = everything(whole(net), x, weights)
    assert [call[0] for call in seen] == ["kan_network", "kan_network_backward"]
    with torch.no_grad():
        alone = net(x)
    y = net(x.detach())
    training = [y, *torch.autograd.grad(y, weights, torch.ones_like(y))]
    assert len(seen) == 5
    theirs = everything(net, x, weights)  # of an x that needs a gradient the layers take care
    assert len(seen) == 5 and same(ours, theirs) and same([alone], theirs[:1])
    assert same(training, [theirs[0], *theirs[2:]])
    assert explain(net).startswith("(the model) (KAN): kan_network runs all layers in one call")


@pytest.mark.parametrize("shape", ((4,), (2, 3, 4), (2, 0, 4)), ids=str)
def test_any_rank(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """x (in,) and (..., in), and x whose rows lie apart."""
    net = KAN([4, 3, 2], device=DEVICE)
    for x in (torch.rand(*shape, device=DEVICE), torch.rand(*shape, 2, device=DEVICE)[..., 1]):
        y = net(x)
        with layers_alone(monkeypatch):
            assert y.shape == (*shape[:-1], 2) and torch.equal(y, net(x))


def test_edge_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges that are off take no part, and their weights get no gradient."""
    net, x = make({"widths": [3, 4, 2], "batch": 20})
    x = x.detach().nan_to_num(0, 0, 0).requires_grad_()
    net.layers[0].set_edge_mask(torch.rand(3, 4) > 0.5)
    seen = calls(monkeypatch)
    ours = everything(whole(net), x, list(net.parameters()))
    assert len(seen) == 2 and same(ours, everything(net, x, list(net.parameters())))


def test_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """autograd.grad of x alone computes no gradients of weights, and the other way round."""
    net, x = make({"widths": [3, 4, 2], "batch": 20})
    seen = calls(monkeypatch)
    y = whole(net)(x)
    first, last = net.layers[0].spline_weight, net.layers[1].spline_weight
    for wanted, flags in (([x], (True, False)), ([last], (False, True)), ([x, first], (True, True))):
        torch.autograd.grad(y.sum(), wanted, retain_graph=True)
        assert seen[-1][-3:-1] == flags
    net.requires_grad_(False)
    whole(net)(x).sum().backward()
    assert seen[-1][-3:-1] == (True, False)


def test_derivatives_of_any_order() -> None:
    """gradcheck and gradgradcheck; third derivatives and those of torch.func are the layers'."""
    net, _ = make({"widths": [2, 3, 2], "batch": 1, "dtype": F64, "bias": True})
    x = (torch.rand(3, 2, dtype=F64, device=DEVICE) * 1.6 - 0.8).requires_grad_()
    layers = gather(net)
    assert not isinstance(layers, str)
    learnt, grids = layers.tensors[:-2], layers.tensors[-2:]

    def f(x: Tensor, *weights: Tensor) -> Tensor:
        return network.call(x, dataclasses.replace(layers, tensors=[*weights, *grids]), native)

    inputs = (x, *learnt)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)
    (first,) = torch.autograd.grad(f(*inputs).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    third = torch.autograd.grad(second.sum(), x)[0]

    def cubed(row: Tensor) -> Tensor:
        return net(row).pow(3).sum()

    def twice(row: Tensor) -> Tensor:
        return torch.func.grad(cubed)(row).pow(2).sum()

    expected = torch.stack(
        [torch.func.grad(lambda r: torch.func.grad(twice)(r).sum())(row) for row in x.detach()]
    )
    torch.testing.assert_close(third, expected, rtol=1e-9, atol=1e-9)


def test_compiled_to_one_op() -> None:
    """torch.compile sees one op, in both directions, for any batch."""
    net, x = make({"widths": [3, 4, 2], "batch": 20, "bias": True})
    found: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes if "kan_kernels" in str(node.target))
        return graph.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(note(graph, inputs))

    compiled = torch.compile(net, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    weights = list(net.parameters())
    assert same(everything(compiled, x, weights), everything(net, x, weights))
    assert found == ["kan_kernels.kan_network.default", "kan_kernels.kan_network_backward.default"]
    other = torch.rand(7, 3, device=DEVICE)
    assert torch.equal(compiled(other), net(other))


def hooked(net: KAN) -> None:
    net.layers[1].register_forward_hook(lambda *_: None)


def own_forward(net: KAN) -> None:
    net.layers[1].forward = lambda x: x * 0  # type: ignore[method-assign]


def subclassed(net: KAN) -> None:
    class Mine(KANLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net.layers[1].__class__ = Mine


def parametrized(net: KAN) -> None:
    class Twice(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    nn.utils.parametrize.register_parametrization(net.layers[1], "spline_weight", Twice())


def pruned(net: KAN) -> None:
    prune.l1_unstructured(net.layers[1], "spline_weight", 0.5)


def formula(net: KAN) -> None:
    fix(net.layers[1], 0, 0, "sin")


def frozen(net: KAN) -> None:
    net.layers[0].requires_grad_(False)


def other_order(net: KAN) -> None:
    net.layers[1] = KANLinear(4, 2, spline_order=2, device=DEVICE)


def other_backend(net: KAN) -> None:
    net.layers[1].backend = net.layers[0].backend = "reference"


def other_knots(net: KAN) -> None:
    for layer in net.layers:
        for parameter in layer.parameters():
            parameter.data = parameter.data.double()


def another_module(net: KAN) -> None:
    net.layers.append(nn.Tanh())


CHANGES = {
    hooked: "layers[1] has hooks",
    own_forward: "layers[1] is no plain KANLinear",
    subclassed: "layers[1] is no plain KANLinear",
    parametrized: "layers[1] is no plain KANLinear",
    pruned: "layers[1] has hooks",
    formula: "layers[1] has formulas",
    frozen: "some of the weights are frozen",
    other_order: "layers[1] has other options than layers[0]",
    other_backend: "the backend 'reference' calls them one by one",
    other_knots: "the knots have another dtype than the op takes",
    another_module: "layers[2] is no plain KANLinear",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_is_no_case(change: Callable[[KAN], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with a part that somebody changed is called layer by layer, and `explain` says why."""
    net = KAN([3, 4, 2], device=DEVICE)
    change(net)
    x = torch.rand(9, 3, device=DEVICE, dtype=net.layers[0].spline_weight.dtype)
    seen = calls(monkeypatch)
    expected = x
    for layer in net.layers:
        expected = layer(expected)
    assert torch.equal(net(x), expected) and not seen
    assert f"(KAN): {one_by_one}{CHANGES[change]}" in explain(net)


def test_hooks_of_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global hooks see every layer."""
    net, seen = KAN([3, 4, 2], device=DEVICE), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        net(torch.rand(2, 3, device=DEVICE))
    finally:
        handle.remove()
    assert seen.count(KANLinear) == 2


def test_what_runs_around_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast, forward mode, torch.func, a trace and `use_backend` reach the layers."""
    net, _ = make({"widths": [3, 4, 2], "batch": 9})
    x = torch.rand(9, 3, device=DEVICE)
    seen = calls(monkeypatch)
    with torch.autocast(DEVICE, dtype=BF16):
        assert net(x).dtype == BF16
    with use_backend("reference"):
        torch.testing.assert_close(net(x), net.layers[1](net.layers[0](x)))
    torch.func.jvp(net, (x,), (x,))
    torch.func.vmap(net)(x)
    assert not seen
    net(x)
    assert len(seen) == 1
    assert "kan_network" not in str(torch.jit.trace(net, x).inlined_graph)


def test_errors_are_the_layers() -> None:
    """Knots that decrease, another width, another dtype: the error names the layer and the argument."""
    net = KAN([3, 4, 2], device=DEVICE)
    x = torch.rand(9, 3, device=DEVICE)
    with pytest.raises(ValueError, match="x: got"):
        net(x[:, :2])
    with pytest.raises(TypeError, match="x: got"):
        net(x.double())
    if DEVICE == "cpu":
        with torch.no_grad():
            net.layers[1].grid[2, 3] = -9.0
        with pytest.raises(GridError, match=r"layers\[1\], KANLinear.*knot 3 of feature 2"):
            net(x)
    net.layers[1].spline_weight.data = torch.rand(5, 8, 2, device=DEVICE)
    with pytest.raises(ValueError):
        net(x)


def test_copies_are_their_own() -> None:
    """A deep copy has weights of its own."""
    net = KAN([2, 3, 1], device=DEVICE)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.layers[0].spline_weight.zero_()
        other.layers[0].base_weight.zero_()
    x = torch.rand(4, 2, device=DEVICE)
    assert not torch.equal(net(x), other(x))


@pytest.mark.parametrize("out", (5, 20))
def test_an_infinite_coefficient_is_no_nan(out: int) -> None:
    """Where its function is positive the result is infinite, elsewhere finite: few outputs as many."""
    x = torch.linspace(-0.99, 0.99, 83)[:, None]
    layer = KANLinear(1, out, base=None)
    with torch.no_grad():
        layer.spline_weight[0, 3, 2] = torch.inf
        basis = bspline_basis(x, layer.grid, 3)[:, 0, 3]
        y = layer(x)
    assert torch.equal(y[:, 2].isinf(), basis > 0) and not bool(y.isnan().any())
