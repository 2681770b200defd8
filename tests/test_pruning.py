"""Scores are the paper's and pykan's formulas; a pruned KAN is the old one without what went."""

from __future__ import annotations

import copy
import io
import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
from harness import DEVICE
from kan_kernels import KAN, KANLinear
from kan_kernels.pruning import edge_scores, input_scores, node_scores, prune, prune_inputs
from kan_kernels.symbolic import Edge, SymbolicEdges

F64 = torch.float64


def make(widths: list[int], **options: Any) -> KAN:
    return KAN(widths, **{"dtype": F64, "device": DEVICE, **options})


def data(features: int, samples: int = 200, dtype: torch.dtype = F64) -> Tensor:
    return torch.rand(samples, features, dtype=dtype, device=DEVICE) * 2 - 1


def dense(layer: KANLinear, x: Tensor) -> Tensor:
    """phi[i,o](x[b,i]) by the oracle, (B, in, out) float64, masked."""
    basis = oracle.basis(x.double().cpu(), layer.grid.double().cpu(), layer.spline_order)
    phi = torch.einsum("bir,iro->bio", basis, layer.spline_weight.detach().double().cpu())
    if layer.base_weight is not None:
        base = oracle.base(x.double().cpu(), {"silu": 1, "identity": 2}[layer.base], 0)
        phi = phi + base.unsqueeze(2) * layer.base_weight.detach().double().cpu()
    return phi if layer.edge_mask is None else phi * layer.edge_mask.double().cpu()


def zero(layer: KANLinear, edge: tuple[Any, Any], factor: float = 0.0) -> None:
    with torch.no_grad():
        layer.spline_weight[edge[0], :, edge[1]] *= factor
        layer.base_weight[edge] *= factor


@pytest.mark.parametrize("dtype", (torch.float32, F64), ids=str)
def test_edge_scores(dtype: torch.dtype) -> None:
    """Eq. 2.17 on the data as it arrives at every layer, in chunks that do not matter."""
    net, x = make([3, 4, 2], dtype=dtype), data(3, dtype=dtype)
    net.layers[1].set_edge_mask(torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1]]))
    scores = edge_scores(net, x)
    at = x
    for layer, score in zip(net.layers, scores, strict=True):
        assert score.dtype == F64
        want = dense(layer, at).abs().mean(0)
        torch.testing.assert_close(score.cpu(), want, rtol=1e-5 if dtype != F64 else 1e-12, atol=1e-7)
        at = layer(at).detach()
    assert scores[1][0, 1] == 0


def test_small_deviations() -> None:
    """Deviations far below the mean are not lost."""
    layer = KANLinear(40, 60, 4, 2, dtype=F64, device=DEVICE)
    with torch.no_grad():
        layer.base_weight += 100.0  # the mean is far larger than the deviation
    x = data(40, 2500) * 1e-3 + 0.5
    phi = dense(layer, x)
    torch.testing.assert_close(edge_scores(layer, x)[0].cpu(), phi.abs().mean(0), rtol=1e-12, atol=0)
    deviation = phi.std(0, correction=0)
    own = phi.sum(1).std(0, correction=0)
    torch.testing.assert_close(
        edge_scores(layer, x, kind="attribution")[0].cpu(), deviation / own / 60, rtol=1e-4, atol=0
    )


def test_node_scores_are_the_papers() -> None:
    """Eq. 2.21: the smaller of the largest incoming and the largest outgoing score."""
    net, x = make([3, 4, 5, 2]), data(3)
    edges, nodes = edge_scores(net, x), node_scores(net, x)
    assert [len(n) for n in nodes] == [3, 4, 5, 2]
    for layer in (1, 2):
        for j in range(len(nodes[layer])):
            want = min(edges[layer - 1][:, j].max(), edges[layer][j].max())
            assert nodes[layer][j] == want
    assert torch.equal(nodes[0], edges[0].amax(1)) and torch.equal(nodes[3], edges[2].amax(0))
    assert torch.equal(input_scores(net, x, kind="l1"), nodes[0])


