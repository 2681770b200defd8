"""From the curves of a trained network to forms with first constants, in the order in which to try them."""

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...composition import products_of
from ...inspection import edge_deviations, node_values
from ...nn import KAN
from ...nn import function_library as library
from ..actions import Candidate, _fit_edges
from ..curves import active_pairs
from ..descent import curvature_of
from .form import Form, Term
from .networks import Data, Trained
from .simplify import cleaned

EACH = 5  # functions of an edge that are tried
SEEN = 0.1  # of the rows, that curves are read by at least
WEIGHT = 0.6  # of a point of complexity, against a halving of what is unexplained


class EdgeChoice(NamedTuple):
    """A function for an edge of a network: (a, b, c, d) in the formula's units, its complexity, and log2 of
    the share of the outputs' variance that it leaves unexplained. The edge is outer_sign outer(that).
    """

    name: str
    affine: tuple[float, ...]
    complexity: float
    unexplained: float
    outer: str = "x"
    outer_sign: float = 1.0

    def score(self, plainness: float = 1.0) -> float:
        """Return what combinations are sorted by, the least first."""
        return plainness * WEIGHT * self.complexity + self.unexplained


Edges = dict[tuple[int, int, int], list[EdgeChoice]]  # by layer, input, output; the best first


def choices(data: Data, trained: Trained, functions: list[library.Function]) -> Edges:
    """Return the best functions of every edge that is on."""
    x = data.units(data.train.x)
    if data.train.loss is not None:
        x = x[weighed(data, trained)]
    reached = list(zip(trained.model.layers, node_values(trained.model, x), strict=False))
    floor = min(max(trained.valid / data.variance, 1e-14), 1e-2)
    found: Edges = {}
    for n, ((layer, inputs), share) in enumerate(zip(reached, _shares(trained.model, reached), strict=True)):
        pairs = active_pairs(layer)
        for (i, o), ranked in zip(pairs, _fit_edges(layer, pairs, inputs, functions, 0.0), strict=True):
            options = [
                _choice(c, _units(data, len(reached), n, i, o, c), floor, float(share[i, o])) for c in ranked
            ]
            options = [c for c in options if all(map(math.isfinite, c.affine))]
            best: list[EdgeChoice] = []
            for plainness in (1.0, 4.0):
                best += sorted(options, key=lambda choice: choice.score(plainness))[:EACH]
            found[n, i, o] = list(dict.fromkeys(best))
    return found


def weighed(data: Data, trained: Trained) -> Tensor:
    """Return rows, (n,), each as often as the loss is curved there: where curves matter to the loss.

    A classifier's curves go far up and down where it is sure, and what they are there makes no difference.
    """
    rows = data.train
    with torch.no_grad():
        prediction = trained.model(data.units(rows.x))
    if rows.loss is None or not prediction.isfinite().all():
        return torch.arange(len(rows.x))
    _, curvature = curvature_of(rows.loss, prediction, rows.y)
    weight = curvature.diagonal(dim1=1, dim2=2).sum(1)
    if not weight.isfinite().all() or not bool((weight > 0).any()):
        return torch.arange(len(rows.x))
    while weight.sum().square() < SEEN * len(weight) * weight.square().sum():
        weight = (weight / weight.max()).sqrt()  # a few rows alone show no curve
    ends = weight.cumsum(0) / weight.sum()
    places = (torch.arange(len(ends), dtype=ends.dtype) + 0.5) / len(ends)
    return torch.searchsorted(ends, places).clamp(max=len(ends) - 1)


