"""Multiplication nodes (KAN 2.0, arXiv 2408.10205): nodes that multiply neighbouring outputs of a layer."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from .._core.products import multiply
from .._core.tracing import untraced
from .._engine.layer import of_parts


class Products(nn.Module):
    """The nodes behind a layer: its first outputs as they are, then products of groups of its other outputs.

    Outputs of a layer are subnodes. The groups are neighbours, first to last; no output is in two of them.
    A state dict holds the groups, and one of other groups does not load.

    Args:
        sums: of the outputs, how many stay as they are, >= 0.
        arities: for each product how many outputs it multiplies, each >= 2.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> Products(1, [2, 3])(torch.tensor([7.0, 2.0, 3.0, 1.0, 2.0, 5.0]))
        tensor([ 7.,  6., 10.])
    """

    def __init__(self, sums: int, arities: Sequence[int]) -> None:
        super().__init__()
        self.sums = checks.integer("sums", sums, 0)
        self.arities = tuple(checks.integer(f"arities[{n}]", arity, 2) for n, arity in enumerate(arities))

    @property
    def nodes(self) -> int:
        """Return how many nodes there are."""
        return self.sums + len(self.arities)

    @property
    def subnodes(self) -> int:
        """Return how many outputs the layer has."""
        return self.sums + sum(self.arities)

    @property
    def width(self) -> int | tuple[int, int]:
        """Return the entry of a KAN's `widths`."""
        return (self.sums, len(self.arities)) if self.arities else self.sums

    def groups(self) -> list[range]:
        """Return the subnodes of each node."""
        sizes = [1] * self.sums + list(self.arities)
        ends = list(itertools.accumulate(sizes))
        return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def forward(self, y: Tensor) -> Tensor:
        """Map subnodes (..., subnodes) to nodes (..., nodes)."""
        if not self.arities:
            return y
        if isinstance(y, Tensor) and y.is_nested:
            return of_parts(y, self)
        if isinstance(y, Tensor) and untraced(y.size, -1) != self.subnodes:
            # a part of them, as after a layer whose outputs are sharded, would be multiplied wrongly
            raise ValueError(f"y: got shape {tuple(y.shape)}, expected (..., {self.subnodes})")
        return multiply(y, self.sums, self.arities)

    def hand_down(self, scores: Tensor) -> Tensor:
        """Give every factor the score of its product: (nodes,) to (subnodes,), any dtype."""
        return scores[torch.tensor(self._owners(), device=scores.device)]

    def collect(self, scores: Tensor) -> Tensor:
        """Add up what each node's subnodes have: (..., subnodes) to (..., nodes), `hand_down` transposed."""
        return torch.stack([scores[..., group.start : group.stop].sum(-1) for group in self.groups()], -1)

    def weakest(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """Return the score (nodes,) of every node by those of the edges to its subnodes (subnodes,), float64.

        A product is worth its weakest factor, whose bias counts too, and nothing without any edge.
        """
        factors = scores if bias is None else scores.maximum(bias.detach().double().abs())
        least = [factors[group.start : group.stop].min() for group in self.groups()[self.sums :]]
        products = torch.stack(least) if least else scores[:0]
        return torch.cat([scores[: self.sums], products * self.fed(scores != 0)[self.sums :]])

    def fed(self, subnodes: Tensor) -> Tensor:
        """Return (nodes,) bool: whether any subnode of the node is marked in (subnodes,)."""
        return torch.stack([subnodes[group.start : group.stop].any() for group in self.groups()])

    def select(self, nodes: Sequence[bool]) -> "Products":
        """Return the products of the nodes that are marked alone."""
        arities = [a for a, kept in zip(self.arities, nodes[self.sums :], strict=True) if kept]
        return Products(sum(map(bool, nodes[: self.sums])), arities)

    def _owners(self) -> list[int]:
        return [n for n, group in enumerate(self.groups()) for _ in group]

    def get_extra_state(self) -> Tensor:
        """Return for each node how many outputs it multiplies, 1 for a sum."""
        return torch.tensor([1] * self.sums + list(self.arities))

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a state of other groups."""
        found = state.tolist() if isinstance(state, Tensor) and not state.is_meta else state
        own = [1] * self.sums + list(self.arities)
        if found != own and not (isinstance(state, Tensor) and state.is_meta):
            raise ValueError(
                f"state_dict: its nodes multiply {found} outputs each, expected {own}; make the KAN with the "
                "widths and mult_arity of the one that was saved"
            )

    def extra_repr(self) -> str:
        counts = [(len(list(alike)), arity) for arity, alike in itertools.groupby(self.arities)]
        products = [f"{count} product{'s' * (count > 1)} of {arity} outputs" for count, arity in counts]
        return ", ".join([f"{self.sums} sum{'s' * (self.sums != 1)}", *products])


def rows_of(widths: Any, mult_arity: Any) -> list[Products]:
    """Return the rows of nodes that `widths` and `mult_arity` of a KAN describe, the inputs first.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    plain = not checks.is_sequence(widths) or not any(checks.is_sequence(width) for width in widths)
    pairs = [(width, 0) for width in checks.widths(widths)] if plain else _pairs(list(widths))
    if not checks.is_sequence(mult_arity):
        arity = checks.integer("mult_arity", mult_arity, 2)
        return [Products(sums, (arity,) * products) for sums, products in pairs]
    given = list(mult_arity)
    expected = f"an int >= 2, or {len(pairs)} entries, one for each of widths, each a list or an int"
    if len(given) != len(pairs):
        raise ValueError(f"mult_arity: got {len(given)} entries, expected {expected}")
    return [
        Products(sums, checks.each(f"mult_arity[{n}]", arity, products, 2))
        for n, ((sums, products), arity) in enumerate(zip(pairs, given, strict=True))
    ]


def _pairs(widths: list[Any]) -> list[tuple[int, int]]:
    """Return (sums, products) of every entry."""
    if len(widths) < 2:
        checks.widths(widths)  # says what is wrong
    pairs = []
    for n, width in enumerate(widths):
        name = f"widths[{n}]"
        if not checks.is_sequence(width):
            pairs.append((checks.integer(name, width, 1), 0))
            continue
        entries = list(width)
        if len(entries) != 2:
            raise ValueError(
                f"{name}: got {len(entries)} numbers, expected a positive int, or two, (sums, products)"
            )
        sums = checks.integer(f"{name}: sums", entries[0], 0)
        products = checks.integer(f"{name}: products", entries[1], 0)
        if n == 0 and products:
            raise ValueError(f"{name}: got {products} products, expected none: nothing leads to the inputs")
        if sums + products == 0:
            raise ValueError(f"{name}: got no nodes, expected at least one sum or product")
        pairs.append((sums, products))
    return pairs
