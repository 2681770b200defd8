"""What takes a KAN gives right numbers, or a named error, on one with multiplication nodes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from c_programs import needs_cc, run
from kan_kernels import KAN, attribution, deploy, grids, growth, inspection, pruning, structure, symbolic
from kan_kernels.nn import SelectedInputs
from kan_kernels.training import fit

F64 = torch.float64
NETWORKS: list[dict[str, Any]] = [
    {"widths": [2, (1, 1), 1]},
    {"widths": [3, (2, 2), (0, 2), (1, 1)], "mult_arity": [[], [2, 3], [2, 2], [2]], "bias": True},
]


@pytest.fixture(params=NETWORKS, ids=["small", "ragged"])
def case(request: pytest.FixtureRequest) -> tuple[KAN, Tensor]:
    torch.manual_seed(0)
    net = KAN(**request.param, dtype=F64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.6)
    return net, torch.rand(50, net.layers[0].in_features, dtype=F64) * 2 - 1


def slowly(net: KAN, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Nodes of each row, what edges (n, in, out) give, outputs of layers; products in a loop."""
    nodes, edges, outputs = [x], [], []
    for n, layer in enumerate(net.layers):
        made = inspection.edge_values(layer, nodes[-1])
        y = made.sum(1) + (0 if layer.bias is None else layer.bias)
        edges.append(made)
        outputs.append(y)
        arities = [1] * y.shape[1]
        if net.products is not None:
            behind: Any = net.products[n]
            arities = [1] * behind.sums + list(behind.arities)
        columns = iter(y.unbind(1))
        nodes.append(
            torch.stack([torch.stack(list(itertools.islice(columns, a))).prod(0) for a in arities], 1)
        )
    return nodes, edges, outputs


