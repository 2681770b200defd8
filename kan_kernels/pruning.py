"""Smaller KANs without the edges, nodes and inputs that hardly matter."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import replicas
from ._core import checks
from .attribution import Scores, checked_node, edge_scores, input_scores, node_scores
from .composition import check_plain, layers_of, products_of
from .nn import KAN, KANLinear, Products
from .prune_report import Dropped, PruneReport

__all__ = ["Dropped", "PruneReport", "edge_scores", "input_scores", "node_scores", "prune", "prune_inputs"]
Model = TypeVar("Model", bound=nn.Module)


def prune(
    model: Model,
    x: Tensor,
    *,
    node_threshold: float = 1e-2,
    edge_threshold: float = 3e-2,
    kind: str = "l1",
    keep_means: bool = False,
    keep_nodes: Iterable[tuple[int, int]] = (),
    drop_nodes: Iterable[tuple[int, int]] = (),
    group: Any = None,
) -> tuple[Model, PruneReport]:
    """Return a smaller KAN, without the hidden nodes and edges that hardly matter on x, and a report.

    Hidden nodes whose score is not above `node_threshold` are removed, edges whose score is not above
    `edge_threshold` are switched off in `edge_mask`, and then the nodes go that nothing leads to or away from
    any longer. Inputs and outputs stay, and `model` as it is. What stays computes the same function. A factor
    of a product that stays, but without any edge, is its mean over x from then on, or the product would be 0.

    Args:
        model: a KAN or KANLinear.
        x: (..., in), as for `edge_scores`.
        node_threshold, edge_threshold: at least 0; the paper's and pykan's values are the default.
        kind: of score, see `edge_scores`.
        keep_means: add the mean over x of what went to the bias of its layer, which gets one if it has none.
        keep_nodes: hidden nodes (row, i), rows as in `node_scores`, that stay with all their edges from and
            to nodes that stay, whatever the scores.
        drop_nodes: those that go, whatever their scores.
        group: as for `grids.update_grid`: the rows of all ranks count, and all get the same.

    Raises:
        TypeError, ValueError: naming the argument; ValueError if a layer would be left without any edge.

    Example:
        >>> model = KAN([2, 3, 1])
        >>> model.layers[0].set_edge_mask(torch.tensor([[1, 1, 0], [1, 1, 0]]))  # nothing leads to node 2
        >>> prune(model, torch.rand(64, 2), node_threshold=0, edge_threshold=0)[1].widths
        ([2, 3, 1], [2, 2, 1])
    """
    checks.boolean("keep_means", keep_means)
    checks.nonnegative("node_threshold", node_threshold)
    checks.nonnegative("edge_threshold", edge_threshold)
    keep, drop = _asked_for(model, keep_nodes, drop_nodes)
    if (ranks := replicas.resolve(model, group)) is not None:
        options: dict[str, Any] = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
        options |= {"kind": kind, "keep_means": keep_means, "keep_nodes": keep, "drop_nodes": drop}
        return _together(prune, ranks, model, x, options)
    scores = Scores(model, x, kind)
    active = [s.gt(edge_threshold) & a for s, a in zip(scores.edges, scores.active, strict=True)]
    nodes = [torch.ones_like(s, dtype=torch.bool) for s in scores.nodes]
    for i in range(1, len(nodes) - 1):
        nodes[i] = scores.nodes[i] > node_threshold
    for row, i in keep:
        nodes[row][i] = True
        group = scores.products[row - 1].groups()[i]
        into = slice(group.start, group.stop)
        active[row - 1][:, into], active[row][i] = scores.active[row - 1][:, into], scores.active[row][i]
    for row, i in drop:
        nodes[row][i] = False
    important = [n.clone() for n in nodes]
    _settle(nodes, active, scores.products)
    for row, i in keep:
        if not nodes[row][i]:
            raise ValueError(
                f"keep_nodes: got {(row, i)}, but no edge would lead to it, or none away from it, expected "
                "nodes beside it to stay too: lower the thresholds, or keep or switch on others"
            )
    for i, edges in enumerate(active):
        if not edges.any():
            raise ValueError(
                f"model: pruning would leave layer {i} without edges. Its largest edge score is "
                f"{_largest(scores.edges[i])} (edge_threshold={edge_threshold:g}), the largest node scores "
                f"of the hidden layers are {', '.join(map(_largest, scores.nodes[1:-1])) or 'none'} "
                f"(node_threshold={node_threshold:g})"
            )
    dropped_nodes = [
        Dropped(i, (j,), float(row[j]), _reason((i, j), drop, bool(important[i][j])))
        for i, row in enumerate(scores.nodes)
        for j in (~nodes[i]).nonzero().flatten().tolist()
    ]
    return _build(model, scores, nodes, active, dropped_nodes, keep_means)


def _asked_for(model: nn.Module, keep: object, drop: object) -> tuple[list, list]:
    """Return the hidden nodes that a user wants to keep and to drop, checked."""
    found, rows = [], products_of(model)
    for name, nodes in (("keep_nodes", keep), ("drop_nodes", drop)):
        if not isinstance(nodes, Iterable):
            raise TypeError(f"{name}: got {nodes!r}, expected pairs (row, i)")
        found.append([checked_node(name, node, rows, inside=True) for node in nodes])
    for node in set(found[0]) & set(found[1]):
        raise ValueError(f"keep_nodes, drop_nodes: got {node} in both, expected it in one of them")
    return found[0], found[1]


def _reason(node: tuple[int, int], drop: list, important: bool) -> str:
    if node in drop:
        return "drop_nodes"
    return "unconnected" if important else "node score"


def prune_inputs(
    model: Model,
    x: Tensor,
    *,
    threshold: float = 1e-2,
    keep: Sequence[int] | None = None,
    kind: str = "attribution",
    keep_means: bool = False,
    group: Any = None,
) -> tuple[Model, PruneReport]:
    """Return a KAN without the inputs that hardly matter, and a report; call it with x[..., report.kept[0]].

    Args:
        model, x, kind, keep_means, group: as for `prune`.
        threshold: inputs whose score is not above it go.
        keep: the inputs that stay, in place of the threshold; sorted.

    Raises:
        TypeError, ValueError: naming the argument; ValueError if no input would be left.

    Example:
        >>> prune_inputs(KANLinear(2, 1), torch.rand(8, 2), keep=[1])[1].kept
        [[1], [0]]
    """
    checks.boolean("keep_means", keep_means)
    checks.nonnegative("threshold", threshold)
    if (ranks := replicas.resolve(model, group)) is not None:
        options = {"threshold": threshold, "keep": keep, "kind": kind, "keep_means": keep_means}
        return _together(prune_inputs, ranks, model, x, options)
    scores = Scores(model, x, kind)
    nodes = [torch.ones_like(s, dtype=torch.bool) for s in scores.nodes]
    if keep is None:
        nodes[0] = scores.nodes[0] > threshold
    else:
        count = len(nodes[0])
        kept = [checks.integer("keep: input", i, 0, count - 1) for i in keep]
        nodes[0] = torch.zeros_like(nodes[0])
        nodes[0][kept] = True
    active = [a.clone() for a in scores.active]
    active[0][~nodes[0]] = False
    if not active[0].any():
        raise ValueError(
            f"model: no edge of any input would be left; the largest input score is "
            f"{_largest(scores.nodes[0])}, threshold={threshold:g}"
        )
    gone = [
        Dropped(0, (j,), float(scores.nodes[0][j]), "input score")
        for j in (~nodes[0]).nonzero().flatten().tolist()
    ]
    return _build(model, scores, nodes, active, gone, keep_means)


def _together(
    function: Callable[..., tuple[Model, PruneReport]], ranks: Any, model: Model, x: Tensor, options: dict
) -> tuple[Model, PruneReport]:
    """Return the pruned model and the report of the first rank, on the rows of all."""
    place = layers_of(model)[0].spline_weight.device

    def pruned(x: Tensor) -> tuple[Model, PruneReport]:
        small, report = function(model, x, **options, group=replicas.LOCAL)
        return small.cpu(), report

    small, report = replicas.shared(ranks, model, (function.__name__, options), pruned, x)
    return small.to(place), report


def _settle(nodes: list[Tensor], active: list[Tensor], products: list[Products]) -> None:
    """Drop edges of dropped nodes and hidden nodes without edges on either side, until nothing changes."""
    while True:
        for i, edges in enumerate(active):
            edges &= nodes[i].unsqueeze(1) & products[i].hand_down(nodes[i + 1])
        fed = [behind.fed(edges.any(0)) for edges, behind in zip(active, products, strict=True)]
        connected = [into & edges.any(1) for into, edges in zip(fed, active[1:], strict=False)]
        if all((n <= c).all() for n, c in zip(nodes[1:-1], connected, strict=True)):
            return
        for node, wanted in zip(nodes[1:-1], connected, strict=True):
            node &= wanted


@torch.no_grad()
def _build(
    model: Model,
    scores: Scores,
    nodes: list[Tensor],
    active: list[Tensor],
    dropped_nodes: list[Dropped],
    keep_means: bool,
) -> tuple[Model, PruneReport]:
    """Return the model of the nodes and edges that stay, and the report."""
    old = layers_of(model)
    kept_subnodes = [p.hand_down(kept) for p, kept in zip(scores.products, nodes[1:], strict=True)]
    new = [_slice(layer, nodes[i], kept_subnodes[i], active[i]) for i, layer in enumerate(old)]
    products = [p.select(kept.tolist()) for p, kept in zip(scores.products, nodes[1:], strict=True)]
    x = scores.values[0][:, nodes[0]]
    for i, (layer, target, kept) in enumerate(zip(new, scores.subnodes, kept_subnodes, strict=True)):
        wanted = torch.full_like(kept[kept], keep_means)
        wanted[products[i].sums :] |= (scores.active[i].any(0) & ~active[i].any(0))[kept][products[i].sums :]
        if wanted.any():
            gap = (target[:, kept].double() - layer(x).double()).mean(0) * wanted
            bias = gap if layer.bias is None else gap + layer.bias.double()
            trained = layer.bias is None or layer.bias.requires_grad
            layer.bias = nn.Parameter(bias.to(layer.spline_weight.dtype), requires_grad=trained)
        x = products[i](layer(x))
    change = (x - scores.values[-1]).double()
    edges = [
        Dropped(
            i,
            (a, b),
            float(s[a, b]),
            "edge score" if nodes[i][a] and kept_subnodes[i][b] else "its node went",
        )
        for i, s in enumerate(scores.edges)
        for a, b in (scores.active[i] & ~active[i]).nonzero().tolist()
    ]
    report = PruneReport(
        widths=(
            [len(nodes[0]), *(p.width for p in scores.products)],
            [int(nodes[0].sum()), *(p.width for p in products)],
        ),
        kept=[n.nonzero().flatten().tolist() for n in nodes],
        nodes=sorted(dropped_nodes, key=lambda d: -d.score),
        edges=sorted(edges, key=lambda d: -d.score),
        edges_left=sum(int(a.sum()) for a in active),
        rms_change=float(change.square().mean().sqrt()),
        max_change=float(change.abs().max()),
    )
    if not isinstance(model, KAN):
        return new[0], report  # type: ignore[return-value]
    layers = nn.ModuleList(new)
    layers.training = model.layers.training  # of the list alone: each layer has its own
    memo = {id(model.layers): layers, id(model._modules.get("products")): None}  # copy all but these
    small = copy.deepcopy(model, memo)
    small.set_products(products)
    return small, report


def _symbolic(symbolic, inputs: list[int], outputs: list[int], active: Tensor):
    """Return the symbolic edges among those that stay, or None."""
    kept = [edge for edge in symbolic.edges() if active[edge.input, edge.output]]
    if not kept:
        return None
    return symbolic.renewed(kept, symbolic.in_features, symbolic.out_features).select(inputs, outputs)


def _slice(layer: KANLinear, inputs: Tensor, outputs: Tensor, active: Tensor) -> KANLinear:
    """Return the layer of the inputs, outputs and edges that are marked; `layer` itself stays as it is."""
    check_plain(layer, "spline_weight", "base_weight", "bias")
    new = copy.deepcopy(layer)
    i, o = inputs.nonzero().flatten(), outputs.nonzero().flatten()
    new.in_features, new.out_features = len(i), len(o)
    new.place_grid(layer.grid[i])
    sliced = {
        "spline_weight": layer.spline_weight[i][:, :, o],
        "base_weight": None if layer.base_weight is None else layer.base_weight[i][:, o],
        "bias": None if layer.bias is None else layer.bias[o],
    }
    for name, value in sliced.items():
        if value is not None:
            wanted = getattr(layer, name).requires_grad
            setattr(new, name, nn.Parameter(value.detach().contiguous(), requires_grad=wanted))
    mask = active if layer.edge_mask is None else active & (layer.edge_mask != 0)
    mask = mask[i][:, o]
    new.set_symbolic(None)  # those of the old shape
    new.set_edge_mask(None if mask.all() else mask)
    if layer.symbolic is not None:
        new.set_symbolic(_symbolic(layer.symbolic, i.tolist(), o.tolist(), active))
    return new


def _largest(scores: Tensor) -> str:
    return f"{float(scores.max()):.3g}"
