"""Multiplication nodes: their numbers and derivatives, the ways of torch, state dicts, and bad input."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kan_kernels import KAN, explain, functional, use_backend
from kan_kernels.backends import native
from kan_kernels.nn import Products
from kan_kernels.nn.network import gather
from kan_kernels.training import fit
from kan_kernels.training.direct import squared_errors

F64 = torch.float64
RAGGED: dict[str, Any] = {"widths": [3, (2, 2), (0, 1), (1, 1)], "mult_arity": [[], [2, 3], 4, [2]]}
NETWORKS: list[dict[str, Any]] = [
    {"widths": [2, (3, 2), 1]},
    {"widths": [2, (0, 3), 1], "mult_arity": 3, "bias": True},
    {"widths": [3, [2, 1], 4, [1, 2]], "base": None, "spline_order": 2},
    RAGGED,
]


def make(options: dict[str, Any], **more: Any) -> tuple[KAN, Tensor]:
    torch.manual_seed(0)
    net = KAN(**options, **{"dtype": F64, **more})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net, torch.rand(9, net.layers[0].in_features, dtype=net.layers[0].spline_weight.dtype) * 2 - 1


def by_hand(net: KAN, x: Tensor, rows: list[tuple[int, list[int]]]) -> Tensor:
    """The network by layers in plain torch, and products in a loop over the nodes."""
    for layer, (sums, arities) in zip(net.layers, rows, strict=True):
        basis = functional.bspline_basis(x, layer.grid, layer.spline_order)
        y = torch.einsum("bir,iro->bo", basis, layer.spline_weight)
        if layer.base_weight is not None:
            y = y + nn.functional.silu(x) @ layer.base_weight
        if layer.bias is not None:
            y = y + layer.bias
        columns = list(y.unbind(1))
        nodes, rest = columns[:sums], columns[sums:]
        for arity in arities:
            nodes.append(torch.stack(rest[:arity]).prod(0))
            rest = rest[arity:]
        assert not rest
        x = torch.stack(nodes, 1)
    return x


ROWS: list[list[tuple[int, list[int]]]] = [
    [(3, [2, 2]), (1, [])],
    [(0, [3, 3, 3]), (1, [])],
    [(2, [2]), (4, []), (1, [2, 2])],
    [(2, [2, 3]), (0, [4]), (1, [2])],
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("options", "rows"), zip(NETWORKS, ROWS, strict=True))
def test_forward_and_gradients_by_hand(options: dict[str, Any], rows: Any, backend: str) -> None:
    net, x = make(options)
    x.requires_grad_()
    with use_backend(backend):
        y = net(x)
        leaves = [x, *net.parameters()]
        got = torch.autograd.grad(y.square().sum(), leaves)
    wanted = by_hand(net, x, rows)
    assert y.shape == wanted.shape
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(wanted.square().sum(), leaves)
    torch.testing.assert_close(list(got), list(grads), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [NETWORKS[0], RAGGED])
def test_derivatives_of_higher_order(options: dict[str, Any]) -> None:
    net, x = make(options, spline_order=4)
    x = x[:2].requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))

    def second(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (x,))  # the third


def test_a_zero_factor_has_a_derivative() -> None:
    """Where a factor is 0 the product's derivative is that of the other, to the second order."""
    y = torch.tensor([0.0, 3.0, 0.0], dtype=F64)
    hessian = torch.func.hessian(lambda v: Products(0, [3])(v)[0])(y)
    assert torch.equal(torch.func.jacrev(Products(0, [3]))(y), torch.zeros(1, 3, dtype=F64))
    assert torch.equal(hessian, torch.tensor([[0.0, 0, 3], [0, 0, 0], [3, 0, 0]], dtype=F64))


def test_nan_and_infinity_pass() -> None:
    y = Products(1, [2])(torch.tensor([[torch.nan, 2.0, 3.0], [1.0, torch.inf, -2.0], [1.0, torch.inf, 0.0]]))
    assert torch.equal(y.isnan(), torch.tensor([[True, False], [False, False], [False, True]]))
    assert y[1, 1] == -torch.inf


