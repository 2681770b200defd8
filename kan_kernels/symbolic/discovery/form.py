"""A form: which function every edge of a formula has, apart from its constants; values and derivatives.

Layers of nodes, as in a KAN. A node is a product of factors, most often of one; a factor is a constant plus a
sum of terms c f(a v + b), v a node of the layer before. The constants of all terms are one vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn import function_library as library


class Term(NamedTuple):
    """A term c f(a v + b): v is node `source` of the layer before, f the function `name`."""

    source: int
    name: str


Factor = tuple[Term, ...]
Node = tuple[Factor, ...]


class Slot(NamedTuple):
    """A place in the vector of constants: of a factor its own, or of one of its terms (a, b, c)."""

    layer: int
    node: int
    factor: int
    term: int  # -1: the factor's constant
    at: int


@dataclass(frozen=True)
class Form:
    """A form: the number of inputs, and the nodes of each layer."""

    inputs: int
    layers: tuple[tuple[Node, ...], ...]

    def slots(self) -> Iterator[Slot]:
        """Yield the places of all constants, in order: of each factor its own, then its terms'."""
        at = 0
        for n, nodes in enumerate(self.layers):
            for k, node in enumerate(nodes):
                for j, factor in enumerate(node):
                    yield Slot(n, k, j, -1, at)
                    at += 1
                    for t in range(len(factor)):
                        yield Slot(n, k, j, t, at)
                        at += 3

    @property
    def size(self) -> int:
        """Return the number of constants, free or not."""
        return sum(1 + 3 * len(factor) for nodes in self.layers for node in nodes for factor in node)

    def term(self, slot: Slot) -> Term:
        """Return the term that a slot belongs to."""
        return self.layers[slot.layer][slot.node][slot.factor][slot.term]

    def with_term(self, slot: Slot, term: Term) -> "Form":
        """Return the form with another term in this place."""
        layers = [list(nodes) for nodes in self.layers]
        node = list(layers[slot.layer][slot.node])
        factor = list(node[slot.factor])
        factor[slot.term] = term
        node[slot.factor] = tuple(factor)
        layers[slot.layer][slot.node] = tuple(node)
        return replace(self, layers=tuple(map(tuple, layers)))

    def users(self, layer: int, node: int) -> list[Slot]:
        """Return the terms that read a node."""
        return [
            slot for slot in self.slots()
            if slot.term >= 0 and slot.layer == layer + 1 and self.term(slot).source == node
        ]  # fmt: skip

    def free(self) -> Tensor:
        """Return which constants are worth fitting, (size,) bool: one of each set that can stand for another.

        A node's scale and shift are its terms' c and its own constant; so where one term alone reads it, that
        has a = 1, b = 0. On inputs, a is the sign where f is homogeneous, exp has no b, x has neither.
        """
        free = torch.ones(self.size, dtype=torch.bool)
        for slot in self.slots():
            if slot.term < 0:
                continue
            name = self.term(slot).name
            function = library.get(name)
            source = self.term(slot).source
            alone = slot.layer > 0 and len(self.users(slot.layer - 1, source)) == 1
            product = alone and len(self.layers[slot.layer - 1][source]) > 1
            if name in ("0", "x") or (alone and not product):
                free[slot.at : slot.at + 2] = False
            elif product:
                free[slot.at] = False
            elif name == "exp":
                free[slot.at + 1] = False
            elif function.degree is not None:
                free[slot.at] = False
            if name == "0":
                free[slot.at + 2] = False
        for slot in self.slots():
            if slot.term < 0 and slot.layer + 1 < len(self.layers):
                users = self.users(slot.layer, slot.node)
                one = len(self.layers[slot.layer][slot.node]) == 1
                if one and len(users) == 1 and self.term(users[0]).name in ("x", "exp"):
                    free[slot.at] = False
        return free


def evaluate(form: Form, theta: Tensor, x: Tensor, free: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the outputs (n, out), and their derivatives (n, out, F) by the F constants that are free.

    Args:
        theta: (size,) float64. x: (n, inputs) float64.
        free: (size,) bool; None: no derivatives, (n, out, 0).
    """
    place = [-1] * form.size
    count = 0
    if free is not None:
        for n in free.nonzero().flatten().tolist():
            place[n] = count
            count += 1
    constants = theta.tolist()
    rows = x.shape[0]
    values = list(x.unbind(1))
    slopes: list[Tensor | None] = [None] * len(values)
    at = 0
    for nodes in form.layers:
        new_values, new_slopes = [], []
        for node in nodes:
            parts, part_slopes = [], []
            for factor in node:
                total = torch.full((rows,), constants[at], dtype=torch.float64)
                slope = torch.zeros(rows, count, dtype=torch.float64) if count else None
                if slope is not None and place[at] >= 0:
                    slope[:, place[at]] = 1.0
                at += 1
                for source, name in factor:
                    a, b, c = constants[at : at + 3]
                    v, dv = values[source], slopes[source]
                    f, df = _value_and_slope(library.get(name), a * v + b, slope is not None)
                    total = total + c * f
                    if slope is not None:
                        if dv is not None:
                            slope += (c * a * df)[:, None] * dv
                        for p, value in zip(place[at : at + 3], (c * df * v, c * df, f), strict=True):
                            if p >= 0:
                                slope[:, p] += value
                    at += 3
                parts.append(total)
                part_slopes.append(slope)
            value, slope = parts[0], part_slopes[0]
            for other, other_slope in zip(parts[1:], part_slopes[1:], strict=True):
                if slope is not None and other_slope is not None:
                    slope = slope * other[:, None] + other_slope * value[:, None]
                value = value * other
            new_values.append(value)
            new_slopes.append(slope)
        values, slopes = new_values, new_slopes
    derivatives = [x.new_zeros(rows, 0) if slope is None else slope for slope in slopes]
    return torch.stack(values, 1), torch.stack(derivatives, 1)


def _value_and_slope(function: library.Function, z: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    if function.name == "x":
        return z, torch.ones_like(z) if wanted else z
    if not wanted:
        with torch.no_grad():
            return function.torch(z), z
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        f = function.torch(z)
        (slope,) = torch.autograd.grad(f.sum(), z)
    return f.detach(), slope
