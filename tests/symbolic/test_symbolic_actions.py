"""Suggest, fix, unfix, auto, polish, register: what they do and what they refuse."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear, functional, symbolic
from kan_kernels.nn import function_library as library
from kan_kernels.symbolic import Edge
from kan_kernels.symbolic.fit import FINE, samples
from kan_kernels.training import fit
from symbolic_cases import AFFINE, layer_with_formulas


def target(x: Tensor) -> Tensor:
    return (torch.sin(torch.pi * x[:, :1]) + x[:, 1:].square()).exp()


def trained() -> tuple[KAN, Tensor]:
    net = KAN([2, 1, 1], 10, dtype=torch.float64)
    x = torch.rand(1000, 2, dtype=torch.float64) * 2 - 1
    fit(net, (x, target(x)), steps=20)
    return net, x


def test_unfix_brings_the_spline_back() -> None:
    """The layer is what it was: values, keys, and the mask that was there before."""
    for mask in (None, torch.tensor([[1, 0, 1]] * 4)):
        layer = KANLinear(4, 3, dtype=torch.float64)
        layer.set_edge_mask(mask)
        x = torch.randn(9, 4, dtype=torch.float64)
        before, keys = layer(x), layer.state_dict().keys()
        symbolic.fix(layer, 2, 1, "sin", params=AFFINE)
        symbolic.fix(layer, 0, 0, "x", params=AFFINE)
        symbolic.fix(layer, 0, 0, "exp", params=AFFINE)  # once more: the mask of before the first is kept
        assert len(layer.symbolic.names) == 2 and not torch.equal(layer(x), before)
        symbolic.unfix(layer, 0, 0)
        symbolic.unfix(layer, 2, 1)
        assert layer.symbolic is None and layer.state_dict().keys() == keys
        assert torch.equal(layer(x), before)


def test_fix_keeps_trained_parameters_of_others() -> None:
    """Fixing one edge more leaves the values of those before, in whatever order the functions sort."""
    layer = layer_with_formulas()
    with torch.no_grad():
        layer.symbolic.affine.copy_(torch.randn(5, 4))
    before = {edge[:3]: edge.affine for edge in layer.symbolic.edges()}
    symbolic.fix(layer, 1, 1, "abs", params=AFFINE)
    after = {edge[:3]: edge.affine for edge in layer.symbolic.edges()}
    assert after.pop((1, 1, "abs")) == AFFINE and after == before


def test_fix_fits_what_the_edge_computes(backend: str) -> None:
    """A spline that is a parabola becomes that parabola; without x the grid's range is sampled."""
    layer = KANLinear(2, 2, 8, dtype=torch.float64, base="identity", backend=backend, device=DEVICE)
    with torch.no_grad():  # Marsden: coefficient of x^2 is the mean product of pairs of inner knots
        t = layer.grid[0]
        inner = torch.stack([t[1:-3], t[2:-2], t[3:-1]])
        parabola = (inner[0] * inner[1] + inner[0] * inner[2] + inner[1] * inner[2]) / 3
        layer.spline_weight[0, :, 1] = 2 * parabola
        layer.base_weight[0, 1] = 0.6
    x = torch.rand(200, 2, dtype=torch.float64, device=DEVICE) * 2 - 1
    for data in (x, x.reshape(2, 100, 2), None):
        fitted = copy.deepcopy(layer)
        best = symbolic.fix(fitted, 0, 1, "x^2", data)
        assert best.r2 == pytest.approx(1, abs=1e-13)
        assert best.affine == pytest.approx((1.0, 0.15, 2.0, -0.045), abs=1e-9)
        torch.testing.assert_close(fitted(x), layer(x), rtol=0, atol=1e-9)
        top = symbolic.suggest(layer, 0, 1, data, top=3)
        assert len(top) == 3 and top[0].name == "x^2"
        scores = [candidate.score for candidate in top]
        assert scores == pytest.approx(sorted(scores), abs=1e-6)


def test_suggest_on_a_fixed_edge_sees_the_formula() -> None:
    """What the edge computes now, not the spline underneath."""
    layer = layer_with_formulas()
    top = symbolic.suggest(layer, 0, 0, torch.randn(100, 4, dtype=torch.float64), library=["x", "cos", "sin"])
    assert top[0].name == "sin" and top[0].affine == pytest.approx(AFFINE, abs=1e-9)


