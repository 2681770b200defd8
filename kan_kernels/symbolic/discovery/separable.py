"""Which sums or products of univariate functions explain the data: splines of coordinates, fitted at once.

One-layer KANs, whose coefficients are a linear regression: F(f_1(z_1) + f_2(z_2) + ...) for several known F,
f_1(z_1) f_2(z_2) ... by alternating regressions, and a sum and a product together.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ... import functional as F
from ...nn import function_library as library
from .coordinates import Coordinate, System
from .networks import Data

ORDER = 5
CELLS = (40, 24, 16)  # for one, two, and three or more coordinates
FITTED, JUDGED = 1000, 500  # rows
SWEEPS, STALLED = 12, 0.98  # of a product; a sweep that leaves more of the error is the last
SWEEPS_BOTH, STALLED_BOTH = 60, 0.997
RIDGE = 1e-11


class Target(NamedTuple):
    """A function F of which y = sign F(s) may be: s on the rows fitted, and F's name."""

    name: str
    sign: float
    value: Tensor


class Structure(NamedTuple):
    """A sum, a product, or a sum and a product of splines, behind a function.

    Attributes:
        kind: "sum", "product" or "both".
        system: the coordinates. outer: the last function's name, and its sign.
        weights: (functions,) of each spline; of "both" first those of the sum, then those of the product.
        logs: whether the factors of a product are the exponentials of the splines.
        train, valid: root mean square errors of y.
    """

    kind: str
    system: System
    outer: str
    sign: float
    weights: tuple[Tensor, ...]
    logs: bool
    train: float
    valid: float

    @property
    def shape(self) -> str:
        """Return it in words."""
        what = {"sum": "sum", "product": "product", "both": "sum and product"}[self.kind]
        behind = "" if self.outer == "x" else f" behind {self.outer}"
        return f"{what} of {len(self.system)} splines{behind}"


def targets(y: Tensor, names: set[str]) -> Iterator[Target]:
    """Yield what y is a function of, the plainest first; y: (n,)."""
    low, high = float(y.min()), float(y.max())
    size = max(abs(low), abs(high))
    sign = 1.0 if low >= 0 else -1.0
    found: list[tuple[str, float, Tensor]] = [("x", 1.0, y)]
    away = low * high > 0 and min(abs(low), abs(high)) > 1e-3 * size
    if low * high >= 0:
        found += [("sqrt", sign, y.square()), ("x^2", sign, y.abs().sqrt())]
    if away:
        inverse = 1 / y.abs()
        found += [("exp", sign, y.abs().log()), ("1/x", sign, inverse), ("1/sqrt", sign, inverse.square())]
    if size < 30:
        found.append(("log", 1.0, y.exp()))
    if size < 1.1 * math.pi / 2:
        found.append(("arcsin", 1.0, y.clamp(-math.pi / 2, math.pi / 2).sin()))
    if size < 1.5:
        found.append(("arctan", 1.0, y.tan()))
    if low >= 0 and high <= math.pi:
        found.append(("arccos", 1.0, y.cos()))
    if size < 0.999:
        found.append(("tanh", 1.0, y.atanh()))
    for name, sign, value in found:
        # "x" is no function here, and a sum of logarithms is a product
        if (name in names or name in ("x", "exp")) and value.isfinite().all():
            yield Target(name, sign, value)


