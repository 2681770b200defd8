"""Scores of edges, nodes and inputs: what matters, to all outputs or to one node; what feeds a node."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._core import checks
from .composition import layers_of, opened, products_of
from .inspection import active_edges, check_data, edge_deviations, edge_magnitudes, node_and_subnode_values
from .nn import KANLinear, Products, SelectedInputs

__all__ = ["edge_scores", "input_scores", "interactions", "node_scores"]
KINDS = ("l1", "attribution")


def edge_scores(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = "l1",
    output: int | None = None,
    node: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Return the importance of every edge on the data x, (in, out) float64 for each layer.

    Args:
        model: a KAN or KANLinear.
        x: (..., in) finite, at least one sample ("attribution": two), in the model's dtype.
        kind: "l1", the mean magnitude of the edge's function (arXiv 2404.19756, eq. 2.17), or "attribution",
            pykan's: the outputs share a score of 1 equally, and a node hands its score down to its incoming
            edges by the ratio of the edge's standard deviation to its own (0/0 = 0), a product the same
            score to each of its factors. It asks what reaches the outputs, and is blind to constants.
        output: of "attribution", the one output whose score is 1 and handed down; None: all, equally.
        node: likewise (row, i), node i of that row of `node_scores`: 1 for the first layer's outputs. Layers
            above it get zeros.

    Raises:
        TypeError, ValueError: naming the argument; also if a score is not finite.

    Example:
        >>> [score.shape for score in edge_scores(KAN([2, 5, 1]), torch.rand(8, 2))]
        [torch.Size([2, 5]), torch.Size([5, 1])]
    """
    return Scores(model, x, kind, output, node).edges