def test_attribution_is_pykans() -> None:
    """Scores handed down from the outputs by ratios of standard deviations, written out in loops."""
    net, x = make([3, 4, 2]), data(3)
    hidden, out = net.layers[0](x).detach(), net(x).detach()
    score_out = torch.full((2,), 0.5, dtype=F64)
    wanted, values, inputs = [], [out.cpu(), hidden.cpu()], [hidden, x]
    for layer, value, given in zip(reversed(net.layers), values, inputs, strict=True):
        deviation = dense(layer, given).std(0, correction=0)
        edge = torch.zeros_like(deviation)
        for i in range(edge.shape[0]):
            for o in range(edge.shape[1]):
                edge[i, o] = score_out[o] * deviation[i, o] / value[:, o].std(correction=0)
        wanted.insert(0, edge)
        score_out = edge.sum(1)
    for got, want in zip(edge_scores(net, x, kind="attribution"), wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(input_scores(net, x).cpu(), score_out, rtol=1e-10, atol=1e-12)


def test_attribution_sees_through_dead_paths() -> None:
    """An input that only reaches a node nobody listens to has a large L1 score but no attribution."""
    net, x = make([2, 2, 1]), data(2)
    for edge in ((0, 0), (1, 1)):
        zero(net.layers[0], edge)
    zero(net.layers[1], (0, 0))  # node 0 listens to input 1 only, and nobody listens to it
    scores = input_scores(net, x)
    assert scores[1] < 1e-12 and abs(scores[0] - 1) < 1e-9
    assert input_scores(net, x, kind="l1").min() > 1e-3


@pytest.mark.parametrize("bias", (False, True))
def test_what_is_zero_costs_nothing(bias: bool) -> None:
    """Dead nodes and edges go; the function, the weights and the gradients stay."""
    net, x = make([3, 5, 4, 2], bias=bias, grid_size=4, spline_order=2), data(3)
    with torch.no_grad():
        for layer in net.layers:
            layer.spline_weight *= 5
    zero(net.layers[0], (slice(None), 1))  # a node without input; of its outgoing edges nothing must be left
    zero(net.layers[1], (1, slice(None)))
    zero(net.layers[1], (slice(None), 3))  # without input, and silent
    zero(net.layers[2], (3, slice(None)))
    zero(net.layers[1], (0, 0))  # a single edge
    if bias:
        with torch.no_grad():
            net.layers[0].bias.copy_(torch.arange(5.0))
    before = copy.deepcopy(net.state_dict())
    small, report = prune(net, x, node_threshold=1e-6, edge_threshold=1e-6)
    assert {k: v.tolist() for k, v in net.state_dict().items()} == {k: v.tolist() for k, v in before.items()}
    assert [layer.in_features for layer in small.layers] == [3, 4, 3]
    assert report.widths == ([3, 5, 4, 2], [3, 4, 3, 2])
    assert report.kept == [[0, 1, 2], [0, 2, 3, 4], [0, 1, 2], [0, 1]]
    assert [(d.layer, d.index) for d in report.nodes] == [(1, (1,)), (2, (3,))]
    edge = next(d for d in report.edges if d.reason == "edge score")
    assert (edge.layer, edge.index, edge.score) == (1, (0, 0), 0.0)
    assert small.layers[1].edge_mask is not None and small.layers[0].edge_mask is None
    assert report.edges_left == sum(i * o for i, o in pairwise([3, 4, 3, 2])) - 1
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)
    assert report.max_change < 1e-12 and report.rms_change <= report.max_change
    small(x).square().sum().backward()
    net(x).square().sum().backward()
    kept = torch.tensor([0, 2, 3, 4], device=DEVICE)
    got, want = small.layers[0].spline_weight.grad, net.layers[0].spline_weight.grad
    assert got is not None and want is not None
    torch.testing.assert_close(got, want[:, :, kept], rtol=0, atol=1e-10)


