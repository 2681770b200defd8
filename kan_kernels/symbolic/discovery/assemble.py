"""From splines of coordinates to forms: a function for each curve, or one of a function, and constants."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn import function_library as library
from .. import fit as curve_fit
from .coordinates import POWERS, Coordinate, needed
from .form import Form, Node, Term
from .propose import EACH, EdgeChoice, Edges
from .separable import Splines, Structure, basis, cells

SAMPLES = 200
INSIDE = 3  # functions inside of another that are tried, if no more of them are among the best
TWINS = ("sin", "cos"), ("tanh", "sigmoid")
PLAIN = 2.5  # the largest complexity of a function that is tried first, and inside of another
ENOUGH = 3.0  # bits above what the splines leave: no other function is tried
# The functions that a factor may be of another function, and how they are undone.
UNDONE = {
    "1/x": lambda h: 1 / h,
    "sqrt": lambda h: h.square(),
    "1/sqrt": lambda h: h.square().reciprocal(),
    "exp": lambda h: h.log(),
    "x^2": lambda h: h.sqrt(),
}


class Curve(NamedTuple):
    """A spline of a coordinate, or its exponential, as a function of the coordinate."""

    coordinate: Coordinate
    knots: Tensor
    weights: Tensor
    logs: bool

    def __call__(self, z: Tensor) -> Tensor:
        h = basis(z, self.knots) @ self.weights
        return h.exp() if self.logs else h


def curves(splines: Splines, structure: Structure) -> list[Curve]:
    """Return the curves of a structure."""
    count = len(structure.system)
    size = cells(3) if structure.kind == "both" else cells(count)
    return [
        Curve(
            structure.system[n % count], splines.of(structure.system[n % count], size)[2], w, structure.logs
        )
        for n, w in enumerate(structure.weights)
    ]


def choices(
    splines: Splines, structure: Structure, functions: list[library.Function], spread: float
) -> Edges:
    """Return the best functions of every curve, and the best inside of a root, a power, an exponential."""
    floor = min(max((structure.valid / spread) ** 2, 1e-14), 1e-2)
    own = curves(splines, structure)
    count = len(structure.system)
    sums = {"sum": len(own), "product": 0, "both": count}[structure.kind]
    points = [curve.coordinate.value(splines.x) for curve in own]
    shares = _shares([curve(z) for curve, z in zip(own, points, strict=True)], sums)
    allowed = {f.name for f in functions}
    columns: list[tuple[int, str, float]] = []  # curve, outer function, sign
    for n, (curve, z) in enumerate(zip(own, points, strict=True)):
        columns.append((n, "x", 1.0))
        if n >= sums and structure.kind == "product":
            h = curve(z)
            low, high = float(h.min()), float(h.max())
            sign = 1.0 if low + high > 0 else -1.0
            if low * high > 0 and min(abs(low), abs(high)) > 1e-3 * max(abs(low), abs(high)):
                columns += [(n, name, sign) for name in UNDONE if name in allowed]
    found: dict[int, list[EdgeChoice]] = {n: [] for n in range(len(own))}
    plain = [f for f in functions if f.complexity <= PLAIN]
    others = [f for f in functions if f.complexity > PLAIN]
    if plain:
        _fill(found, own, columns, points, plain, shares, floor)
    poor = [
        c for c in columns
        if c[1] == "x" and min((o.unexplained for o in found[c[0]]), default=0.0) > math.log2(floor) + ENOUGH
    ]  # fmt: skip
    if poor and others:
        _fill(found, own, poor, points, others, shares, floor)
    for options in found.values():
        _prefer(options)
    kept: Edges = {}
    for n, options in found.items():
        best: list[EdgeChoice] = []
        for plainness in (1.0, 4.0):
            best += sorted(options, key=lambda choice: choice.score(plainness))[: EACH + 1]
        inside = [choice for choice in options if choice.outer != "x"]
        best += sorted(inside, key=lambda choice: choice.score())[:INSIDE]
        kept[0, n, 0] = list(dict.fromkeys(best))
    return kept


def _fill(
    found: dict[int, list[EdgeChoice]], own: list[Curve], columns: list[tuple[int, str, float]],
    points: list[Tensor], functions: list[library.Function], shares: list[float], floor: float,
) -> None:  # fmt: skip
    """Fit functions to curves, and to what is inside of the outer functions of `columns`."""
    x = torch.stack([points[n] for n, _, _ in columns], 1)
    order = torch.linspace(0, len(x) - 1, min(SAMPLES, len(x))).round().long()
    x = x.sort(0).values[order]

    def values(part: slice, z: Tensor) -> Tensor:
        made = []
        for (n, outer, sign), column in zip(columns[part], z.unbind(1), strict=True):
            h = own[n](column)
            made.append(h if outer == "x" else UNDONE[outer]((sign * h).clamp(min=1e-300)))
        return torch.stack(made, 1)

    fits = curve_fit.fit(x, values, functions)
    for k, (n, outer, sign) in enumerate(columns):
        h = own[n](x[:, k])
        variance = float((h - h.mean()).square().mean())
        for f, function in enumerate(fits.functions):
            a, b, c, d = fits.affine[k, f].tolist()
            if not all(map(math.isfinite, (a, b, c, d))):
                continue
            z = a * x[:, k] + b
            if function.name == "0" and outer != "x":
                continue
            if function.name == "abs" and float(z.min()) * float(z.max()) >= 0:
                continue  # a line
            with torch.no_grad():
                got = sign * library.get(outer).torch(c * function.torch(z) + d)
            error = float((got - h).square().mean())
            if not math.isfinite(error):
                continue
            share = min(error / max(variance, 1e-300), 1.0) * shares[n]
            cost = function.complexity + 0.5 * (b != 0 and function.name not in ("0", "x"))
            if outer != "x":
                cost += library.get(outer).complexity - 0.5
            found[n].append(
                EdgeChoice(function.name, (a, b, c, d), cost, math.log2(share + floor), outer, sign)
            )


def _prefer(options: list[EdgeChoice]) -> None:
    """Make of two functions that are the same but for constants the one with larger constants dearer."""
    places = {option.name: n for n, option in enumerate(options) if option.outer == "x"}
    for pair in TWINS:
        if all(name in places for name in pair):
            own = [options[places[name]] for name in pair]
            if abs(own[0].unexplained - own[1].unexplained) < 0.1:
                sizes = [abs(o.affine[1]) + abs(o.affine[3] / (o.affine[2] or 1.0)) for o in own]
                n = places[pair[sizes[1] >= sizes[0]]]
                options[n] = options[n]._replace(complexity=options[n].complexity + 1)


def _shares(values: list[Tensor], sums: int) -> list[float]:
    """Return which share of the whole's variance hangs on each curve, at most 1."""
    parts = [v.var(correction=0) for v in values[:sums]]
    if len(values) > sums:
        parts.append(torch.stack(values[sums:]).prod(0).var(correction=0))
    total = max(float(sum(parts)), 1e-300)
    shares = [min(float(p) / total, 1.0) for p in parts]
    return shares[:sums] + [shares[-1]] * (len(values) - sums)