@pytest.mark.parametrize("shape", [(2,), (4, 2), (3, 4, 2), (0, 2)])
def test_shapes(shape: tuple[int, ...]) -> None:
    net, _ = make(NETWORKS[0])
    assert net(torch.rand(shape, dtype=F64)).shape == (*shape[:-1], 1)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs(layout: torch.layout) -> None:
    net, _ = make(NETWORKS[0])
    parts = [torch.rand(n, 2, dtype=F64) for n in (3, 5)]
    got = net(torch.nested.nested_tensor(parts, layout=layout)).unbind()
    torch.testing.assert_close(list(got), [net(part) for part in parts])


def test_16_bits() -> None:
    net, x = make(NETWORKS[0], dtype=torch.bfloat16)
    assert net(x).dtype == torch.bfloat16


def test_torch_func_and_vmap() -> None:
    net, x = make(RAGGED)
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)
    forward = torch.func.vmap(torch.func.jacfwd(net))(x)
    slow = torch.stack([torch.autograd.functional.jacobian(net, row) for row in x])
    torch.testing.assert_close(jacobian, slow)
    torch.testing.assert_close(forward, slow)
    nets = [make(RAGGED)[0] for _ in range(3)]
    for n, other in enumerate(nets):
        other.layers[0].spline_weight.data += n
    parameters, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]

    def call(parameters: Any, buffers: Any) -> Tensor:
        return torch.func.functional_call(net, (parameters, buffers), (x,))

    together = torch.func.vmap(call)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([other(x) for other in nets]))


def test_compiles_whole() -> None:
    net, x = make(RAGGED)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, net(x))
    weight = net.layers[0].spline_weight
    got = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(got, torch.autograd.grad(net(x).sum(), weight))


def test_copies_and_pickles() -> None:
    net, x = make(RAGGED)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
    assert str(net.products[0]) == "Products(2 sums, 1 product of 2 outputs, 1 product of 3 outputs)"


def test_state_dicts() -> None:
    net, x = make(NETWORKS[0])
    state = net.state_dict()
    other = KAN(**NETWORKS[0], dtype=F64)
    other.load_state_dict(state)
    assert torch.equal(other(x), net(x))
    twin = KAN([2, (4, 1), 1], mult_arity=3, dtype=F64)  # the same shapes, another function
    assert [p.shape for p in twin.parameters()] == [p.shape for p in net.parameters()]
    before = copy.deepcopy(twin.state_dict())
    with pytest.raises(
        ValueError, match=re.escape("multiply [1, 1, 1, 2, 2] outputs each, expected [1, 1, 1, 1, 3]")
    ):
        twin.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())
    plain, multiplied = KAN([2, 2]), KAN([2, (0, 1)])
    assert plain.state_dict().keys() == {
        f"layers.0.{name}" for name in ("spline_weight", "base_weight", "grid")
    }
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(multiplied.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        multiplied.load_state_dict(plain.state_dict())
    meta = KAN(**NETWORKS[0], dtype=F64, device="meta").to_empty(device="cpu")
    meta.load_state_dict(state)
    assert torch.equal(meta(x), net(x))


@pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")
def test_all_layers_in_one_call() -> None:
    """Products are part of the call, and of `fit`'s error without autograd; not where they are not ours."""
    net, x = make(NETWORKS[0])
    assert "kan_network runs all layers in one call" in explain(net)
    errors = squared_errors(net, x, torch.zeros(9, 1, dtype=F64))
    assert errors is not None
    error = errors()
    torch.testing.assert_close(error.value, net(x).square().mean(), rtol=1e-14, atol=0)
    error.backward(1.0)
    found = [p.grad for p in net.parameters()]
    torch.testing.assert_close(found, list(torch.autograd.grad(net(x).square().mean(), net.parameters())))
    plain = KAN([2, (3, 0), 1])
    assert plain.products is None and not isinstance(gather(plain), str)
    for dtype in (torch.bfloat16, torch.float16):
        half, rows = make(NETWORKS[1], dtype=dtype)
        assert "kan_network runs all layers in one call" in explain(half)
        x = rows.detach()
        by_layer = x
        for layer, multiply in zip(half.layers, half.products, strict=True):
            by_layer = multiply(layer(by_layer))
        assert torch.equal(half(x), by_layer)
        g, weights = torch.randn_like(by_layer), list(half.parameters())
        for ours, theirs in zip(
            *(torch.autograd.grad(y, weights, g) for y in (half(x), by_layer)), strict=True
        ):
            assert torch.equal(ours, theirs)
    products = net.products
    assert products is not None
    handle = products[0].register_forward_hook(lambda *_: None)
    assert gather(net) == "products is no plain list of Products"
    handle.remove()
    assert not isinstance(gather(net), str)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Products, "forward", lambda self, y: y[..., : self.nodes])
        assert gather(net) == "products is no plain list of Products"
    products[0].__class__ = type("Mine", (Products,), {})
    assert gather(net) == "products is no plain list of Products"
    net.products = nn.Sequential(*products)
    assert gather(net) == "products is no plain list of Products"


