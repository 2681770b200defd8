"""The search before the networks: sums and products of univariate functions of few coordinates, and a function
of these."""

import math
from collections.abc import Iterator

import torch

from . import assemble, coordinates, separable
from .joint import settled
from .networks import Trained
from .propose import first
from .reading import LIKELY, PLAINER, QUICK_STEPS, STEPS, Reader
from .separable import Splines, Structure

EACH_STAGE, AT_LAST = 2, 6  # structures that are read after each stage, and after all
REFINED = 8  # combinations of a structure that are fitted to the end
LIMITED = 2e-3  # the relative error that splines may leave of a curve
CLOSE = 1.3  # of relative errors
NEARLY = 1e-6  # the relative error of a formula that is exact but for its last steps
WORST = 0.3  # the relative error from which on no structure is read


def structures(reader: Reader, seed: int) -> Iterator[tuple[Structure, Trained]]:
    """Add the laws of separable structures to the reader's pool, yield each structure that was read."""
    splines = Splines(reader.data)
    goals = list(separable.targets(splines.y, reader.allowed))
    spread = float(reader.data.scale[0])
    low, high = float(splines.y.min()), float(splines.y.max())
    near = low * high <= 0 or min(abs(low), abs(high)) < 0.02 * max(abs(low), abs(high))
    found: list[Structure] = []
    left: list[int] = []

    def take(limit: float, count: int) -> Iterator[tuple[Structure, Trained]]:
        left.sort(key=lambda n: (_rank(found[n], spread), n))
        for n in [n for n in left if found[n].valid / spread <= limit][:count]:
            left.remove(n)
            structure = found[n]
            trained = Trained(None, seed, structure.train**2, structure.valid**2)  # type: ignore[arg-type]
            read(reader, splines, structure, trained, spread)
            yield structure, trained
            if reader.pool.best().exact:
                return

    for stage in coordinates.systems(reader.data.train.x, reader.allowed):
        start = len(found)
        for system in stage:
            found += splines.sums(system, goals)
            if len(system) > 1:
                found += [
                    splines.product(system, goal)
                    for goal in goals
                    if goal.name in ("arcsin", "arctan") or (goal.name == "x" and near)
                ]
            reader.tick()
        left += range(start, len(found))
        yield from take(LIMITED, EACH_STAGE)
        if reader.pool.best().exact:
            return
    system = coordinates.inputs(reader.data.train.x)
    if len(system) > 1:
        for goal in goals:
            if goal.name in ("x", "1/x"):
                found.append(splines.both(system, goal))
                left.append(len(found) - 1)
                reader.tick()
    least = max(min(s.valid for s in found) / spread, LIMITED)
    yield from take(min(CLOSE * least, WORST), AT_LAST)


def _rank(structure: Structure, spread: float) -> float:
    """Return what structures are sorted by: the error, and what they are made of."""
    cost = 0.3 * len(structure.weights) + 0.1 * sum(c.cost for c in structure.system)
    return math.log2(max(structure.valid / spread, LIMITED / 2)) + cost + 0.1 * (structure.outer != "x")


def read(
    reader: Reader, splines: Splines, structure: Structure, trained: Trained, spread: float
) -> None:
    """Add the laws of one structure to the pool."""
    edges = assemble.choices(splines, structure, reader.functions, spread)
    reader.tick()
    inputs = reader.data.train.x.shape[1]
    tried = []
    for chosen in dict.fromkeys(first(edges, LIKELY) + first(edges, PLAINER, plainness=4.0)):
        form, theta, status = assemble.build(inputs, structure, chosen)
        theta = settled(form, theta)
        theta, value = reader.quick.fit(form, theta, form.free() & (status == assemble.FREE), QUICK_STEPS)
        reader.tick()
        if math.isfinite(value):
            value = max(value, reader.data.exact**2)  # what is less is rounding
            tried.append((value, sum(c.complexity for c in chosen), len(tried), form, theta, status))
        if value <= reader.data.exact**2:
            break
    tried.sort(key=lambda t: t[:3])
    if not tried:
        return
    limit = reader.data.train.limit(tried[0][0], 1.2)
    close = sorted((t for t in tried if t[0] <= limit), key=lambda t: (t[1], *t[:3]))
    refined = {t[2]: t for t in [tried[0], *close]}
    for _, _, _, form, theta, status in list(refined.values())[:REFINED]:
        free = form.free() & (status == assemble.FREE)
        theta, value = reader.data.train.fit(form, theta, free, STEPS, 1e-12)
        if reader.data.exact < value**0.5 < NEARLY * spread:  # a constant that should be 0 may be what is left
            other = torch.where(free & (theta.abs() < 100 * NEARLY), 0.0, theta)
            other, found = reader.data.train.fit(form, other, free & (other != 0), STEPS, 1e-12)
            theta, value = (other, found) if found <= value else (theta, value)
        reader.tick()
        if math.isfinite(value) and math.isfinite(reader.data.valid.value(form, theta)):
            reader.plain(form, theta, trained, structure.shape, status == assemble.HELD)
        if reader.pool.best().exact:
            return