FREE, HELD, SCALE = 0, 1, 2  # a constant: fitted; not; not while others do its work, as a second scale would
Status = tuple[int, int, int]
Line = tuple[Term, tuple[float, ...], Status]  # a term, its (a, b, c)
LINE, FIXED, OPEN = (1.0, 0.0, 1.0), (HELD, HELD, HELD), (FREE, FREE, FREE)


class _Maker:
    """A form under way: layers of nodes, constants, and which of these are fitted."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.layers: list[tuple[Node, ...]] = []
        self.theta: list[float] = []
        self.status: list[int] = []
        self.nodes: list[Node] = []

    def node(self, *factors: tuple[tuple[float, int], list[Line]]) -> None:
        """Add a node: of each factor (constant, status), and its terms."""
        for (bias, status), terms in factors:
            self.theta.append(bias)
            self.status.append(status)
            for _, constants, own in terms:
                self.theta += constants
                self.status += own
        self.nodes.append(tuple(tuple(term for term, _, _ in terms) for _, terms in factors))

    def layer(self) -> None:
        """Make a layer of the nodes so far."""
        self.layers.append(tuple(self.nodes))
        self.nodes = []

    def done(self) -> tuple[Form, Tensor, Tensor]:
        """Return the form, its constants and what they are."""
        theta = torch.tensor(self.theta, dtype=torch.float64)
        return Form(self.inputs, tuple(self.layers)), theta, torch.tensor(self.status)


def build(inputs: int, structure: Structure, chosen: tuple[EdgeChoice, ...]) -> tuple[Form, Tensor, Tensor]:
    """Return the form of a structure with these functions, its constants, and the status of each."""
    maker = _Maker(inputs)
    system, kind, sign = structure.system, structure.kind, structure.sign
    outer = library.get(structure.outer)
    sources = _coordinates(maker, structure, chosen)
    if kind == "both":
        sums, product = chosen[: len(system)], chosen[len(system) :]
        maker.node(_sum(sources, sums))
        maker.node(
            *(_factor(s, c, 1.0, n > 0) for n, (s, c) in enumerate(zip(sources, product, strict=True)))
        )
        maker.layer()
        product_line = (Term(1, "x"), LINE, (HELD, HELD, SCALE))  # its factors have the scale
        maker.node(((0.0, FREE), [(Term(0, "x"), LINE, FIXED), product_line]))
    elif kind == "sum":
        maker.node(_sum(sources, chosen))
    else:
        whole = sign if outer.name == "x" else 1.0
        if all(c.outer == "x" for c in chosen):
            pairs = enumerate(zip(sources, chosen, strict=True))
            maker.node(*(_factor(s, c, whole if n == 0 else 1.0, n > 0) for n, (s, c) in pairs))
        else:
            factors: list[tuple[tuple[float, int], list[Line]]] = []
            for n, (s, c) in enumerate(zip(sources, chosen, strict=True)):
                maker.node(_factor(s, c, 1.0, n > 0 and c.outer != "exp"))
                size = c.outer_sign * (whole if n == 0 else 1.0)
                own = FREE if c.outer == "exp" and n == 0 else SCALE
                bias = FREE if c.outer == "x" else HELD  # it has the constant of the sum that it reads
                factors.append(((0.0, bias), [(Term(n, c.outer), (1.0, 0.0, size), (HELD, HELD, own))]))
            maker.layer()
            maker.node(*factors)
    if outer.name != "x":
        maker.layer()
        scale = HELD
        if kind == "sum" and outer.name == "exp":
            scale = FREE
        elif kind == "sum" and outer.degree:
            scale = SCALE
        maker.node(((0.0, HELD), [(Term(0, outer.name), (1.0, 0.0, sign), (HELD, HELD, scale))]))
    maker.layer()
    return maker.done()


def _coordinates(maker: _Maker, structure: Structure, chosen: tuple[EdgeChoice, ...]) -> list[int]:
    """Add the layers of the coordinates, and return where these are in the last of them."""
    rows = needed(structure.system)
    places = {c: c.place for c in rows[0]}
    for depth, row in enumerate(rows[1:], 1):
        last = depth == len(rows) - 1
        for k, c in enumerate(row):
            # where the user's function is homogeneous, a scale is its c
            own = last and structure.kind != "both" and library.get(chosen[k].name).degree is None
            status = (HELD, HELD, FREE if own else HELD)
            if c.depth < depth:
                maker.node(((0.0, FREE if last else HELD), [(Term(places[c], "x"), LINE, status)]))
                continue
            terms: list[Line] = [
                (Term(places[p.of], POWERS[p.power]), (1.0, 0.0, p.sign), status) for p in c.parts
            ]
            if c.op == "+":
                maker.node(((0.0, FREE if last else HELD), terms))
            else:
                rest: list[Line] = [(term, constants, FIXED) for term, constants, _ in terms[1:]]
                maker.node(*(((0.0, HELD), [line]) for line in (terms[0], *rest)))
        maker.layer()
        places = {c: k for k, c in enumerate(row)}
    return [places[c] for c in structure.system]


def _sum(sources: list[int], choices: tuple[EdgeChoice, ...]) -> tuple[tuple[float, int], list[Line]]:
    """Return the factor that is a sum of functions."""
    pairs = zip(sources, choices, strict=True)
    lines: list[Line] = [(Term(s, c.name), c.affine[:3], OPEN) for s, c in pairs if c.name != "0"]
    return (sum(c.affine[3] for c in choices), FREE), lines


def _factor(
    source: int, choice: EdgeChoice, scale: float, redundant: bool
) -> tuple[tuple[float, int], list[Line]]:
    """Return a factor that is a function, `scale` times; redundant: whether its scale is another factor's."""
    a, b, c, d = choice.affine
    status = SCALE if redundant else FREE
    if choice.name == "0":
        return (scale * d, status), []
    return (scale * d, FREE), [(Term(source, choice.name), (a, b, scale * c), (FREE, FREE, status))]
