"""Scores and pruning of networks with multiplication nodes; penalties and grids behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kan_kernels import KAN
from kan_kernels.grids import refine, update_grid
from kan_kernels.pruning import edge_scores, node_scores, prune, prune_inputs
from kan_kernels.regularization import regularization
from kan_kernels.symbolic import fix

F64 = torch.float64
EDGES = [(0, 0, "x"), (1, 1, "x"), (1, 2, "x^2"), (0, 3, "0"), (1, 4, "x")]


def network(bias: bool = False) -> tuple[KAN, Tensor]:
    """Sums x_0, products x_1 x_1^2 and 2 x_1; the output is the sum of all three."""
    torch.manual_seed(0)
    net = KAN([2, (1, 2), 1], bias=bias, dtype=F64)
    for n, layer in enumerate(net.layers):
        layer.set_edge_mask(torch.zeros(layer.in_features, layer.out_features))
        for i, o, name in EDGES if n == 0 else [(i, 0, "x") for i in range(3)]:
            fix(layer, i, o, name, params=(1.0, 0.0, 1.0, 2.0 if name == "0" else 0.0))
    return net, torch.rand(500, 2, dtype=F64) * 2 - 1


def test_products_hand_their_score_to_each_factor() -> None:
    net, x = network()
    assert torch.allclose(net(x), x[:, :1] + x[:, 1:] ** 3 + 2 * x[:, 1:])
    nodes, edges = (f(net, x, kind="attribution") for f in (node_scores, edge_scores))
    own = torch.stack([x[:, 0], x[:, 1] ** 3, 2 * x[:, 1]], 1).std(0) / net(x).std()
    torch.testing.assert_close(nodes[1], own)
    # the only edge to a factor has all of its score; a constant has none
    wanted = torch.zeros(2, 5, dtype=F64)
    wanted[[0, 1, 1, 1], [0, 1, 2, 4]] = own[[0, 1, 1, 2]]
    torch.testing.assert_close(edges[0], wanted)
    torch.testing.assert_close(nodes[0], wanted.sum(1))


def test_a_product_is_worth_its_weakest_factor() -> None:
    net, x = network(bias=True)
    size = [float(v.abs().mean()) for v in (x[:, 0], x[:, 1], x[:, 1] ** 2)]
    out = [float(v.abs().mean()) for v in (x[:, 0], x[:, 1] ** 3, 2 * x[:, 1])]
    incoming = [size[0], min(size[1], size[2]), min(2.0, size[1])]
    wanted = torch.tensor([min(a, b) for a, b in zip(incoming, out, strict=True)], dtype=F64)
    torch.testing.assert_close(node_scores(net, x)[1], wanted)
    with torch.no_grad():
        net.layers[0].symbolic.affine.zero_()  # nothing is left of any edge
        net.layers[0].bias.fill_(7.0)
    assert not node_scores(net, x)[1].any()


def test_pruning_keeps_the_function() -> None:
    net, x = network()
    with torch.no_grad():
        net.layers[0].set_edge_mask(torch.ones(2, 5))  # no splines: every edge has a formula, or dies below
    for i, o in ((1, 0), (0, 1), (0, 2), (1, 3), (0, 4)):
        fix(net.layers[0], i, o, "x", params=(1.0, 0.0, 1e-9, 0.0))
    small, report = prune(net, x, node_threshold=1e-3, edge_threshold=1e-3)
    assert report.widths == ([2, (1, 2), 1], [2, (1, 2), 1])
    assert sorted(d.index for d in report.edges) == [(0, 1), (0, 2), (0, 4), (1, 0), (1, 3)]
    assert report.max_change < 1e-8
    assert torch.allclose(small(x), net(x), atol=1e-8)


def test_a_product_without_a_factor_goes() -> None:
    net, x = network()
    with torch.no_grad():
        net.layers[0].symbolic.affine[
            [e[:3] for e in net.layers[0].symbolic.edges()].index((1, 2, "x^2"))
        ] = 0.0
    small, report = prune(net, x, node_threshold=1e-3, edge_threshold=1e-3)
    assert report.widths == ([2, (1, 2), 1], [2, (1, 1), 1])
    assert report.kept == [[0, 1], [0, 2], [0]]
    assert [p.arities for p in small.products] == [(2,), ()]
    assert report.max_change < 1e-12 and torch.allclose(small(x), x[:, :1] + 2 * x[:, 1:])


def test_no_product_is_left() -> None:
    net, x = network()
    with torch.no_grad():
        for edge, affine in zip(net.layers[0].symbolic.edges(), net.layers[0].symbolic.affine, strict=True):
            affine.mul_(0.0 if edge.output > 0 else 1.0)
    small, report = prune(net, x)
    assert report.widths == ([2, (1, 2), 1], [2, 1, 1])
    assert small.products is None
    torch.testing.assert_close(small(x), net(x))


@pytest.mark.parametrize("keep_means", [False, True])
def test_a_factor_that_loses_its_edges_is_its_mean(keep_means: bool) -> None:
    """A constant edge has no attribution; without its mean the product would be 0."""
    net, x = network()
    small, report = prune(net, x, kind="attribution", keep_means=keep_means)
    assert (0, 3) in [d.index for d in report.edges]
    torch.testing.assert_close(small.layers[0].bias[3].item(), 2.0)
    torch.testing.assert_close(small(x), net(x))
    assert keep_means or small.layers[0].bias[[0, 1, 2, 4]].count_nonzero() == 0
    less, report = prune_inputs(net, x, keep=[1])
    assert report.widths == ([2, (1, 2), 1], [1, (1, 2), 1])
    torch.testing.assert_close(less(x[:, 1:]), net(x) - x[:, :1])


def test_grids_follow_the_products() -> None:
    torch.manual_seed(0)
    net = KAN([2, (1, 1), 1], dtype=F64, grid_size=4)
    x = torch.rand(800, 2, dtype=F64) * 4 - 2
    read = net.products[0](net.layers[0](x))
    y = net(x)
    update_grid(net, x, margin=0)
    ends = net.layers[1].grid[:, [3, -4]]
    torch.testing.assert_close(ends, torch.stack([read.amin(0), read.amax(0)], 1), rtol=1e-2, atol=1e-2)
    assert (net(x) - y).square().mean().sqrt() < 0.3 * y.std()
    y = net(x)
    refine(net, 8)
    torch.testing.assert_close(net(x), y)
    refine(net, 11, x)
    assert (net(x) - y).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["l1", "std", "std_normalized", "coefficient"])
def test_penalties_see_the_products(kind: str) -> None:
    torch.manual_seed(0)
    net, x = KAN([2, (1, 2), 1], dtype=F64), torch.rand(60, 2, dtype=F64)
    first, second = net.layers
    total = regularization(net, x, kind=kind)
    apart = regularization(first, x, kind=kind) + regularization(second, net.products[0](first(x)), kind=kind)
    torch.testing.assert_close(total, apart)
    got = torch.autograd.grad(total, first.spline_weight, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(apart, first.spline_weight))