def test_auto_finds_the_exact_formula() -> None:
    """The paper's exp(sin(pi x) + y^2): splines, auto, LBFGS or polish, and the test error is rounding."""
    net, x = trained()
    report = symbolic.auto(net, x)
    assert [(edge.layer, edge.input, edge.best.name) for edge in report.fixed] == [
        (0, 0, "sin"), (0, 1, "x^2"), (1, 0, "exp"),
    ]  # fmt: skip
    assert report.left == () and "3 of 3 edges fixed" in str(report)
    test = torch.rand(1000, 2, dtype=torch.float64) * 2 - 1
    for tolerance in (1e-8, 1e-13):
        refined = copy.deepcopy(net)
        if tolerance == 1e-8:
            fit(refined, (x, target(x)), steps=60)
        else:
            symbolic.polish(refined, x, target(x))
        error = (refined(test) - target(test)).detach().square().mean().sqrt()
        assert float(error) < tolerance


@pytest.fixture
def holes() -> Any:
    """sqrt((z - 1)^2 - 0.04), NaN within 0.2 of z = 1, registered without saying so."""
    symbolic.register("holes", lambda z: ((z - 1).square() - 0.04).sqrt(), lambda z: z)
    yield
    del library._library["holes"]


def drawn(layer: KANLinear, x: Tensor, y: Tensor) -> None:
    """The only edge of a layer without a base through y (n,) at x (n, 1): least squares."""
    basis = functional.bspline_basis(x, layer.grid, layer.spline_order)[:, 0]
    with torch.no_grad():
        layer.spline_weight[0, :, 0] = torch.linalg.lstsq(basis, y[:, None], driver="gelsd").solution[:, 0]


def test_auto_looks_at_every_row(holes: None) -> None:
    """A row that the fit's quantiles skip, where the best formula is NaN: the next one is taken."""
    layer = KANLinear(1, 1, 20, base=None, dtype=torch.float64)
    side = torch.linspace(0.3, 1, 3000, dtype=torch.float64)[:, None]
    x = torch.cat([-side, side])
    drawn(layer, x, (x[:, 0].square() - 0.04).sqrt())
    with_hole = torch.cat([x, torch.zeros(1, 1, dtype=torch.float64)])
    assert not (samples(with_hole, FINE) == 0).any(), "the fit would see the row"
    names = ["holes", "x^2", "abs", "x"]
    for data, best, order in ((x, "holes", 0), (with_hole, "abs", -1)):
        fitted = copy.deepcopy(layer)
        assert symbolic.suggest(fitted, 0, 0, data, library=names)[order].name == "holes"
        report = symbolic.auto(fitted, data, library=names)
        assert [edge.best.name for edge in report.fixed] == [best] and not report.left
        assert fitted(data).isfinite().all()
    with pytest.raises(ValueError, match="no fit of 'holes' is finite on x"):
        symbolic.fix(layer, 0, 0, "holes", with_hole)
    fitted = copy.deepcopy(layer)
    report = symbolic.auto(fitted, with_hole, library=["holes"])
    assert not report.fixed and [edge.best.name for edge in report.left] == ["holes"]
    assert fitted.symbolic is None and torch.equal(fitted(with_hole), layer(with_hole))


def test_auto_looks_at_what_the_formulas_below_send() -> None:
    """The second layer's square root ends where its data did, and a formula below moves the data past it."""
    net = KAN([1, 1, 1], 20, base=None, dtype=torch.float64)
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    drawn(net.layers[0], x, 0.9 * x[:, 0] - 0.05 * torch.sin(9 * x[:, 0]))
    between = net.layers[0](x).detach()
    drawn(net.layers[1], between, (between[:, 0] - between.min()).sqrt())
    apart = copy.deepcopy(net.layers[1])
    names = ["x", "sqrt", "x^2"]
    assert symbolic.auto(apart, between, library=names).fixed[0].best.name == "sqrt"
    report = symbolic.auto(net, x, library=names)
    assert [edge.best.name for edge in report.fixed] == ["x", "x^2"]
    assert net(x).isfinite().all()


