"""What pruning tells of what it did."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dropped:
    """A node or an edge that went, and why.

    Attributes:
        layer: of an edge, the index of its layer; of a node, of the layer that it is an input of.
        index: of a node (node,), of an edge (input, output), both in the model before pruning.
        score, reason: what it was judged by; "node score", "edge score", "unconnected" (no way in or out),
            "its node went", "drop_nodes" or "input score".

    Example:
        >>> Dropped(layer=0, index=(1, 2), score=0.01, reason="edge score").index
        (1, 2)
    """

    layer: int
    index: tuple[int, ...]
    score: float
    reason: str


@dataclass
class PruneReport:
    """A record of what pruning did; prints as a table.

    Attributes:
        widths: the model's widths before and after, pairs (sums, products) where there are products.
        kept: the nodes that stayed, a list for the inputs and one for each layer's outputs.
        nodes, edges: what went, the most important first.
        edges_left: the number of edges that still carry a function.
        rms_change, max_change: of the model's outputs on the data it was pruned with.

    Example:
        >>> PruneReport(widths=([2, 5, 1], [2, 3, 1]), kept=[[0, 1], [0, 2, 4], [0]]).to_dict()["widths"]
        ([2, 5, 1], [2, 3, 1])
    """

    widths: tuple[list[Any], list[Any]]
    kept: list[list[int]]
    nodes: list[Dropped] = field(default_factory=list)
    edges: list[Dropped] = field(default_factory=list)
    edges_left: int = 0
    rms_change: float = 0.0
    max_change: float = 0.0

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        before, after = self.widths
        lines = [
            f"{before} -> {after}: {len(self.nodes)} nodes and {len(self.edges)} edges went, "
            f"{self.edges_left} edges are left; outputs changed by {self.rms_change:.2g} (rms), "
            f"{self.max_change:.2g} (largest)"
        ]
        for what, dropped in (("node", self.nodes), ("edge", self.edges)):
            for d in dropped[:10]:
                index = " -> ".join(str(i) for i in d.index)
                lines.append(f"  layer {d.layer}, {what} {index}: score {d.score:.3g}, {d.reason}")
            if len(dropped) > 10:
                lines.append(f"  and {len(dropped) - 10} more {what}s, none more important")
        return "\n".join(lines)