def test_activations(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    nodes, edges, outputs = slowly(net, x)
    torch.testing.assert_close(net(x), nodes[-1])
    for n, got in enumerate(inspection.activations(net, x)):
        torch.testing.assert_close(tuple(got), (nodes[n], edges[n], outputs[n]))


def handed_down(net: KAN, x: Tensor, row: int, node: int) -> tuple[list[Tensor], list[list[float]]]:
    """Scores where one node has 1, by a loop over nodes and edges: a factor gets that of its product."""
    nodes, edges, outputs = slowly(net, x)
    scores: list[list[float]] = [[0.0] * part.shape[1] for part in nodes]
    scores[row][node] = 1.0
    found = [torch.zeros(part.shape[1:], dtype=F64) for part in edges]
    for n in range(row - 1, -1, -1):
        behind: Any = inspection.products_of(net)[n]
        owner = [j for j, group in enumerate(behind.groups()) for _ in group]
        for i, s in itertools.product(range(found[n].shape[0]), range(found[n].shape[1])):
            share = edges[n][:, i, s].std(correction=0) / outputs[n][:, s].std(correction=0)
            found[n][i, s] = share * scores[n + 1][owner[s]]
            scores[n][i] += float(found[n][i, s])
    return found, scores


def test_scores_of_one_node_and_interactions(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    fed = attribution.interactions(net, x, threshold=0.3)
    for row in range(1, len(net.layers) + 1):
        count = inspection.products_of(net)[row - 1].nodes
        assert len(fed[row - 1]) == count
        for node in range(count):
            edges, nodes = handed_down(net, x, row, node)
            target = {"kind": "attribution", "node": (row, node)}
            torch.testing.assert_close(attribution.edge_scores(net, x, **target), edges)
            got = attribution.node_scores(net, x, **target)
            assert [pytest.approx(part) for part in nodes] == [part.tolist() for part in got]
            assert fed[row - 1][node] == tuple(i for i, score in enumerate(nodes[0]) if score > 0.3)
        with pytest.raises(ValueError, match="node of row"):
            attribution.node_scores(net, x, kind="attribution", node=(row, count))
    last, y = len(net.layers), inspection.products_of(net)[-1].nodes
    torch.testing.assert_close(
        attribution.edge_scores(net, x, kind="attribution", output=y - 1), handed_down(net, x, last, y - 1)[0]
    )


def with_formulas(net: KAN) -> KAN:
    net = copy.deepcopy(net)
    for n, layer in enumerate(net.layers):
        for i, o in itertools.product(range(layer.in_features), range(layer.out_features)):
            symbolic.fix(layer, i, o, "x", params=(1.0 + 0.1 * i, 0.1 * o, 0.7, 0.2 * n))
    return net


def test_growth(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    masked = copy.deepcopy(net)
    for layer in masked.layers:
        layer.set_edge_mask((torch.rand(layer.in_features, layer.out_features) > 0.3).double())
    mixed = copy.deepcopy(masked)
    for layer in mixed.layers:
        symbolic.fix(layer, layer.in_features - 1, layer.out_features - 1, "sin", params=(1.0, 0.2, 0.5, 0.1))
    for model in (net, masked, mixed, with_formulas(net)):
        before, state = model(x), copy.deepcopy(model.state_dict())
        for row in range(1, len(model.layers)):
            wide = growth.expand_width(model, row, count=2)
            torch.testing.assert_close(wide(x), before)
            new, old = (inspection.products_of(m)[row - 1] for m in (wide, model))
            assert new.width == ((old.sums + 2, len(old.arities)) if old.arities else old.sums + 2)
            assert new.arities == old.arities
        for at in range(len(model.layers) + 1):
            deep = growth.expand_depth(model, at, x)
            torch.testing.assert_close(deep(x), before, rtol=0, atol=0)
            assert len(deep.layers) == len(model.layers) + 1 == len(inspection.products_of(deep))
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


@needs_cc
def test_c_of_splines(case: tuple[KAN, Tensor], tmp_path: Path) -> None:
    net, x = case
    x = torch.cat([x, 3 * x[:3], torch.full_like(x[:1], torch.nan)])
    y = net(x).detach()
    got = run(tmp_path, deploy.to_c(net), x.numpy(), y.shape[1])
    torch.testing.assert_close(torch.tensor(got), y, rtol=1e-11, atol=1e-11, equal_nan=True)
    with pytest.raises(ValueError, match=r"^table: .*multiplication nodes"):
        deploy.to_c(net, table=4)


@needs_cc
def test_c_of_formulas_and_units(case: tuple[KAN, Tensor], tmp_path: Path) -> None:
    net, x = case
    net = with_formulas(net)
    mean, std, low, high = 0.3, 2.0, -1.0, 4.0
    y = net((x - mean) / std).detach() * high + low
    units = {"normalizer": (mean, std), "output_normalizer": (low, high)}
    values = symbolic.to_function(net, **units)(*x.t().numpy())
    torch.testing.assert_close(torch.stack([torch.as_tensor(v) for v in values], 1), y)
    names = ", ".join(f"x[{i}]" for i in range(x.shape[1]))
    call = f"y[0] = kan({names})" if y.shape[1] == 1 else f"kan({names}, y)"
    got = run(tmp_path, symbolic.to_c(net, **units), x.numpy(), y.shape[1], call)
    torch.testing.assert_close(torch.tensor(got), y)


def test_derivatives_see_the_products() -> None:
    net = KAN([3, (1, 1), 1], base="identity", dtype=F64)
    with torch.no_grad():
        for layer in net.layers:
            layer.spline_weight.zero_()
        net.layers[0].base_weight.copy_(torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))  # x_2 + x_0 x_1
        net.layers[1].base_weight.fill_(1.0)
    x = torch.rand(40, 3, dtype=F64)
    score = structure.separability(net, x)
    assert structure.groups(score) == [(0, 1), (2,)]
    wanted = x[:, 0].std(correction=0) * x[:, 1].std(correction=0) / net(x).std(correction=0)
    torch.testing.assert_close(float(score[0, 1]), float(wanted))
    assert structure.symmetry(net, x, [0, 1]) < 1e-9


def test_selected_inputs(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    wide = torch.cat([torch.full((len(x), 2), torch.nan, dtype=F64), x], 1)
    whole = SelectedInputs(net, range(2, wide.shape[1]), wide.shape[1])
    assert torch.equal(whole(wide), net(x))
    nodes, direct = slowly(net, x)[0], copy.deepcopy(net)
    grids.update_grid(direct, x)
    grids.update_grid(whole, wide)
    for layer, other, row in zip(net.layers, direct.layers, nodes[:-1], strict=True):
        assert torch.equal(layer.grid, other.grid)
        assert bool(((row >= layer.grid[:, 3]) & (row <= layer.grid[:, -4])).all())


def test_equations(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    wanted = x.prod(1, keepdim=True)

    def objective(model: Callable[[Tensor], Tensor]) -> Tensor:
        return (model(x) - wanted).square().mean()

    before = float(objective(net))
    history = fit(net, objective=objective, points=x, steps=3, lamb=1e-6, progress=False)
    assert history.train_loss[-1] < before
    assert float(objective(net)) < before


def test_flops(case: tuple[KAN, Tensor]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net, x = case
    with FlopCounterMode(display=False) as counter:
        net(x)
    sizes = [layer.in_features * layer.out_features for layer in net.layers]
    assert counter.get_total_flops() == 2 * len(x) * sum(sizes) * (3 + 1 + 1)


def test_kept_and_dropped_products(case: tuple[KAN, Tensor]) -> None:
    net, x = case
    row = inspection.products_of(net)[0]
    product = row.sums  # the first one
    small, report = pruning.prune(net, x, node_threshold=1e9, edge_threshold=0, keep_nodes=every(net))
    assert report.nodes == [] and torch.equal(small(x), net(x))
    small, report = pruning.prune(net, x, node_threshold=0, edge_threshold=0, drop_nodes=[(1, product)])
    assert [d.index for d in report.nodes if d.layer == 1] == [(product,)]
    cut = copy.deepcopy(net)
    mask = torch.ones(cut.layers[1].in_features, cut.layers[1].out_features, dtype=F64)
    mask[product] = 0
    cut.layers[1].set_edge_mask(mask)
    torch.testing.assert_close(small(x), cut(x))


def every(net: KAN) -> list[tuple[int, int]]:
    rows = inspection.products_of(net)[:-1]
    return [(n + 1, i) for n, row in enumerate(rows) for i in range(row.nodes)]