def test_polish() -> None:
    """From perturbed parameters back to the data; splines stay; never worse than before; float32 too."""
    layer = layer_with_formulas(bias=True)
    x = torch.rand(2, 150, 4, dtype=torch.float64)
    y, spline = layer(x).detach(), layer.spline_weight.detach().clone()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            other.symbolic.affine.add_(0.1 * torch.randn(5, 4))
            other.bias.add_(1.0)
        other.to(dtype)
        error = symbolic.polish(other, x.to(dtype), y.to(dtype))
        assert error < tolerance
        assert error == pytest.approx(
            float((other(x.to(dtype)) - y).detach().square().mean().sqrt()), abs=1e-7
        )
        assert torch.equal(other.spline_weight, spline.to(dtype))
    start = float((other(x.float()) - 1).detach().square().mean().sqrt())
    assert symbolic.polish(other, x, torch.ones_like(y), steps=3) < start
    log = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(log, 0, 0, "log", params=(1.0, 0.01, 1.0, 0.0))
    assert symbolic.polish(log, x[..., :1], x[..., :1].sqrt()) < 0.3, "steps out of the domain are not taken"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_polish_of_sixteen_bits(dtype: torch.dtype) -> None:
    """Beside 16-bit weights x stays in float32, with a bias too, which is of 16 bits."""
    x = torch.rand(400, 1) * 20 + 100
    for bias in (False, True):
        layer = KANLinear(1, 1, bias=bias, dtype=dtype, grid_range=(100, 120))
        symbolic.fix(layer, 0, 0, "sin", params=(1, 0, 1, 0))
        error = symbolic.polish(layer, x, x.sin())
        assert error < 1e-3
        left = (layer(x).float() - x.sin()).square().mean().sqrt()
        assert error == pytest.approx(float(left), rel=1e-2)


def test_polish_under_other_losses() -> None:
    """Cross entropy to the minimum that LBFGS finds too; a differential equation by its residual alone."""
    x = torch.rand(300, 1, dtype=torch.float64) * 2 - 1
    label = (x[:, 0] + 0.5 * torch.randn(300, dtype=torch.float64) > 0).long()
    layer = KANLinear(1, 2, dtype=torch.float64)
    for o in range(2):
        symbolic.fix(layer, 0, o, "x", params=(1.0, 0.0, 0.1 * o, 0.0))
    entropy = torch.nn.functional.cross_entropy
    other = copy.deepcopy(layer)
    left = symbolic.polish(layer, x, label, loss=entropy)
    assert left == pytest.approx(float(entropy(layer(x), label).detach()), rel=1e-12)
    fit(other, (x, label), steps=20, loss=entropy)
    assert left <= float(entropy(other(x), label).detach()) + 1e-7

    wave = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(wave, 0, 0, "sin", params=(1.3, 0.2, 0.7, 0.1))

    def oscillator(model: torch.nn.Module, x: Tensor) -> Tensor:
        """u'' + 4 u = 0, u(0) = 0, u'(0) = 2, whose solution is sin 2x."""
        x = torch.cat([x, torch.zeros(1, 1, dtype=x.dtype)]).requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return torch.cat([(bend + 4 * u)[:-1, 0], u[-1], slope[-1] - 2])

    assert symbolic.polish(wave, x, residual=oscillator) < 1e-10
    assert float((wave(x) - torch.sin(2 * x)).detach().abs().max()) < 1e-9
    before = [p.detach().clone() for p in wave.parameters()]

    def breaks(model: torch.nn.Module, x: Tensor) -> Tensor:
        if calls.append(1) or len(calls) > 2:
            raise RuntimeError("broken")
        return model(x) - x

    calls: list[int] = []
    with pytest.raises(RuntimeError, match="broken"):
        symbolic.polish(wave, x, residual=breaks)
    assert all(torch.equal(p, q) for p, q in zip(wave.parameters(), before, strict=True))