def _shares(model: KAN, reached: list) -> list[Tensor]:
    """Return which share of the outputs' variance hangs on an edge, at most 1: (in, out) for each layer."""
    shares: list[Tensor] = []
    products = products_of(model)
    weight: Tensor | None = None
    for n in reversed(range(len(reached))):
        layer, x = reached[n]
        edges = edge_deviations(layer, x).double().square()
        total = edges.sum(0).clamp(min=1e-300)  # curves that cancel count by what they are
        weight = torch.ones(edges.shape[1], dtype=torch.float64) if weight is None else weight
        share = (edges / total * weight).clamp(max=1.0)
        shares.insert(0, share)
        weight = share.sum(1)
        if n > 0:
            weight = products[n - 1].hand_down(weight)
    return shares


def _choice(candidate: Candidate, affine: tuple[float, ...], floor: float, share: float) -> EdgeChoice:
    shifted = candidate.affine[1] != 0 and candidate.name not in ("0", "x")
    unexplained = math.log2(share * max(1 - candidate.r2, 0.0) + floor)
    return EdgeChoice(candidate.name, affine, candidate.complexity + 0.5 * shifted, unexplained)


def _units(data: Data, count: int, n: int, i: int, o: int, candidate: Candidate) -> tuple[float, ...]:
    """Return the constants of a fit for inputs and outputs in the user's units."""
    a, b, c, d = candidate.affine
    if n == 0:
        center, half = float(data.center[i]), float(data.half[i])
        a, b = a / half, b - a * center / half
    if n == count - 1:
        scale = float(data.scale[o])
        c, d = c * scale, d * scale
    plain = library.get(candidate.name).canonical(torch.tensor([a, b, c, d], dtype=torch.float64))
    return tuple(plain.tolist())


def ordered(edges: Edges, plainness: float) -> Iterator[tuple[EdgeChoice, ...]]:
    """Yield combinations of a function for each edge, the least sum of scores first."""
    lists = [sorted(options, key=lambda choice: choice.score(plainness)) for options in edges.values()]
    scores = [[choice.score(plainness) for choice in options] for options in lists]
    start = (0,) * len(lists)
    heap, seen = [(sum(row[0] for row in scores), start)], {start}
    while heap:
        total, places = heapq.heappop(heap)
        yield tuple(options[p] for options, p in zip(lists, places, strict=True))
        for k, row in enumerate(scores):
            p = places[k] + 1
            after = (*places[:k], p, *places[k + 1 :])
            if p < len(row) and after not in seen:
                seen.add(after)
                heapq.heappush(heap, (total + row[p] - row[p - 1], after))


def build(data: Data, trained: Trained, keys: list, chosen: tuple[EdgeChoice, ...]) -> tuple[Form, Tensor]:
    """Return the form of a combination, with the constants of the fits to the curves."""
    model = trained.model
    terms: dict[tuple[int, int], list] = {}
    for (n, i, o), choice in zip(keys, chosen, strict=True):
        terms.setdefault((n, o), []).append((i, choice))
    layers, constants = [], []
    pairs = list(zip(model.layers, products_of(model), strict=True))
    for n, (layer, products) in enumerate(pairs):
        factors = []
        last = n == len(pairs) - 1
        for o in range(layer.out_features):
            row = terms.get((n, o), [])
            bias = 0.0 if layer.bias is None else float(layer.bias[o].detach())
            if last:
                bias = bias * float(data.scale[o]) + float(data.mean[o])
            bias += sum(choice.affine[3] for _, choice in row)
            row = [(i, choice) for i, choice in row if choice.name != "0"]
            constants.append(bias)
            for _, choice in row:
                constants += choice.affine[:3]
            factors.append(tuple(Term(i, choice.name) for i, choice in row))
        layers.append(tuple(tuple(factors[s] for s in group) for group in products.groups()))
    theta = torch.tensor(constants, dtype=torch.float64)
    return cleaned(Form(pairs[0][0].in_features, tuple(layers)), theta)


def first(edges: Edges, count: int, plainness: float = 1.0) -> list[tuple[EdgeChoice, ...]]:
    """Return so many combinations, the most likely first; a larger `plainness` asks more for complexity."""
    return list(itertools.islice(ordered(edges, plainness), count))