@pytest.mark.parametrize("keep_means", (False, True))
def test_what_went_is_what_is_missing(keep_means: bool) -> None:
    """Outputs differ by exactly the functions of the dropped edges; with keep_means, by their variation."""
    net, x = make([3, 2]), data(3)
    zero(net.layers[0], (1, 0), 1e-3)
    zero(net.layers[0], (2, 1), 1e-3)
    small, report = prune(net, x, edge_threshold=5e-3, keep_means=keep_means)
    assert sorted(d.index for d in report.edges) == [(1, 0), (2, 1)]
    phi = dense(net.layers[0], x)
    missing = torch.stack([phi[:, 1, 0], phi[:, 2, 1]], dim=1)
    if keep_means:
        missing = missing - missing.mean(0)
    change = (net(x) - small(x)).detach().cpu()
    torch.testing.assert_close(change, missing, rtol=0, atol=1e-12)
    assert (small.layers[0].bias is not None) == keep_means
    assert abs(report.rms_change - change.square().mean().sqrt()) < 1e-12
    assert abs(report.max_change - change.abs().max()) < 1e-12


def test_unconnected_nodes_go() -> None:
    """A node all of whose edges are dropped goes, and so does the node that only led to it."""
    net, x = make([2, 3, 3, 1]), data(2)
    with torch.no_grad():
        for layer in net.layers:
            layer.spline_weight *= 10
    zero(net.layers[2], (1, 0), 1e-9)  # nothing leads away from node 1 of the second hidden layer
    zero(net.layers[1], (2, [0, 2]), 1e-9)  # node 2 of the first leads to that node only
    small, report = prune(net, x, node_threshold=0.0, edge_threshold=1e-6)
    assert {(d.layer, d.index[0], d.reason) for d in report.nodes} == {
        (2, 1, "unconnected"),
        (1, 2, "unconnected"),
    }
    assert [layer.in_features for layer in small.layers] == [2, 2, 2]
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-6)


def test_carries_everything_along() -> None:
    """Knots, masks, symbolic edges, frozen parameters, options and subclass go with the slices."""

    class Mine(KAN):
        pass

    net = Mine([3, 4, 2], 4, 2, base="identity", bias=True, dtype=F64, device=DEVICE)
    x = data(3)
    first, second = net.layers
    assert isinstance(first, KANLinear) and isinstance(second, KANLinear)
    with torch.no_grad():
        first.grid += 0.05 * torch.arange(3, device=DEVICE).unsqueeze(1)
        second.grid *= torch.tensor([1.0, 2.0, 3.0, 4.0], device=DEVICE).unsqueeze(1)
    mask = torch.ones(4, 2)
    mask[0, 1] = mask[3, 0] = 0
    second.set_edge_mask(mask)
    formulas = [Edge(0, 1, "sin", (2.0, 0.1, 0.7, 0.3)), Edge(3, 0, "exp", (1.0, 0.0, 1e-9, 0.0))]
    second.set_symbolic(SymbolicEdges(4, 2, formulas, dtype=F64, device=DEVICE))
    first.base_weight.requires_grad_(False)
    zero(first, (slice(None), 2))
    zero(second, (2, slice(None)))
    net.eval()
    small, report = prune(net, x, edge_threshold=1e-7, node_threshold=1e-7)
    assert type(small) is Mine and report.kept[1] == [0, 1, 3] and not small.training
    a, b = small.layers
    assert not a.base_weight.requires_grad and a.spline_weight.requires_grad
    assert torch.equal(a.grid, first.grid) and torch.equal(b.grid, second.grid[[0, 1, 3]])
    assert b.edge_mask.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert [(e.input, e.output, e.name) for e in b.symbolic.edges()] == [(0, 1, "sin")]
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-7)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    fresh = KAN([3, 3, 2], 4, 2, base="identity", bias=True, dtype=F64, device=DEVICE)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), small(x))