def test_fits_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain narrower than the rounding of a x + b gives a constant; a function of NaN is refused."""
    layer = KANLinear(1, 1, dtype=torch.float32)
    x = 1e6 + torch.linspace(0, 0.1, 64).unsqueeze(1)
    symbolic.fix(layer, 0, 0, "arctanh", x)
    assert layer(x).isfinite().all() and layer.symbolic.affine.isfinite().all()
    monkeypatch.setattr(library, "_library", dict(library._library))
    symbolic.register("nowhere", lambda z: torch.where(z == 0, z, z * torch.nan), lambda z: z)
    layer = KANLinear(1, 1, dtype=torch.float64)
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    (candidate,) = symbolic.suggest(layer, 0, 0, x, library=["nowhere"])
    mean = float(layer(x).detach().mean())
    assert candidate.r2 == 0 and candidate.affine[2:] == (0.0, pytest.approx(mean, rel=1e-12))
    with pytest.raises(ValueError, match="name: no fit of 'nowhere' is finite on x"):
        symbolic.fix(layer, 0, 0, "nowhere", x)
    assert layer.symbolic is None and layer.edge_mask is None


def test_polish_of_what_is_not_finite() -> None:
    """Outputs, or derivatives alone (sqrt at 0): an error, and the formulas as they were."""
    for name, x, match in (("log", -1.0, "outputs are not finite"), ("sqrt", 0.0, "derivatives of its")):
        layer = KANLinear(1, 1, dtype=torch.float64)
        symbolic.fix(layer, 0, 0, name, params=(1.0, 0.0, 1.0, 0.0))
        points = torch.tensor([[x], [1.0]], dtype=torch.float64)
        with pytest.raises(ValueError, match=f"model: (its|the) {match}"):
            symbolic.polish(layer, points, torch.ones_like(points))
        assert layer.symbolic.affine.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_auto_leaves_what_it_cannot_name() -> None:
    """Edges below the threshold stay splines and are reported; edges that are off are not looked at."""
    net = KAN([2, 2, 1], 30, dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].spline_weight[0, :, 0] = torch.randn(33)  # noise is no function
        net.layers[0].spline_weight[0, :, 1] = 0.0
        net.layers[0].base_weight[0, 1] = 1.0
    net.layers[0].set_edge_mask(torch.tensor([[1, 1], [0, 0]]))
    x = torch.rand(300, 2, dtype=torch.float64) * 2 - 1
    report = symbolic.auto(net, x, r2_threshold=0.995)
    seen = {(edge.layer, edge.input, edge.output): edge for edge in report.edges}
    assert set(seen) == {(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)}
    assert not seen[0, 0, 0].fixed and seen[0, 0, 0].best.r2 < 0.995 and seen[0, 0, 1].fixed
    assert torch.equal(net.layers[0].edge_mask, torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())
    again = symbolic.auto(net, x, r2_threshold=0.0, library=["x"])
    assert (0, 0, 0) in {(edge.layer, edge.input, edge.output) for edge in again.fixed}
    assert not symbolic.auto(net, x).edges, "nothing is left"


def test_auto_takes_nothing_that_explains_nothing() -> None:
    """At the threshold 0 too: neither a line for an even curve nor the constant for any that varies."""
    layer = KANLinear(1, 2, 8, base="identity", dtype=torch.float64)
    t = layer.grid[0]
    with torch.no_grad():  # x^2 by Marsden's identity, and x
        inner = torch.stack([t[1:-3], t[2:-2], t[3:-1]])
        layer.spline_weight.zero_()
        layer.spline_weight[0, :, 0] = (inner * inner.roll(1, 0)).mean(0)
        layer.base_weight.copy_(torch.tensor([[0.0, 1.0]]))
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).unsqueeze(1)
    report = symbolic.auto(layer, x, library=["x", "0"], r2_threshold=0)
    assert [(edge.output, edge.best.name) for edge in report.fixed] == [(1, "x")]
    assert [edge.output for edge in report.left] == [0] and report.left[0].best.r2 < 1e-9


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's function is fitted, fixed, saved under its name; taken names and bad functions are refused."""
    monkeypatch.setattr(library, "_library", dict(library._library))
    symbolic.register("softplus", torch.nn.functional.softplus, lambda z: z, complexity=3)
    layer = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "softplus", params=(6.0, 1.0, 0.5, 0.1))
    best = symbolic.suggest(layer, 0, 0, torch.linspace(-1, 1, 100)[:, None].double(), top=1)[0]
    assert best.name == "softplus" and best.affine == pytest.approx((6.0, 1.0, 0.5, 0.1), abs=1e-6)
    other = pickle.loads(pickle.dumps(layer))
    assert other.symbolic.names == ["softplus"]
    bad: list[tuple[tuple, dict, type, str]] = [
        (("sin", torch.sin, abs), {}, ValueError, "'sin' is taken"),
        (("", torch.sin, abs), {}, TypeError, "name: got ''"),
        (("f", 3, abs), {}, TypeError, "torch_fn: got 3"),
        (("f", lambda z: z[0], abs), {}, TypeError, "torch_fn: expected a tensor like its argument"),
        (("f", lambda z: z.detach(), abs), {}, ValueError, "differentiably"),
        (("f", torch.log, abs), {"domain": (-2, -1)}, ValueError, "not finite"),
        (("f", torch.log, abs), {"domain": (1, 1)}, ValueError, "low < high"),
        (("f", torch.exp, abs), {"complexity": -1}, ValueError, "complexity: got -1"),
        (("f", torch.exp, abs), {"parity": 2}, ValueError, "parity: got 2"),
    ]
    for args, options, error, text in bad:
        with pytest.raises(error, match=text):
            symbolic.register(*args, **options)
    assert "f" not in symbolic.names()


# fmt: on


