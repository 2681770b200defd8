"""The search before the networks: sums and products of functions of few coordinates, and a function of these.

Splines say within milliseconds which of hundreds of such structures hold; of the best, functions are chosen,
and all constants fitted together, as for a network.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import assemble, coordinates, separable
from .form import Form
from .joint import settled
from .networks import Judged
from .propose import first
from .reading import LIKELY, PLAINER, QUICK_STEPS, STEPS, Reader
from .separable import Splines, Structure

EACH_STAGE, AT_LAST, AT_GROUPS = 2, 6, 3  # structures that are read after each stage, after all, of groups
REFINED = 8  # combinations of a structure that are fitted to the end
LIMITED = 2e-3  # the relative error that splines may leave of a curve
CLOSE, WORST = 1.3, 0.3  # of the least relative error, and the relative error up to which structures are read
AS_GOOD = 1.2  # of the loss of the best combination, up to which simpler ones are fitted to the end
NEARLY = 1e-6  # the relative error of a formula that is exact but for its last steps
ZERO = 0.02  # y comes near 0: its least size is that share of its largest


def laws(reader: Reader, known: int = 0) -> Iterator[Judged]:
    """Add the laws of separable structures to the reader's pool; yield the errors of each that was read.

    known: how many of these were read before, and need not be again.
    """
    search = _Direct(reader, known)
    for stage in coordinates.systems(reader.data.train.x, reader.allowed):
        for system in stage:
            search.look(system)
        yield from search.read(LIMITED, EACH_STAGE)
        if reader.pool.best().exact:
            return
    search.look_at_both()
    yield from search.read(search.limit(), AT_LAST)


def grouped_laws(reader: Reader, groups: Sequence[tuple[int, ...]]) -> Iterator[Judged]:
    """Add laws in which these groups of inputs separate; yield the errors of each structure that was read."""
    search = _Direct(reader, 0)
    for system in coordinates.grouped(groups, reader.data.train.x, reader.allowed):
        search.look(system)
    yield from search.read(search.limit(), AT_GROUPS)


class _Direct:
    """The structures found so far, and which of them were not read yet."""

    def __init__(self, reader: Reader, known: int) -> None:
        self.reader, self.known = reader, known
        self.splines = Splines(reader.data)
        self.goals = list(separable.targets(self.splines.y, reader.allowed))
        self.spread = float(reader.data.scale[0])
        size = self.splines.y.abs()
        changes = float(self.splines.y.min()) * float(self.splines.y.max()) <= 0
        self.near_zero = changes or float(size.min()) < ZERO * float(size.max())
        self.left: list[Structure] = []
        self.least = math.inf

    def add(self, found: list[Structure]) -> None:
        """Take structures in, and count them as a fit."""
        self.left += found
        self.least = min([self.least, *(s.valid / self.spread for s in found)])
        self.reader.tick()

    def look(self, system: coordinates.System) -> None:
        """Fit all sums of splines of these coordinates, and products that no sum of logarithms stands for."""
        allowed = {"x", *self.reader.allowed}
        found = [s for s in self.splines.sums(system, self.goals) if s.outer in allowed]
        if len(system) > 1:
            for goal in self.goals:
                if goal.name in ("arcsin", "arctan") or (goal.name == "x" and self.near_zero):
                    found.append(self.splines.product(system, goal))
        self.add(found)

    def look_at_both(self) -> None:
        """Fit a sum and a product of splines of all inputs together."""
        system = coordinates.inputs(self.reader.data.train.x)
        if 1 < len(system) <= coordinates.PAIRS:
            for goal in self.goals:
                if goal.name in ("x", "1/x"):
                    self.add([self.splines.both(system, goal)])

    def limit(self) -> float:
        """Return the relative error up to which structures are worth reading."""
        return min(CLOSE * max(self.least, LIMITED), WORST)

    def read(self, limit: float, count: int) -> Iterator[Judged]:
        """Read so many structures of a relative error up to the limit, the plainest first."""
        self.left.sort(key=self.rank)
        for structure in [s for s in self.left if s.valid / self.spread <= limit][:count]:
            self.left = [s for s in self.left if s is not structure]
            judged = Judged(None, structure.train**2, structure.valid**2)
            if self.known:
                self.known -= 1
            else:
                read(self.reader, self.splines, structure, judged, self.spread)
            yield judged
            if self.reader.pool.best().exact:
                return

    def rank(self, structure: Structure) -> float:
        """Return what structures are sorted by: bits of the error, and what they are made of."""
        cost = 0.3 * len(structure.weights) + 0.1 * sum(c.cost for c in structure.system)
        error = max(structure.valid / self.spread, LIMITED / 2)
        return math.log2(error) + cost + 0.1 * (structure.outer != "x")


def read(reader: Reader, splines: Splines, structure: Structure, judged: Judged, spread: float) -> None:
    """Add the laws of one structure to the pool."""
    edges = assemble.choices(splines, structure, reader.functions, spread)
    reader.tick()
    if not all(edges.values()):  # a curve that no function is allowed for
        return
    train, inputs = reader.data.train, reader.data.train.x.shape[1]
    rounding = reader.data.exact**2
    tried: list[tuple[float, float, int, Form, Tensor, Tensor]] = []
    for chosen in dict.fromkeys(first(edges, LIKELY) + first(edges, PLAINER, plainness=4.0)):
        form, theta, status = assemble.build(inputs, structure, chosen)
        free = form.free() & (status == assemble.FREE)
        theta, value = reader.quick.fit(form, settled(form, theta), free, QUICK_STEPS)
        reader.tick()
        if math.isfinite(value):
            cost = sum(choice.complexity for choice in chosen)
            tried.append((max(value, rounding), cost, len(tried), form, theta, status))
        if value <= rounding:
            break
    tried.sort(key=lambda t: t[:3])
    if not tried:
        return
    limit = train.limit(tried[0][0], AS_GOOD)
    close = sorted((t for t in tried if t[0] <= limit), key=lambda t: (t[1], *t[:3]))
    refined = {t[2]: t for t in [tried[0], *close]}
    for _, _, _, form, theta, status in list(refined.values())[:REFINED]:
        free = form.free() & (status == assemble.FREE)
        theta, value = train.fit(form, theta, free, STEPS, 1e-12)
        if reader.data.exact < value**0.5 < NEARLY * spread:
            # what is left may hang on constants that should be 0
            other = torch.where(free & (theta.abs() < 100 * NEARLY), 0.0, theta)
            other, found = train.fit(form, other, free & (other != 0), STEPS, 1e-12)
            theta, value = (other, found) if found <= value else (theta, value)
        reader.tick()
        if math.isfinite(value) and math.isfinite(reader.data.valid.value(form, theta)):
            law = reader.plain(form, theta, judged, structure.shape, status == assemble.HELD)
            if law is not None and law.exact:  # the last one: is all of it needed?
                reader.add(form, theta, judged, structure.shape)
        if reader.pool.best().exact:
            return