def test_symbolic_edges_count() -> None:
    """An edge with a formula is scored by its formula, and is active though its spline is masked."""
    layer = KANLinear(2, 1, dtype=F64, device=DEVICE)
    layer.set_edge_mask(torch.tensor([[1], [0]]))
    layer.set_symbolic(
        SymbolicEdges(2, 1, [Edge(1, 0, "sin", (1.0, 0.2, 3.0, 0.5))], dtype=F64, device=DEVICE)
    )
    x = data(2)
    want = (3.0 * torch.sin(x[:, 1] + 0.2) + 0.5).abs().mean()
    torch.testing.assert_close(edge_scores(layer, x)[0][1, 0], want, rtol=1e-12, atol=0)
    small, report = prune(layer, x, edge_threshold=float(want) * 0.99)
    assert isinstance(small, KANLinear) and report.edges_left == 1 and small.symbolic is not None
    torch.testing.assert_close(small(x)[:, 0], 3.0 * torch.sin(x[:, 1] + 0.2) + 0.5)


def test_a_spline_beside_its_formula() -> None:
    """An edge that has both is scored by their sum."""
    layer, x = KANLinear(2, 2, dtype=F64, device=DEVICE), data(2)
    layer.set_symbolic(
        SymbolicEdges(2, 2, [Edge(1, 0, "sin", (1.0, 0.2, -0.1, 0.0))], dtype=F64, device=DEVICE)
    )
    phi = dense(layer, x)
    phi[:, 1, 0] -= 0.1 * torch.sin(x[:, 1] + 0.2).cpu()
    torch.testing.assert_close(edge_scores(layer, x)[0].cpu(), phi.abs().mean(0), rtol=1e-12, atol=0)


def test_modes_are_kept() -> None:
    """A model in eval mode is pruned to one in eval mode, the list of its layers too."""
    net = KAN([2, 3, 1], dtype=F64, device=DEVICE).eval()
    small, _ = prune(net, data(2))
    assert not any(module.training for module in small.modules())


def test_prune_twice() -> None:
    """Edges that went before are not reported again; their masks hold through training."""
    net, x = make([2, 3, 1]), data(2)
    zero(net.layers[0], (0, 0), 1e-6)
    once, first = prune(net, x, edge_threshold=1e-4, node_threshold=0)
    optimizer = torch.optim.SGD(once.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        once(x).square().mean().backward()
        optimizer.step()
    twice, second = prune(once, x, edge_threshold=1e-4, node_threshold=0)
    assert len(first.edges) == 1 and second.edges == [] and second.nodes == []
    assert second.edges_left == first.edges_left == 8
    assert torch.equal(twice(x), once(x))


def test_prune_inputs() -> None:
    """Inputs without effect go; the rest is called with the columns that stay."""
    net, x = make([4, 3, 2]), data(4)
    for i in (0, 2):
        zero(net.layers[0], (i, slice(None)))
    small, report = prune_inputs(net, x, threshold=1e-9)
    assert report.kept[0] == [1, 3] and small.layers[0].in_features == 2
    torch.testing.assert_close(small(x[:, report.kept[0]]), net(x), rtol=0, atol=1e-12)
    chosen, report = prune_inputs(net, x, keep=[3], keep_means=True)
    assert report.kept[0] == [3] and report.nodes[0].index == (1,)
    means = chosen.layers[0](x[:, 3:]).mean(0) - net.layers[0](x).mean(0)
    assert means.abs().max() < 1e-12


def test_report_can_be_read() -> None:
    net, x = make([2, 30, 1]), data(2)
    zero(net.layers[1], (0, 0))
    _, report = prune(net, x, node_threshold=0, edge_threshold=1e-3)
    text = str(report)
    assert "[2, 30, 1] -> [2, " in text and len(text.splitlines()) < 25
    assert json.loads(json.dumps(report.to_dict()))["edges_left"] == report.edges_left
    scores = [d.score for d in report.edges]
    assert scores == sorted(scores, reverse=True)


def test_nothing_left() -> None:
    """Thresholds above everything: an error with the scores, and the model as it was."""
    net, x = make([2, 3, 1]), data(2)
    before = copy.deepcopy(net.state_dict())
    for thresholds in ({"edge_threshold": 1e3}, {"node_threshold": 1e3}):
        with pytest.raises(ValueError, match=r"pruning would leave layer \d without edges.*threshold="):
            prune(net, x, **thresholds)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match="no edge of any input would be left"):
        prune_inputs(net, x, threshold=10.0)


