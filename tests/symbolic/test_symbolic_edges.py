"""Symbolic edges inside a layer: values, derivatives, dtypes, copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear, symbolic, to_numpy_model
from kan_kernels.symbolic import Edge, SymbolicEdges
from symbolic_cases import AFFINE, by_hand, layer_with_formulas


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4), (0, 4)])
def test_adds_its_edges(backend: str, shape: tuple[int, ...]) -> None:
    """Splines where the mask is on, formulas on the fixed edges; any leading dimensions."""
    layer = layer_with_formulas(backend=backend, bias=True)
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-13, atol=1e-13)


def test_derivatives_of_any_order(backend: str) -> None:
    """gradcheck, gradgradcheck and a third derivative, with respect to x and the affine parameters."""
    layer = layer_with_formulas(backend=backend)
    x = (0.8 * torch.randn(3, 4, dtype=torch.float64, device=DEVICE)).requires_grad_()
    affine = layer.symbolic.affine

    def f(x: Tensor, affine: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"symbolic.affine": affine}, (x,))

    assert torch.autograd.gradcheck(f, (x, affine))
    assert torch.autograd.gradgradcheck(f, (x, affine))

    def third(y: Tensor) -> Tensor:
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y

    torch.testing.assert_close(third(layer(x)), third(by_hand(layer, x)), rtol=1e-9, atol=1e-9)


def test_nan_and_inf() -> None:
    """NaN in gives NaN out, whatever the function, also where it is constant."""
    for name in symbolic.names():
        edges = SymbolicEdges(1, 1, [Edge(0, 0, name, (0.4, 0.5, 1.0, 0.0))])
        y = edges(torch.tensor([[torch.nan], [0.3]]))
        assert bool(y[0].isnan()) and bool(y[1].isfinite()), name


def test_copies(backend: str) -> None:
    """state_dict into a fresh layer, deepcopy and pickle: the same function, independent."""
    net = KAN([4, 3, 2], bias=True, backend=backend, device=DEVICE)
    plain = copy.deepcopy(net.state_dict())
    symbolic.fix(net.layers[0], 1, 2, "sin", params=AFFINE)
    symbolic.fix(net.layers[0], 3, 0, "1/x", params=(1.0, 9.0, 1.0, 0.0))
    x = torch.randn(6, 4, device=DEVICE)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = KAN([4, 3, 2], bias=True, backend=backend, device=DEVICE)
    assert fresh.load_state_dict(state) == ([], [])
    other = KAN([4, 3, 2], bias=True, backend=backend, device=DEVICE)
    symbolic.fix(other.layers[0], 0, 0, "cos", params=AFFINE)
    other.load_state_dict(state)
    for same in (fresh, other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(same(x), net(x))
        assert same.layers[0].symbolic.edges() == net.layers[0].symbolic.edges()
        with torch.no_grad():
            same.layers[0].symbolic.affine.add_(0.1)
        assert not torch.equal(same(x), net(x))
    parameter = fresh.layers[0].symbolic.affine
    fresh.load_state_dict(state)
    assert fresh.layers[0].symbolic.affine is parameter, "an optimizer would lose it"
    net.load_state_dict(plain)
    assert net.layers[0].symbolic is None and net.layers[0].edge_mask is None


def test_unknown_function_in_a_checkpoint() -> None:
    """Is named, before the layer changes."""
    layer = layer_with_formulas()
    state = layer.state_dict()
    name = torch.tensor(list(b'["sinus"]'), dtype=torch.uint8)
    fresh = KANLinear(4, 3, grid_size=8, dtype=torch.float64)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match="unknown function 'sinus'; did you mean"):
        fresh.load_state_dict({**state, "symbolic._extra_state": name})
    assert fresh.symbolic is None and fresh.edge_mask is None and fresh.grid_size == 8
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_sixteen_bits(backend: str, dtype: torch.dtype) -> None:
    """The affine parameters stay in float32 and x is not rounded; the sum is in the layer's dtype."""
    layer = layer_with_formulas(backend=backend, dtype=torch.float32)
    before = layer.symbolic.affine.detach().clone()
    layer.to(dtype)
    assert layer.symbolic.affine.dtype == torch.float32 and torch.equal(layer.symbolic.affine, before)
    y = layer(torch.randn(5, 4, device=DEVICE))
    assert y.dtype == dtype and bool(y.isfinite().all())
    made = layer_with_formulas(backend=backend, dtype=dtype)
    assert made.symbolic.affine.dtype == torch.float32
    best = symbolic.fix(made, 0, 1, "x", torch.rand(50, 4, device=DEVICE).to(dtype))
    assert 0 <= best.r2 <= 1
    layer.double()
    assert layer.symbolic.affine.dtype == torch.float64


def test_compile() -> None:
    """torch.compile without graph breaks, forward and backward."""
    layer = layer_with_formulas()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), x)[0])


def test_transforms(backend: str) -> None:
    """torch.func: a Jacobian for each row under vmap, and forward mode."""
    layer = layer_with_formulas(backend=backend)
    x = torch.randn(5, 4, dtype=torch.float64, device=DEVICE)
    want = torch.func.vmap(torch.func.jacrev(lambda r: by_hand(layer, r)))(x)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(layer))(x), want)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(layer))(x), want)


def test_numpy_model_refuses() -> None:
    """A NumPy model holds splines only and says so."""
    with pytest.raises(ValueError, match="layer 0 has symbolic edges"):
        to_numpy_model(layer_with_formulas())


def test_select() -> None:
    """The edges between kept inputs and outputs, renumbered, as slicing a layer needs them."""
    layer = layer_with_formulas()
    part = layer.symbolic.select([2, 0], [1, 0])
    assert {edge[:3] for edge in part.edges()} == {(1, 1, "sin"), (0, 1, "exp"), (0, 0, "x^3")}
    x = torch.randn(5, 4, dtype=torch.float64)
    whole = SymbolicEdges(4, 3, [e for e in layer.symbolic.edges() if e.input in (0, 2)], dtype=torch.float64)
    torch.testing.assert_close(part(x[:, [2, 0]]), whole(x)[:, [1, 0]])
    assert layer.symbolic.select([0], [1]) is None