NAN = torch.tensor([[0.0, torch.nan]])
# fmt: off
ERRORS: list[tuple[Any, type, str]] = [
    (lambda m, x: symbolic.fix(m.layers[0], 2, 0, "sin", x),
     ValueError, r"i: got 2, expected an int in 0\.\.1"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, -1, "sin", x), ValueError, "o: got -1"),
    (lambda m, x: symbolic.fix(m.layers[0], 0.0, 0, "sin", x), TypeError, "i: got 0.0"),
    (lambda m, x: symbolic.fix(m, 0, 0, "sin", x), TypeError, "layer: got KAN, expected a KANLinear"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sine", x),
     ValueError, "unknown function 'sine'; did you mean 'sin'"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, 3, x), TypeError, "name: got 3"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", x[:, :1]), ValueError, r"x: got shape \(20, 1\)"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", x[:0]), ValueError, "x: got no samples"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", NAN),
     ValueError, "x: sample 0 of feature 1 is not finite"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", x.long()), TypeError, "x: got torch.int64"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", params=(1, 2, 3)),
     TypeError, "params: got .*four finite numbers"),
    (lambda m, x: symbolic.fix(m.layers[0], 0, 0, "sin", params=(1, 2, 3, torch.inf)),
     ValueError, "params: got"),
    (lambda m, x: symbolic.unfix(m.layers[0], 0, 0), ValueError, "edge 0 -> 0 has no formula"),
    (lambda m, x: symbolic.suggest(m.layers[0], 0, 0, x, top=0), ValueError, "top: got 0"),
    (lambda m, x: symbolic.suggest(m.layers[0], 0, 0, x, library=[]), ValueError, "library: is empty"),
    (lambda m, x: symbolic.suggest(m.layers[0], 0, 0, x, library="sin"), TypeError, "library: got 'sin'"),
    (lambda m, x: symbolic.suggest(m.layers[0], 0, 0, x, complexity_weight=2),
     ValueError, "complexity_weight: got 2"),
    (lambda m, x: symbolic.auto(m, x, library=["sin", "foo"]), ValueError, "unknown function 'foo'"),
    (lambda m, x: symbolic.auto(m, x, r2_threshold=1.5), ValueError, "r2_threshold: got 1.5"),
    (lambda m, x: symbolic.auto(m, x, r2_threshold=-1), ValueError, "r2_threshold: got -1"),
    (lambda m, x: symbolic.auto(m, x, r2_threshold=torch.nan), ValueError, "r2_threshold: got nan"),
    (lambda m, x: symbolic.auto(m, NAN), ValueError, "x: sample 0 of feature 1 is not finite"),
    (lambda m, x: symbolic.auto(torch.nn.Linear(2, 2), x),
     TypeError, "model: got Linear, expected a KAN or a KANLinear"),
    (lambda m, x: symbolic.polish(m, x, x[:, :1]), ValueError, "no edge has a formula"),
    (lambda m, x: symbolic.polish(m, x), ValueError, "y: got None"),
    (lambda m, x: symbolic.polish(m, x, x, residual=lambda m, x: x), ValueError, "residual: got it beside y"),
    (lambda m, x: symbolic.polish(m, x, x, loss=3), TypeError, "loss: got 3"),
    (lambda m, x: symbolic.auto(m, x, loss=torch.nn.functional.l1_loss), ValueError, "y: got None"),
    (lambda m, x: symbolic.auto(m, x, x[:, :1], worsening=0.5), ValueError, "worsening: got 0.5"),
    (lambda m, x: symbolic.polish(m, x, x),
     ValueError, r"y: got \(20, 2\) rows and columns, expected \(20, 1\)"),
    (lambda m, x: symbolic.SymbolicEdges(2, 2, []), ValueError, "edges: got none"),
    (lambda m, x: symbolic.SymbolicEdges(2, 2, [Edge(0, 2, "x", AFFINE)]),
     ValueError, "edges: output: got 2"),
    (lambda m, x: symbolic.SymbolicEdges(2, 2, [Edge(0, 1, "x", AFFINE)] * 2), ValueError, "appears twice"),
    (lambda m, x: m.layers[0].set_symbolic(3), TypeError, "edges: got int"),
    (lambda m, x: m.layers[0].set_symbolic(layer_with_formulas().symbolic),
     ValueError, "edges: got 4 inputs"),
]
# fmt: on


@pytest.mark.parametrize("call,error,text", ERRORS, ids=[text for _, _, text in ERRORS])
def test_errors_name_the_argument(call: Any, error: type, text: str) -> None:
    """And leave the model as it was."""
    net = KAN([2, 3, 1])
    x = torch.rand(20, 2)
    before, keys = net(x), list(net.state_dict())
    with pytest.raises(error, match=text):
        call(net, x)
    assert torch.equal(net(x), before) and list(net.state_dict()) == keys