def node_scores(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = "l1",
    output: int | None = None,
    node: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Return the importance of every node, (nodes,) float64: of the inputs, then of each layer's outputs.

    "l1" is eq. 2.21 of arXiv 2404.19756: the smaller one of the largest score of an edge that leads to the
    node and of one that leads away, where there is any; for a product the factor counts whose largest score,
    or bias, is the smallest. "attribution": what it was handed, see `edge_scores`.

    Args:
        model, x, kind, output, node: as for `edge_scores`.

    Raises:
        TypeError, ValueError: naming the argument; also if a score is not finite.

    Example:
        >>> [len(score) for score in node_scores(KAN([2, 5, 1]), torch.rand(8, 2))]
        [2, 5, 1]
    """
    return Scores(model, x, kind, output, node).nodes


def input_scores(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = "attribution",
    output: int | None = None,
    node: tuple[int, int] | None = None,
) -> Tensor:
    """Return the importance of every input, (in,) float64: the first row of `node_scores`.

    Args:
        model, x, kind, output, node: as for `edge_scores`.

    Raises:
        TypeError, ValueError: naming the argument; also if a score is not finite.

    Example:
        >>> input_scores(KAN([2, 5, 1]), torch.rand(8, 2)).shape
        torch.Size([2])
    """
    return Scores(model, x, kind, output, node).nodes[0]


def interactions(
    model: nn.Module, x: Tensor, *, threshold: float = 1e-2, names: Sequence[str] | None = None
) -> list[list[tuple]]:
    """Return the inputs that feed each node: a list for each layer's outputs, of a tuple for each node.

    An input feeds a node if its score there is above the threshold, where the node's own score is 1: see
    `edge_scores` with `node`. So f(x1, x2) + g(x3) shows as nodes of (0, 1) and of (2,).

    Args:
        model, x: as for `edge_scores` of kind "attribution".
        threshold: of the score.
        names: of the inputs, which are returned in place of their numbers; of `SelectedInputs`, as these
            numbers, of all columns of x.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> model = KAN([2, 2, 1])
        >>> model.layers[0].set_edge_mask(torch.eye(2))
        >>> interactions(model, torch.rand(8, 2), threshold=0, names=["a", "b"])[0]
        [('a',), ('b',)]
    """
    threshold = checks.nonnegative("threshold", threshold)
    scores = Scores(model, x, "attribution")
    count = len(scores.nodes[0])
    columns = model.in_features if isinstance(model, SelectedInputs) else count
    called: Sequence = range(columns) if names is None else checks.names("names", names, columns, "input")
    if isinstance(model, SelectedInputs):
        called = [called[n] for n in model.kept.tolist()]
    reached = torch.eye(count, dtype=torch.float64, device=scores.nodes[0].device)
    found = []
    for share, products in zip(scores.shares, scores.products, strict=True):
        reached = products.collect(reached @ share)
        rows = (reached > threshold).t().tolist()
        found.append([tuple(n for n, feeds in zip(called, row, strict=True) if feeds) for row in rows])
    return found


class Scores:
    """The scores of a model on data, and what they were computed from."""

    def __init__(
        self,
        model: nn.Module,
        x: object,
        kind: str,
        output: int | None = None,
        node: tuple[int, int] | None = None,
    ) -> None:
        model, x = opened(model, x)
        layers = layers_of(model)
        self.products = products_of(model)
        target = _target(self.products, kind, output, node)
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, expected one of {KINDS}")
        rows = check_data(x, layers[0])
        if kind == "attribution" and len(rows) < 2:
            raise ValueError("x: got one sample, expected at least two for scores of kind 'attribution'")
        self.values, self.subnodes = node_and_subnode_values(model, rows)
        self.active = [active_edges(layer) for layer in layers]
        score = edge_magnitudes if kind == "l1" else edge_deviations
        edges = [score(layer, v) for layer, v in zip(layers, self.values[:-1], strict=True)]
        if kind == "l1":
            self.edges, self.nodes = edges, _paper_nodes(edges, layers, self.products)
        else:
            self.shares = [_shares(d, v) for d, v in zip(edges, self.subnodes, strict=True)]
            self.edges, self.nodes = _handed_down(self.shares, self.products, target)
        for i, scores in enumerate(self.edges):
            if not scores.isfinite().all():
                raise ValueError(f"model: a score of layer {i} is not finite; are its weights?")


def _paper_nodes(edges: list[Tensor], layers: list[KANLinear], products: list[Products]) -> list[Tensor]:
    """Return min(I, O), the incoming and the outgoing score of every node (eq. 2.21)."""
    behind = zip(edges, layers, products, strict=True)
    incoming = [nodes.weakest(e.amax(0), layer.bias) for e, layer, nodes in behind]
    outgoing = [e.amax(1) for e in edges]
    hidden = [torch.minimum(i, o) for i, o in zip(incoming[:-1], outgoing[1:], strict=True)]
    return [outgoing[0], *hidden, incoming[-1]]


def _target(
    rows: list[Products], kind: str, output: int | None, node: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return (row, i) of the one node whose score is handed down, or None for all outputs."""
    if output is None and node is None:
        return None
    if kind != "attribution":
        raise ValueError(f"kind: got {kind!r} with output or node, expected 'attribution', which knows them")
    if node is None:
        return len(rows), checks.integer("output", output, 0, rows[-1].nodes - 1)
    if output is not None:
        raise ValueError("output, node: got both, expected one of them")
    return checked_node("node", node, rows)


def checked_node(name: str, node: object, rows: list[Products], inside: bool = False) -> tuple[int, int]:
    """Return `node` as (row, i), if there is such a node behind the inputs, and before the outputs."""
    if not isinstance(node, (tuple, list)) or len(node) != 2:
        raise TypeError(f"{name}: got {node!r}, expected a pair (row, i)")
    row = checks.integer(f"{name}: row", node[0], 1, len(rows) - inside)
    return row, checks.integer(f"{name}: node of row {row}", node[1], 0, rows[row - 1].nodes - 1)


def _shares(deviation: Tensor, value: Tensor) -> Tensor:
    """Return what each edge gives to its node: its deviation over the node's own, (in, out), 0/0 = 0."""
    own = value.double().std(0, correction=0)
    return torch.where(own > 0, deviation / torch.where(own > 0, own, 1.0), 0.0)


def _handed_down(
    shares: list[Tensor], products: list[Products], target: tuple[int, int] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return pykan's scores of edges and nodes, handed down from the outputs, or from one node."""
    row = len(shares) if target is None else target[0]
    count = products[row - 1].nodes
    first = shares[row - 1].new_full((count,), 1.0 / count if target is None else 0.0)
    if target is not None:
        first[target[1]] = 1.0
    edges = [torch.zeros_like(share) for share in shares[row:]]
    nodes = [first, *(shares[0].new_zeros(above.nodes) for above in products[row:])]
    for share, multiply in zip(reversed(shares[:row]), reversed(products[:row]), strict=True):
        edges.insert(0, share * multiply.hand_down(nodes[0]))
        nodes.insert(0, edges[0].sum(1))
    return edges, nodes