@pytest.mark.parametrize("lamb", [0.0, 1e-4])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_fit_learns_a_product(lamb: float, optimizer: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 2, dtype=F64) * 2 - 1
    net = KAN([2, (0, 1), 1], grid_size=3, dtype=F64)
    options: dict[str, Any] = {
        "update_grid_at": [5],
        "refine_at": {10: 6},
        "lamb": lamb,
        "optimizer": optimizer,
    }
    history = fit(net, (x, x[:, :1] * x[:, 1:]), steps=30, **options)
    assert [event["kind"] for event in history.events] == ["grid_update", "refine"]
    best = {("lbfgs", 0.0): 1e-5, ("lbfgs", 1e-4): 1e-3, ("adam", 0.0): 0.1, ("adam", 1e-4): 0.1}
    assert history.train_loss[-1] < best[optimizer, lamb]


@pytest.mark.parametrize(
    ("widths", "arity", "kind", "message"),
    [
        ([2, (3, -1), 1], 2, ValueError, "widths[1]: products: got -1, expected an int >= 0"),
        ([2, (-3, 1), 1], 2, ValueError, "widths[1]: sums: got -3, expected an int >= 0"),
        ([2, (3, 1.5), 1], 2, TypeError, "widths[1]: products: got 1.5, expected an int >= 0"),
        ([2, (0, 0), 1], 2, ValueError, "widths[1]: got no nodes, expected at least one"),
        ([2, (3, 2, 1), 1], 2, ValueError, "widths[1]: got 3 numbers, expected a positive int, or two"),
        ([2, (3,), 1], 2, ValueError, "widths[1]: got 1 numbers"),
        ([(2, 1), 1], 2, ValueError, "widths[0]: got 1 products, expected none"),
        ([(2, 0)], 2, ValueError, "widths: got 1 of them, expected at least two"),
        ([2, "31", 1], 2, TypeError, "widths[1]: got '31', expected an int >= 1"),
        ([2, (3, 2), 0], 2, ValueError, "widths[2]: got 0, expected an int >= 1"),
        ([2, 1], 1, ValueError, "mult_arity: got 1, expected an int >= 2"),
        ([2, (3, 2), 1], 2.0, TypeError, "mult_arity: got 2.0, expected an int >= 2"),
        ([2, (3, 2), 1], "2", TypeError, "mult_arity: got '2'"),
        ([2, (3, 2), 1], [2, 2], ValueError, "mult_arity: got 2 entries, expected an int"),
        ([2, (3, 2), 1], [[], [2], []], ValueError, "mult_arity[1]: got [2], expected"),
        ([2, (3, 2), 1], [[], [2, 1], []], ValueError, "mult_arity[1]: got 1, expected"),
        ([2, (3, 2), 1], [[], [2, 2], [2]], ValueError, "mult_arity[2]: got [2]"),
    ],
)  # fmt: skip
def test_bad_widths(widths: Any, arity: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        KAN(widths, mult_arity=arity)


def test_bad_products() -> None:
    with pytest.raises(ValueError, match=re.escape("arities[1]: got 1, expected an int >= 2")):
        Products(0, [2, 1])
    with pytest.raises(
        ValueError, match=re.escape("products: got [(2, 1)] subnodes and nodes, expected [3]")
    ):
        KAN([2, 3]).set_products([Products(0, [2])])