class Splines:
    """The rows of a search, and the spline bases of coordinates on them."""

    def __init__(self, data: Data) -> None:
        self.x, self.new = data.train.x[:FITTED], data.valid.x[:JUDGED]
        self.y, self.check = data.train.y[:FITTED, 0], data.valid.y[:JUDGED, 0]
        self.bases: dict[tuple[Coordinate, int], tuple[Tensor, Tensor, Tensor]] = {}

    def of(self, coordinate: Coordinate, cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the basis on the rows fitted, on those that judge, and the knots."""
        key = coordinate, max(1, min(cells, len(self.x) // 10))
        if key not in self.bases:
            value, new = coordinate.value(self.x), coordinate.value(self.new)
            knots = _knots(value, key[1])
            low, high = float(knots[ORDER]), float(knots[-1 - ORDER])
            new = new.clamp(low, high)
            self.bases[key] = (basis(value, knots), basis(new, knots), knots)
        return self.bases[key]

    def sums(self, system: System, goals: list[Target]) -> Iterator[Structure]:
        """Yield F(sum of splines) for each F."""
        parts = [self.of(c, cells(len(system))) for c in system]
        design, new = (torch.cat([p[n] for p in parts], 1) for n in (0, 1))
        goal = torch.stack([t.value for t in goals], 1)
        center, scale = goal.mean(0), goal.std(0, correction=0).clamp(min=1e-300)
        weights = solve(design, (goal - center) / scale) * scale
        first = parts[0][0].shape[1]  # functions that add up to 1: the constant
        weights[:first] += center
        for n, (name, sign, _) in enumerate(goals):
            outer = library.get(name)
            low, high = outer.domain
            errors = [
                _rms(sign * outer.torch((d @ weights[:, n]).clamp(low, high)) - y)
                for d, y in ((design, self.y), (new, self.check))
            ]
            own = weights[:, n].split([p[0].shape[1] for p in parts])
            product = name == "exp" and len(system) > 1
            yield Structure(
                "product" if product else "sum", system, "x" if product else name, sign, own, product, *errors
            )

    def product(self, system: System, goal: Target) -> Structure:
        """Return F(product of splines)."""
        parts = [self.of(c, cells(len(system))) for c in system]
        scale = float(goal.value.square().mean().sqrt())
        weights = [torch.ones(p[0].shape[1], dtype=torch.float64) for p in parts]
        values = [p[0] @ w for p, w in zip(parts, weights, strict=True)]
        before = math.inf
        for _ in range(SWEEPS):
            for k, (design, _, _) in enumerate(parts):
                others = torch.stack([v for j, v in enumerate(values) if j != k]).prod(0)
                weights[k] = solve(design * others[:, None], goal.value[:, None])[:, 0]
                values[k] = design @ weights[k]
                size = values[k].square().mean().sqrt().clamp(min=1e-300)
                if k < len(parts) - 1:
                    weights[k], values[k] = weights[k] / size, values[k] / size
            error = _rms(torch.stack(values).prod(0) - goal.value) / max(scale, 1e-300)
            if error > STALLED * before or not math.isfinite(error):
                break
            before = error
        outer = library.get(goal.name)
        errors = [
            _rms(goal.sign * outer.torch(torch.stack(v).prod(0).clamp(*outer.domain)) - y)
            for v, y in (
                (values, self.y),
                ([p[1] @ w for p, w in zip(parts, weights, strict=True)], self.check),
            )
        ]
        return Structure("product", system, goal.name, goal.sign, tuple(weights), False, *errors)

    def both(self, system: System, goal: Target) -> Structure:
        """Return F(sum of splines + product of splines)."""
        count = len(system)
        parts = [self.of(c, cells(3)) for c in system]
        design = torch.cat([p[0] for p in parts], 1)
        sizes = [p[0].shape[1] for p in parts]
        values = []
        for c in system:
            z = c.value(self.x)
            values.append((z - z.mean()) / z.std(correction=0).clamp(min=1e-300))
        weights = [torch.zeros(n, dtype=torch.float64) for n in sizes]
        before, solution = math.inf, torch.zeros(0)
        for _ in range(SWEEPS_BOTH):
            for k, (own, _, _) in enumerate(parts):
                others = torch.stack([v for j, v in enumerate(values) if j != k]).prod(0)
                whole = torch.cat((design, own * others[:, None]), 1)
                solution = solve(whole, goal.value[:, None])[:, 0]
                weights[k] = solution[-sizes[k] :]
                values[k] = own @ weights[k]
                if k < count - 1:
                    size = values[k].square().mean().sqrt().clamp(min=1e-300)
                    weights[k], values[k] = weights[k] / size, values[k] / size
            error = _rms(design @ solution[: -sizes[-1]] + torch.stack(values).prod(0) - goal.value)
            if error > STALLED_BOTH * before or not math.isfinite(error):
                break
            before = error
        sums = solution[: -sizes[-1]].split(sizes)
        outer = library.get(goal.name)
        errors = []
        for n, y in ((0, self.y), (1, self.check)):
            product = torch.stack([p[n] @ w for p, w in zip(parts, weights, strict=True)]).prod(0)
            total = sum((p[n] @ w for p, w in zip(parts, sums, strict=True)), product)
            errors.append(_rms(goal.sign * outer.torch(total.clamp(*outer.domain)) - y))
        return Structure("both", system, goal.name, goal.sign, (*sums, *weights), False, *errors)


def cells(count: int) -> int:
    """Return how many cells the splines of so many coordinates have."""
    return CELLS[min(count, len(CELLS)) - 1]


def basis(value: Tensor, knots: Tensor) -> Tensor:
    """Return the spline functions at values (n,), (n, functions); the last knot belongs to the last cell."""
    last = float(knots[-1 - ORDER])
    inside = math.nextafter(last, -math.inf)
    return F.bspline_basis(value.clamp(max=inside)[:, None], knots[None], ORDER)[:, 0]


def _knots(value: Tensor, count: int) -> Tensor:
    """Return knots halfway between even ones and quantiles."""
    low, high = value.min(), value.max()
    ranks = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    inner = (torch.quantile(value, ranks) + torch.lerp(low, high, ranks)) / 2
    steps = torch.arange(1, ORDER + 1, dtype=torch.float64)
    before, after = inner[1] - inner[0], inner[-1] - inner[-2]
    return torch.cat((inner[0] - before * steps.flip(0), inner, inner[-1] + after * steps))


def solve(design: Tensor, goal: Tensor) -> Tensor:
    """Return the weights of a linear regression, a little towards 0."""
    matrix = design.t() @ design
    ridge = RIDGE * matrix.diagonal().sum().clamp(min=1e-300) + 1e-300
    factor, info = torch.linalg.cholesky_ex(matrix + ridge * torch.eye(len(matrix), dtype=torch.float64))
    if int(info):
        return torch.full((design.shape[1], goal.shape[1]), math.nan, dtype=torch.float64)
    return torch.cholesky_solve(design.t() @ goal, factor)


def _rms(value: Tensor) -> float:
    found = float(value.square().mean().sqrt())
    return found if math.isfinite(found) else math.inf