@pytest.mark.parametrize(
    "bad,error,match",
    [
        (lambda x: x[:0], ValueError, "x: got no samples"),
        (lambda x: x[:, :1], ValueError, r"x: got shape \(200, 1\), expected \(..., 2\)"),
        (lambda x: torch.where(x == x[3, 1], torch.nan, x), ValueError, "x: sample 3 of feature 1"),
        (lambda x: torch.where(x == x[5, 0], torch.inf, x), ValueError, "x: sample 5 of feature 0"),
        (lambda x: x.float(), TypeError, "x: got torch.float32, expected torch.float64"),
        (lambda x: x.tolist(), TypeError, "x: got list"),
    ],
    ids=["empty", "shape", "nan", "inf", "dtype", "list"],
)
def test_bad_data(bad: Any, error: type[Exception], match: str) -> None:
    net, x = make([2, 3, 1]), data(2)
    for call in (prune, edge_scores, input_scores, prune_inputs):
        with pytest.raises(error, match=match):
            call(net, bad(x))


def test_bad_arguments() -> None:
    net, x = make([2, 3, 1]), data(2)
    with pytest.raises(TypeError, match="model: got Linear"):
        prune(torch.nn.Linear(2, 1), x)
    with pytest.raises(ValueError, match="kind: got 'l2'"):
        prune(net, x, kind="l2")
    with pytest.raises(ValueError, match="edge_threshold: got -1"):
        prune(net, x, edge_threshold=-1)
    with pytest.raises(TypeError, match="node_threshold: got 'a'"):
        prune(net, x, node_threshold="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep: input: got 2"):
        prune_inputs(net, x, keep=[2])
    with pytest.raises(TypeError, match="keep: input: got True"):
        prune_inputs(net, x, keep=[True, False])  # a mask, which is no list of inputs
    with pytest.raises(ValueError, match="at least two"):
        prune(net, x[:1], kind="attribution")
    with torch.no_grad():
        net.layers[0].base_weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="a score of layer 0 is not finite"):
        prune(net, x)


def test_one_sample_and_leading_dimensions() -> None:
    """One sample is enough for L1; leading dimensions are samples."""
    net, x = make([2, 3, 1]), data(2)
    one = edge_scores(net, x[0])
    torch.testing.assert_close(one[0].cpu(), dense(net.layers[0], x[:1])[0].abs(), rtol=1e-12, atol=1e-15)
    for got, want in zip(edge_scores(net, x.view(4, 50, 2)), edge_scores(net, x), strict=True):
        assert torch.equal(got, want)


def test_scores_compute_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "l1" asks for no moments, "attribution" for no magnitudes."""
    from kan_kernels import functional

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("not needed")

    net, x = KAN([2, 3, 1], dtype=F64, device=DEVICE), torch.rand(50, 2, dtype=F64, device=DEVICE)
    for kind, other in (("l1", "edge_moments"), ("attribution", "edge_l1")):
        with monkeypatch.context() as patch:
            patch.setattr(functional, other, refuse)
            prune(net, x, kind=kind, edge_threshold=0.0, node_threshold=0.0)
