"""The penalties against their formulas in plain torch, their gradients, and the memory they take."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck

from harness import DEVICE, REFERENCE_LONG, child
from kan_kernels import KAN, KANLinear, use_backend
from kan_kernels import functional as F
from kan_kernels._core.bases import BASE_CODES
from kan_kernels.backends import reference
from kan_kernels.grids import outside, update_grid
from kan_kernels.regularization import regularization
from kan_kernels.training import fit

F64 = torch.float64
KINDS = ("l1", "std", "std_normalized", "coefficient")


def model_of(widths=(3, 5, 4, 2), dtype: torch.dtype = F64, **options) -> KAN:  # type: ignore[no-untyped-def]
    model = KAN(widths, dtype=dtype, device=DEVICE, **options)
    for layer in model.layers:
        nn.init.normal_(layer.spline_weight)
    return model


def points(rows: int = 40, features: int = 3, dtype: torch.dtype = F64) -> Tensor:
    gen = torch.Generator().manual_seed(7)
    return (0.8 * torch.randn(rows, features, generator=gen, dtype=F64)).to(DEVICE, dtype)


def activations(layer: KANLinear, x: Tensor) -> Tensor:
    """phi[b,i,o], dense and differentiable."""
    phi = torch.einsum(
        "bir,iro->bio", F.bspline_basis(x, layer.grid, layer.spline_order), layer.spline_weight
    )
    if layer.base_weight is not None:
        base = reference.base_activation(x, BASE_CODES[layer.base])
        phi = phi + base.unsqueeze(2) * layer.base_weight
    return phi if layer.edge_mask is None else phi * layer.edge_mask


def by_hand(model: KAN, x: Tensor, kind: str, l1: float, entropy: float, coef: float, diff: float) -> Tensor:
    """The formulas of the paper, of pykan (MultKAN.reg) and of efficient-kan, as they are written there."""
    total = x.new_zeros(())
    for layer in model.layers:
        phi, c = activations(layer, x), layer.spline_weight
        if layer.edge_mask is not None:
            c = c * layer.edge_mask.unsqueeze(1)
        norm = {
            "l1": lambda phi=phi: phi.abs().mean(0),
            "std": lambda phi=phi: phi.std(0),
            "std_normalized": lambda phi=phi, x=x: phi.std(0) / (x.std(0) + 0.1)[:, None],
            "coefficient": lambda c=c: c.abs().mean(1),
        }[kind]()
        total = total + l1 * norm.sum()
        if kind in ("l1", "coefficient"):
            p = norm[norm > 0] / norm.sum()
            total = total - entropy * (p * p.log()).sum()
        else:
            vec = norm.t()  # pykan keeps (out, in)
            p_row = vec / (vec.sum(1, keepdim=True) + 1)
            p_col = vec / (vec.sum(0, keepdim=True) + 1)
            total = total - entropy * (p_row * torch.log2(p_row + 1e-4)).sum(1).mean()
            total = total - entropy * (p_col * torch.log2(p_col + 1e-4)).sum(0).mean()
        their_coef = c.transpose(1, 2)  # (in, out, G+k)
        total = total + coef * their_coef.abs().mean(1).sum() + diff * their_coef.diff().abs().mean(1).sum()
        x = layer(x)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(backend: str, kind: str, masked: bool) -> None:
    """Value and the gradients of every parameter and of x, with all four terms."""
    model, x = model_of(), points().requires_grad_()
    if masked:
        gen = torch.Generator().manual_seed(2)
        for layer in model.layers:
            layer.set_edge_mask(torch.rand(layer.in_features, layer.out_features, generator=gen) < 0.6)
    inputs = [x, *model.parameters()]
    weights = (0.7, 1.3, 0.4, 0.9)
    want = by_hand(model, x, kind, *weights)
    names = ("lamb_l1", "lamb_entropy", "lamb_coef", "lamb_coefdiff")
    with use_backend(backend):
        got = regularization(model, x, kind=kind, **dict(zip(names, weights, strict=True)))
        grads = grad(got, inputs, allow_unused=True)
    assert got.shape == () and got.dtype == F64
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for a, b in zip(grads, grad(want, inputs, allow_unused=True), strict=True):
        a, b = (torch.zeros(1, dtype=F64) if t is None else t for t in (a, b))
        assert a.isfinite().all()
        torch.testing.assert_close(a.expand_as(b), b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("term", ["lamb_l1", "lamb_entropy", "lamb_coef", "lamb_coefdiff"])
def test_each_term_alone(term: str) -> None:
    """The penalty is linear in its four weights, and no term hides in another."""
    model, x = model_of(), points()
    names = ("lamb_l1", "lamb_entropy", "lamb_coef", "lamb_coefdiff")
    only = dict.fromkeys(names, 0.0) | {term: 1.0}
    for kind in KINDS:
        want = by_hand(model, x, kind, *(only[name] for name in names))
        torch.testing.assert_close(regularization(model, x, kind=kind, **only), want, rtol=1e-9, atol=1e-9)


def test_the_paper_by_numbers() -> None:
    """Equal edges: S = log(number of edges). One edge: L1 alone, its entropy 0."""
    layer = KANLinear(2, 3, base=None, dtype=F64, device=DEVICE)
    with torch.no_grad():
        layer.spline_weight.fill_(0.5)  # phi = 1/2 inside the grid
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) - 0.5
    assert regularization(layer, x, lamb_entropy=0).item() == pytest.approx(6 * 0.5)
    assert regularization(layer, x, lamb_l1=0, lamb_entropy=1).item() == pytest.approx(math.log(6))
    layer.set_edge_mask(torch.tensor([[0, 0, 1], [0, 0, 0]]))
    assert regularization(layer, x).item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_dead_edges(backend: str, kind: str) -> None:
    """Edges that are exactly 0, and a layer of nothing else: finite value, no NaN in any gradient."""
    for dead in (slice(0, 1), slice(None)):
        model, x = model_of(), points().requires_grad_()
        with torch.no_grad():
            model.layers[1].spline_weight[dead] = 0.0
            model.layers[1].base_weight[dead] = 0.0
        with use_backend(backend):
            value = regularization(model, x, kind=kind, lamb_coef=1.0, lamb_coefdiff=1.0)
            value.backward()
        assert value.isfinite()
        gradients = [t.grad for t in (x, *model.parameters()) if t.grad is not None]
        assert len(gradients) >= 3 and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", REFERENCE_LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_any_order(backend: str, kind: str) -> None:
    """gradcheck and gradgradcheck with respect to x and one layer's weights, through both layers."""
    model = model_of((2, 2, 1), grid_size=3)
    x = points(5, 2).requires_grad_()
    c = model.layers[0].spline_weight

    def penalty(x: Tensor, c: Tensor) -> Tensor:
        return torch.func.functional_call(Wrapped(model, kind), {"model.layers.0.spline_weight": c}, (x,))

    with use_backend(backend):
        assert gradcheck(penalty, (x, c))
        assert gradgradcheck(penalty, (x, c))


