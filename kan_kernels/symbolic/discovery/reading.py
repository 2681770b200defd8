"""From one trained network to laws: combinations of functions, tried on few rows, the best made plain."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...nn import function_library as library
from .constants import scaled, snapped, turned
from .form import Form, Term, evaluate
from .joint import Rows, head, inside, settled
from .laws import Law, Pool, rms
from .networks import Data, Judged, Trained
from .propose import Edges, build, choices, ordered
from .simplify import cleaned, simplified

LIKELY, PLAINER = 20, 8  # combinations that are tried: by what they explain, and by what is plain
QUICK_ROWS, QUICK_STEPS, STEPS = 250, 15, 80
EXAMINED = 5  # so many times more are looked at, as different choices often make the same form
REFINED = 3


class Reader:
    """The search's data, its laws, and what counts its work."""

    def __init__(
        self, data: Data, pool: Pool, functions: list[library.Function], names: tuple[str, ...],
        tick: Callable[[], None],
    ) -> None:  # fmt: skip
        self.data, self.pool, self.functions, self.names, self.tick = data, pool, functions, names, tick
        self.allowed = {function.name for function in functions}
        self.quick = data.train.part(QUICK_ROWS)

    def read(self, trained: Trained, shape: str) -> None:
        """Add the laws of a network to the pool."""
        edges = choices(self.data, trained, self.functions)
        self.tick()
        tried: list[tuple[float, float, int, Form, Tensor]] = []
        for chosen, form, theta in different(self.data, trained, edges):
            theta = inside(form, settled(form, theta), self.data.train.x)
            theta, _ = self.quick.fit(form, theta, head(form) & form.free(), 2)
            theta, value = self.quick.fit(form, theta, form.free(), QUICK_STEPS)
            self.tick()
            cost = sum(choice.complexity for choice in chosen)
            if math.isfinite(value):
                tried.append((value, cost, len(tried), form, theta))
            if value <= self.data.train.floor:
                break
        tried.sort(key=lambda t: t[:3])
        if not tried:
            return
        limit = self.data.train.limit(tried[0][0], 2.0)
        close = sorted((t for t in tried if t[0] <= limit), key=lambda t: (t[1], *t[:3]))
        refined = {t[2]: t for t in [tried[0], *close]}
        for _, _, _, form, theta in list(refined.values())[:REFINED]:
            self.add(form, theta, trained, shape)
            if self.pool.best().exact:
                return

    def add(self, form: Form, theta: Tensor, trained: Judged | None, shape: str) -> Law | None:
        """Fit a formula on all rows, simplify it, make its constants plain, and add it to the pool."""
        train, valid = self.data.train, self.data.valid
        theta, value = train.fit(form, theta, form.free(), STEPS)
        self.tick()
        if not math.isfinite(value) or not math.isfinite(valid.value(form, theta)):
            return None
        form, theta = simplified(form, theta, train, valid, self.tick, self.allowed)
        theta, _ = train.fit(form, theta, form.free(), STEPS, 1e-12)
        self.tick()
        return self.plain(form, theta, trained, shape)

    def plain(
        self, form: Form, theta: Tensor, trained: Judged | None, shape: str, held: Tensor | None = None
    ) -> Law | None:
        """Make the constants of a fitted formula plain and add it to the pool; held ones stay as they are."""
        theta, free = settled(form, theta), form.free()
        held = torch.zeros_like(free) if held is None else held
        free = free & ~held
        if bool(free.any()):
            theta = settled(form, turned(form, theta))
            trial, left = scaled(form, theta, free, self.data.train, held)
            if _same(self.data.valid, form, theta, trial):  # scales change rounding alone
                theta, free = trial, left
            theta, free = snapped(form, theta, free, self.data.train, self.data.valid)
            self.tick()
            form, theta = cleaned(form, theta)
        return self.keep(form, theta, trained, shape)

    def keep(self, form: Form, theta: Tensor, trained: Judged | None, shape: str) -> Law | None:
        """Add a formula to the pool as it is."""
        loss, train = (rows.value(form, theta) for rows in (self.data.valid, self.data.train))
        if not (math.isfinite(loss) and math.isfinite(train)):
            return None
        squared = self.data.train.loss is None
        own = rms if squared else float
        return self.pool.add(
            Law(
                form,
                theta,
                self.names,
                own(loss),
                None if trained is None else own(trained.valid),
                own(train),
                shape,
                () if trained is None or trained.seed is None else (trained.seed,),
                squared and self._is_exact(form, theta),
                squared,
            )
        )

    def _is_exact(self, form: Form, theta: Tensor) -> bool:
        """Return whether the error of every output is rounding."""
        for rows in (self.data.train, self.data.valid):
            error = (evaluate(form, theta, rows.x)[0] - rows.y).square().mean(0).sqrt()
            if not bool((error <= self.data.exact_outputs).all()):
                return False
        return True

    def plainer(self, law: Law) -> None:
        """Add simpler formulas that are worse, for the front: what goes when the loss may grow."""
        for factor in (4.0, 30.0, 300.0):
            train, valid = (self._lenient(rows, law, factor) for rows in (self.data.train, self.data.valid))
            form, theta = simplified(law.form, law.theta, train, valid, self.tick, self.allowed)
            if form != law.form:
                theta, _ = self.data.train.fit(form, theta, form.free(), STEPS)
                found = self.plain(form, theta, None, law.shape)
                if found is not None and found.network is None:
                    found.network, found.seeds = law.network, found.seeds or law.seeds

    def _lenient(self, rows: Rows, law: Law, factor: float) -> Rows:
        """Return rows on which a loss that is `factor` times larger hurts nobody."""
        spread = self.data.variance if rows.loss is None else 0.0
        more = (factor - 1) * max(abs(rows.value(law.form, law.theta)), 1e-3 * spread)
        return replace(rows, floor=rows.floor + more)


def different(data: Data, trained: Trained, edges: Edges) -> Iterator[tuple[tuple, Form, Tensor]]:
    """Yield combinations, with the form that each makes: so many as are to be tried, no form twice."""
    keys, seen = list(edges), set[Form]()
    for count, plainness in ((LIKELY, 1.0), (PLAINER, 4.0)):
        wanted = len(seen) + count
        for chosen in itertools.islice(ordered(edges, plainness), EXAMINED * count):
            form, theta = build(data, trained, keys, chosen)
            if form not in seen:
                seen.add(form)
                yield chosen, form, theta
            if len(seen) == wanted:
                break


def _same(rows: Rows, form: Form, theta: Tensor, other: Tensor) -> bool:
    before, after = rows.value(form, theta), rows.value(form, other)
    return after <= before * (1 + 1e-6) + rows.floor


def constant(outputs: int, inputs: int, values: Tensor) -> tuple[Form, Tensor]:
    """Return the formula of constants."""
    return Form(inputs, (tuple(((),) for _ in range(outputs)),)), values.double().clone()


def linear(data: Data) -> tuple[Form, Tensor]:
    """Return the form that is linear in all inputs, with constants 0."""
    inputs = data.train.x.shape[1]
    factor = tuple(Term(i, "x") for i in range(inputs))
    row = [0.0] + [1.0, 0.0, 0.0] * inputs
    return Form(inputs, (tuple((factor,) for _ in range(data.outputs)),)), torch.tensor(
        row * data.outputs, dtype=torch.float64
    )
