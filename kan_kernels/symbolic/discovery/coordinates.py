"""Coordinates: the inputs, and products, ratios, sums and differences of two or three of them.

Many laws that no network of one hidden layer has are sums or products of univariate functions of a few such
coordinates: exp(-(t/s)^2/2)/s of t/s and s, m/sqrt(1 - v^2/c^2) of m and v/c.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ...nn import function_library as library

POWERS = {1.0: "x", 2.0: "x^2", -1.0: "1/x", -2.0: "1/x^2", 0.5: "sqrt", -0.5: "1/sqrt"}
PAIRS, MANY = 4, 10  # of more inputs, two are joined in the plainest ways alone, and not at all
SYSTEMS = 128  # of given groups at most
NEAR_POLE = 1e-2  # a divisor's least size, as a share of its largest


class Part(NamedTuple):
    """A coordinate to a power, times a sign: what a product multiplies and a sum adds."""

    of: "Coordinate"
    power: float
    sign: float = 1.0


class Coordinate(NamedTuple):
    """An input (op "in"), or a product ("*") or sum ("+") of parts."""

    op: str
    place: int = -1
    parts: tuple[Part, ...] = ()

    @property
    def depth(self) -> int:
        """Return how many layers it takes."""
        return 1 + max(part.of.depth for part in self.parts) if self.parts else 0

    @property
    def cost(self) -> float:
        """Return how many operations it takes, powers other than 1 among them."""
        return sum(p.of.cost + 1 + 0.5 * (p.power not in (1.0, -1.0)) for p in self.parts) - bool(self.parts)

    def value(self, x: Tensor) -> Tensor:
        """Return its value on rows."""
        if self.op == "in":
            return x[:, self.place]
        values = [p.sign * library.get(POWERS[p.power]).torch(p.of.value(x)) for p in self.parts]
        total = values[0]
        for value in values[1:]:
            total = total * value if self.op == "*" else total + value
        return total

    def possible(self, x: Tensor) -> bool:
        """Return whether all powers of all parts are finite, and far from poles."""
        for part in self.parts:
            if not part.of.possible(x):
                return False
            value = part.of.value(x)
            low, high = float(value.min()), float(value.max())
            near, far = sorted((abs(low), abs(high)))
            if part.power < 0 and not (low * high > 0 and near > NEAR_POLE * far):
                return False
            if part.power in (0.5, -0.5) and low < 0:
                return False
        return bool(self.value(x).isfinite().all())


System = tuple[Coordinate, ...]


def joined(op: str, *parts: tuple[Coordinate, float, float]) -> Coordinate:
    """Return a product or sum of parts, each (coordinate, power, sign)."""
    return Coordinate(op, -1, tuple(Part(*part) for part in parts))


def pairs(a: Coordinate, b: Coordinate, plain: bool = False) -> Iterator[Coordinate]:
    """Yield what two coordinates may be joined to, the plainest first."""
    yield joined("*", (a, 1.0, 1.0), (b, 1.0, 1.0))
    yield joined("*", (a, 1.0, 1.0), (b, -1.0, 1.0))
    yield joined("+", (a, 1.0, 1.0), (b, 1.0, -1.0))
    yield joined("+", (a, 1.0, 1.0), (b, 1.0, 1.0))
    if not plain:
        yield joined("+", (a, 2.0, 1.0), (b, 2.0, 1.0))
        for power in (2.0, -2.0):
            yield joined("*", (a, 1.0, 1.0), (b, power, 1.0))
            yield joined("*", (b, 1.0, 1.0), (a, power, 1.0))


def inputs(x: Tensor) -> System:
    """Return the inputs as coordinates."""
    return tuple(Coordinate("in", i) for i in range(x.shape[1]))


def systems(x: Tensor, names: set[str]) -> Iterator[list[System]]:
    """Yield sets of coordinates, in stages: the inputs; two joined; three joined, or two and then a third.

    Args:
        x: (n, inputs), on which all of them are finite.
        names: of the functions that are allowed.
    """
    own = inputs(x)
    yield [own]
    count = len(own)
    if not 2 <= count <= MANY:
        return

    def usable(coordinate: Coordinate) -> bool:
        return _names(coordinate) <= names and coordinate.possible(x)

    stage: list[System] = []
    for a, b in itertools.combinations(own, 2):
        rest = tuple(c for c in own if c not in (a, b))
        for u in filter(usable, pairs(a, b, plain=count > PAIRS)):
            stage.append((u, *rest))
            if count <= PAIRS:
                stage += [(u, a, *rest), (u, b, *rest)]
    yield stage
    if count != 3:
        return
    first, second, third = own
    powers = (1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
    stage = [
        (joined("*", (first, 1.0, 1.0), (second, p, 1.0), (third, q, 1.0)),)
        for p, q in itertools.product(powers, repeat=2)
    ]
    stage += [
        (joined("+", (first, 1.0, 1.0), (second, 1.0, p), (third, 1.0, q)),)
        for p, q in itertools.product((1.0, -1.0), repeat=2)
    ]
    stage = [system for system in stage if usable(system[0])]
    for a, b in itertools.combinations(own, 2):
        (c,) = (c for c in own if c not in (a, b))
        for u in filter(usable, pairs(a, b, plain=True)):
            for v in filter(usable, pairs(u, c, plain=True)):
                if v.op != u.op:
                    stage.append((v,))
                stage += [(v, u), (v, c)]
    yield stage


def grouped(groups: Sequence[tuple[int, ...]], x: Tensor, names: set[str]) -> list[System]:
    """Return the sets of coordinates in which two inputs of a group are joined to one.

    Args:
        groups: which inputs belong together, each input once; none where one has more than two.
        x: (n, inputs), on which all coordinates are finite.
        names: of the functions that are allowed.
    """
    own = inputs(x)
    joins = sum(len(group) == 2 for group in groups)
    if joins == 0 or max(map(len, groups)) > 2:
        return []
    options: list[list[Coordinate]] = []
    for group in groups:
        a, *rest = (own[i] for i in group)
        ways = pairs(a, rest[0], plain=joins > 1) if rest else [a]
        options.append([u for u in ways if _names(u) <= names and u.possible(x)])
    if math.prod(map(len, options)) > SYSTEMS:
        options = [ways[:2] for ways in options]
    return list(itertools.islice(itertools.product(*options), SYSTEMS))


def _names(coordinate: Coordinate) -> set[str]:
    return set().union(*({POWERS[p.power]} | _names(p.of) for p in coordinate.parts))


def needed(system: Sequence[Coordinate]) -> list[list[Coordinate]]:
    """Return the coordinates that layers have to hand on, from the inputs' to the last one's."""
    rows = [list(system)]
    for depth in range(max(c.depth for c in system), 0, -1):
        below: dict[Coordinate, None] = {}
        for c in rows[0]:
            below.update(dict.fromkeys([p.of for p in c.parts] if c.depth == depth else [c]))
        rows.insert(0, list(below))
    return rows
