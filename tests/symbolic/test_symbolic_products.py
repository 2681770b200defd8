"""Formulas of networks with multiplication nodes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from kan_kernels import KAN, plotting, to_numpy_model
from kan_kernels.deploy import NumpyKAN
from kan_kernels.pruning import prune
from kan_kernels.symbolic import auto, fix, formula, latex, polish, to_function, to_python
from kan_kernels.training import fit

sympy = pytest.importorskip("sympy")
F64 = torch.float64


def made(affine: dict[int, tuple[float, float, float, float]] | None = None) -> KAN:
    """(x + 1)(y - 2) + 2 x - y + 2 = x y, by one sum and one product."""
    net = KAN([2, (1, 1), 1], dtype=F64)
    for layer in net.layers:
        layer.set_edge_mask(torch.zeros(layer.in_features, layer.out_features))
    fix(net.layers[0], 0, 0, "x", params=(1, 0, 2, 2))
    fix(net.layers[0], 1, 0, "x", params=(1, 0, -1, 0))
    fix(net.layers[0], 0, 1, "x", params=(1, 0, 1, 1))
    fix(net.layers[0], 1, 2, "x", params=(1, 0, 1, -2))
    for i in range(2):
        fix(net.layers[1], i, 0, "x", params=(1, 0, 1, 0))
    return net


def test_a_product_is_multiplied_out_where_that_is_shorter() -> None:
    net, x = made(), torch.rand(20, 2, dtype=F64)
    assert str(formula(net, ["x", "y"])[0]) == "x*y"
    assert latex(net, ["x", "y"]) == ["x y"]
    torch.testing.assert_close(net(x), x[:, :1] * x[:, 1:])
    namespace: dict[str, object] = {}
    exec(to_python(net, ["x", "y"]), namespace)
    assert namespace["kan"](3.0, 4.0) == 12.0
    assert to_function(net)(3.0, 4.0) == [12.0]
    fix(net.layers[1], 0, 0, "x", params=(1, 0, 0, 0))  # without the sum, nothing cancels
    a, b = sympy.symbols("x y")
    assert formula(net, ["x", "y"])[0] == (a + 1) * (b - 2)


def test_ragged_products_are_the_models() -> None:
    torch.manual_seed(0)
    net = KAN([3, (1, 2), (0, 1)], mult_arity=[[], [2, 3], [2]], dtype=F64)
    x = torch.rand(50, 3, dtype=F64) + 0.1
    names = ["x", "sin", "exp", "x^2"]
    for n, layer in enumerate(net.layers):
        layer.set_edge_mask(torch.zeros(layer.in_features, layer.out_features))
        for k in range(layer.in_features * layer.out_features):
            i, o = divmod(k, layer.out_features)
            fix(layer, i, o, names[(k + n) % 4], params=tuple((torch.rand(4) * 0.5).tolist()))
    (got,) = to_function(net)(*x.T.numpy())
    np.testing.assert_allclose(got, net(x)[:, 0].detach().numpy(), rtol=1e-10)


def test_auto_and_polish_behind_products() -> None:
    """Splines that were fitted to x y + sin 2z become formulas, on the data that reaches each layer."""
    net, x = made(), torch.rand(300, 2, dtype=F64) * 2 - 1
    with torch.no_grad():
        net.layers[0].symbolic.affine.add_(0.03 * torch.rand_like(net.layers[0].symbolic.affine))
    y = x[:, :1] * x[:, 1:]
    before = float((net(x) - y).square().mean().sqrt())
    assert before > 1e-3
    assert polish(net, x, y) < 1e-14
    assert sympy.expand(formula(net, ["x", "y"], digits=6)[0] - sympy.Symbol("x") * sympy.Symbol("y")) == 0
    torch.manual_seed(1)
    spline = KAN([2, (0, 1), 1], base="identity", dtype=F64)
    for layer, kept in zip(spline.layers, (torch.eye(2), torch.ones(1, 1)), strict=True):
        layer.spline_weight.data.zero_()
        layer.base_weight.data.fill_(1.0)
        layer.set_edge_mask(kept)
    report = auto(spline, x, library=["x", "sin"])
    assert [edge.best.name for edge in report.fixed] == ["x", "x", "x"]
    assert str(formula(spline, ["x", "y"], digits=6)[0]) == "x*y"


def test_without_torch(tmp_path) -> None:
    torch.manual_seed(0)
    for dtype, tolerance in ((F64, 1e-12), (torch.float32, 1e-5)):
        net = KAN([3, (1, 2), (2, 1)], mult_arity=[[], [2, 3], [2]], bias=True, dtype=dtype)
        x = torch.rand(50, 3, dtype=dtype)
        twin = to_numpy_model(net)
        assert repr(twin) == f"NumpyKAN([3, 3, 3], {str(dtype)[6:]})" and twin.out_features == 3
        wanted = net(x).detach().numpy()
        np.testing.assert_allclose(twin(x.numpy()), wanted, rtol=tolerance, atol=tolerance)
        twin.save(tmp_path / "kan.npz")
        for other in (NumpyKAN.load(tmp_path / "kan.npz"), copy.deepcopy(twin)):
            assert np.array_equal(other(x.numpy()), twin(x.numpy()))
        assert int(np.load(tmp_path / "kan.npz")["format"]) == 2  # no older reader takes it for plain layers
        to_numpy_model(KAN([3, 1])).save(tmp_path / "plain.npz")
        assert int(np.load(tmp_path / "plain.npz")["format"]) == 1


def test_a_picture_has_a_cross_for_each_product() -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    for widths, crosses, names in (([2, (1, 2), (0, 1), 2], 3, None), ([2, (2, 1)], 1, ["a", "b", "ab"])):
        net = KAN(widths)
        axes = plotting.plot(net, torch.rand(50, 2), outputs=names).axes[0]
        markers = [c for c in axes.collections if len(c.get_offsets()) == crosses and len(c.get_paths()) == 1]
        found = [c for c in markers if not c.get_paths()[0].codes.tolist().count(79)]  # open lines: a cross
        assert len(found) == 1 and found[0].get_zorder() == 6
        texts = [text.get_text() for text in axes.texts]
        assert all(name in texts for name in (names or ["$y_{1}$", "$y_{2}$"]))
    with pytest.raises(ValueError, match="outputs: got 4 names, expected 3 names"):
        plotting.plot(KAN([2, (2, 1)]), outputs=["a", "b", "c", "d"])


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 2, 4])
def test_a_product_is_found_in_data(seed: int) -> None:
    """The law of six inputs, two of them idle, read off a network: fit, prune, auto, polish, formula."""
    torch.manual_seed(seed)
    x = torch.rand(1000, 6, dtype=F64) * 2 - 1
    y = x[:, :1] ** 2 + torch.sin(math.pi * x[:, 1:2]) + x[:, 2:3] * x[:, 3:4]
    net = KAN([6, (3, 1), 1], grid_size=3, dtype=F64)
    fit(net, (x, y), steps=30, lamb=1e-2)
    for _ in range(2):
        net, _ = prune(net, x)
        fit(net, (x, y), steps=30)
    assert not auto(net, x, complexity_weight=0.8).left
    assert polish(net, x, y) < 1e-12
    assert str(formula(net, digits=3)[0]) == "x_1**2 + x_3*x_4 + sin(3.142*x_2)"
