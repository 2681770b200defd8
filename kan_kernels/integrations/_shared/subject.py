"""What the code of a peer's layer may read and call, peer by peer."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Subject:
    """A list of what the code of a peer's layer may read and call of the layer.

    Attributes:
        peer: its name.
        root: the method that is judged, with all that it calls of its own class and module.
        tensors: parameters and buffers; knots: those of them that x may be compared with.
        options: attributes that are neither tensors nor modules. extents: those smaller in a probe's clone.
        counted: options that loops may count to; cells: the extents that are the number of a grid's cells. By
            sums of both code may cut: a probe's clone has more features and outputs (`cuts`).
        parts, callables: children whose code is judged too; what is called as it is, by us as well.
        open: whether code that is not the peer's to the letter may be taken at all.
    """

    peer: str
    root: str
    tensors: frozenset[str]
    options: frozenset[str]
    extents: frozenset[str] = frozenset()
    counted: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()
    knots: frozenset[str] = frozenset()
    parts: dict[str, "Subject"] = field(default_factory=dict)
    callables: frozenset[str] = frozenset()
    open: bool = True