class Wrapped(nn.Module):
    def __init__(self, model: KAN, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x: Tensor) -> Tensor:
        return regularization(self.model, x, kind=self.kind, lamb_coef=0.3, lamb_coefdiff=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes(backend: str, kind: str, dtype: torch.dtype) -> None:
    """float32 and 16-bit models give float32 penalties near the float64 one."""
    model = model_of((3, 5), dtype=dtype)
    x = points(200, dtype=dtype)
    wide = KAN((3, 5), dtype=F64, device=DEVICE)
    wide.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    with use_backend(backend):
        got, want = regularization(model, x, kind=kind), regularization(wide, x.double(), kind=kind)
        got.backward()
    assert got.dtype == torch.float32 and model.layers[0].spline_weight.grad.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_sparsifies() -> None:
    """A few steps of descent on the penalty alone shrink every edge and concentrate the rest."""
    model, x = model_of((3, 4, 2), dtype=torch.float32), points(100, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = regularization(model, x)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_a_layer_that_is_there_twice() -> None:
    """Counts once, for what it gets at all places, as in any module."""
    net = KAN([3, 3, 3, 3], dtype=F64, device=DEVICE)
    net.layers[2] = net.layers[0]
    first, second = net.layers[0], net.layers[1]
    x = torch.rand(40, 3, dtype=F64, device=DEVICE)
    rows = torch.cat([x, second(first(x))])
    want = regularization(first, rows) + regularization(second, first(x))
    torch.testing.assert_close(regularization(net, x), want)
    torch.testing.assert_close(regularization(nn.Sequential(net), x), want)


class Named(nn.Module):
    """A model that calls its layer by a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = KANLinear(3, 2, dtype=F64, device=DEVICE)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x=x)


@pytest.mark.parametrize("way", ["around", "inside", "in place", "keyword"])
def test_models_that_are_compiled_or_call_by_name(way: str) -> None:
    """What reaches the layers is seen: penalty, grids and what lies outside are those of the plain model."""
    x = torch.rand(40, 3, dtype=F64, device=DEVICE) * 4
    plain: nn.Module = nn.Sequential(nn.Identity(), KANLinear(3, 2, dtype=F64, device=DEVICE))
    plain = Named() if way == "keyword" else plain
    model: Any = copy.deepcopy(plain)
    if way == "around":
        model = torch.compile(model, backend="eager")
    elif way == "inside":
        model[1] = torch.compile(model[1], backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    for mode in (True, False):  # both have a graph
        model.train(mode)(x)
    assert float(regularization(plain, x)) == pytest.approx(float(regularization(model, x))) != 0
    assert outside(model, x) == outside(plain, x) != {}
    for one in (plain, model):
        update_grid(one, x)
    assert outside(model, x) == dict.fromkeys(outside(plain, x), 0.0)
    history = fit(model, (x, x[:, :2]), steps=2, lamb=1.0, optimizer="adam")
    assert min(history.regularization) > 0


def test_within_a_compiled_function() -> None:
    """Of a model that no KAN is: in the graph, or in the part of a function that dynamo leaves out of it."""
    net = nn.Sequential(KANLinear(3, 3, dtype=F64, device=DEVICE), KANLinear(3, 2, dtype=F64, device=DEVICE))
    x = torch.rand(40, 3, dtype=F64, device=DEVICE)
    want = net(x).square().mean() + regularization(net, x)
    got = torch.compile(lambda x: net(x).square().mean() + regularization(net, x), backend="eager")(x)
    torch.testing.assert_close(got, want)


def test_x_has_leading_dimensions_and_coefficients_need_none() -> None:
    """(..., in) is rows; kind="coefficient" takes no x, and neither does a penalty of coefficients alone."""
    model, x = model_of(), points()
    for kind in KINDS:
        assert torch.equal(
            regularization(model, x, kind=kind), regularization(model, x.reshape(4, 10, 3), kind=kind)
        )
    assert torch.equal(
        regularization(model, kind="coefficient"), regularization(model, x, kind="coefficient")
    )
    assert regularization(model, lamb_l1=0, lamb_entropy=0, lamb_coef=1) > 0
    assert regularization(model, lamb_l1=0, lamb_entropy=0) == 0


@pytest.mark.skipif(DEVICE != "cpu", reason="reads this process's peak memory")
@pytest.mark.parametrize(
    "kind", ["l1", *(pytest.param(k, marks=pytest.mark.long) for k in ("std", "std_normalized"))]
)
def test_memory(kind: str) -> None:
    """Forward and backward of a batch whose (B, in, out) tensor would take 2 GiB, in less than 100 MiB."""
    code = f"""
import resource, torch
from kan_kernels import KANLinear
from kan_kernels.regularization import regularization
torch.set_num_threads(1)
layer = KANLinear(64, 64)
small = torch.rand(64, 64).requires_grad_()
regularization(layer, small, kind={kind!r}).backward()
x = torch.rand(131072, 64).requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
regularization(layer, x, kind={kind!r}).backward()
assert x.grad.isfinite().all() and (x.grad != 0).any()
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    # dx is 32 MiB, its float64 sums are 64 MiB for the deviations; x itself was there before
    limit = 64 if kind == "l1" else 180
    grown = int(child(code).split()[-1])
    assert grown < limit, f"{grown} MiB"


@pytest.mark.long
@pytest.mark.skipif(DEVICE != "cpu", reason="reads this process's peak memory")
def test_memory_in_plain_torch() -> None:
    """The chunks of the reference bound its memory too: devices without compiled kernels run them."""
    code = """
import resource, torch
from kan_kernels import functional as F, use_backend
torch.set_num_threads(1)
c, b = torch.randn(8, 8, 256).requires_grad_(), torch.randn(8, 256).requires_grad_()
grid = torch.arange(-3.0, 9.0).mul(0.4).sub(1).expand(8, -1).contiguous()
def run(rows):
    x = torch.rand(rows, 8).requires_grad_()
    F.edge_l1(x, c, grid, spline_order=3, base_weight=b).sum().backward()
    F.edge_moments(x, c, grid, spline_order=3, base_weight=b)[1].sum().backward()
with use_backend("reference"):
    run(64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(65536)
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = int(child(code).split()[-1])
    assert grown < 150, f"{grown} MiB, where (B, in, out) takes 512 and autograd would keep several of them"


@pytest.mark.parametrize(
    "error, match, options",
    [
        (ValueError, "kind: got 'l2'", {"kind": "l2"}),
        (ValueError, "x: got None", {"x": None}),
        (ValueError, "x: got 0 rows", {"x": torch.empty(0, 3, dtype=F64, device=DEVICE)}),
        (ValueError, "x: got 1 rows", {"x": torch.ones(1, 3, dtype=F64, device=DEVICE), "kind": "std"}),
        (ValueError, r"x: got shape \(5, 2\)", {"x": torch.ones(5, 2, dtype=F64, device=DEVICE)}),
        (TypeError, "x: got torch.float32", {"x": torch.ones(5, 3, device=DEVICE)}),
        (ValueError, "lamb_l1: got -1", {"lamb_l1": -1}),
        (ValueError, "lamb_coef: got nan", {"lamb_coef": math.nan}),
        (TypeError, "lamb_entropy: got '2'", {"lamb_entropy": "2"}),
    ],
)
def test_errors(error: type[Exception], match: str, options: dict) -> None:  # type: ignore[type-arg]
    """Each names its argument, what it got and what it wants."""
    with pytest.raises(error, match=match):
        regularization(model_of(), options.pop("x", points()), **options)
    with pytest.raises(TypeError, match="model: got Linear"):
        regularization(nn.Linear(3, 2), points())
