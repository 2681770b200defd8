"""`discover`: the search as a whole, its budget, its checkpoint."""

import hashlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core import checks, threads
from ...nn import function_library as library
from ...training.loop import _bar
from . import coordinates, direct, inputs, laws, networks, reading
from .checkpoint import Checkpoint
from .joint import Loss
from .laws import Pool, short
from .networks import Data, Trained, Widths
from .result import Discovery
from .shapes import groups_of, proposed, shapes_of

PROBE = 1  # the place of the network that is looked at for its structure, where no regression was before
READ = 3  # networks of a shape that are trained to the end and read, the best of all seeds


def discover(
    x: Any,
    y: Any = None,
    names: Sequence[str] | None = None,
    *,
    budget: float = 60,
    work: int | None = None,
    seeds: Iterable[int] = range(8),
    shapes: Any = "auto",
    loss: Loss | None = None,
    functions: Iterable[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Discovery:
    """Find a formula of the data: train KANs, read their edges, fit all constants together.

    First come sums and products of univariate functions, behind a function, of the inputs and of products,
    ratios, sums and differences of two or three of them: one-layer KANs whose splines are a regression.
    Of each shape, from the simplest on, a network is trained coarsely for every seed; the three best are
    trained to the end and read, the best of later shapes before the third of earlier ones. What separates
    in a network (`kan_kernels.structure`) is tried next, in shapes and regressions of it. The functions
    are those with which the whole formula has the least error, after all constants were fitted together;
    terms go, and constants become plain numbers, where that does not hurt on rows that were not fitted. The
    search ends early at a formula that leaves nothing but rounding.

    What is found depends on the data, the seeds and the options. Time only decides after how much work the
    search ends: the same `work` gives the same result on any clock.

    Args:
        x: (n, in) or (n,), a tensor, an array or a data frame, no column constant; or a `data.Dataset`, whose
            training rows are searched in the data's own units: standardising leaves no trace in the law.
        y: (n, out) or (n,), likewise; integer classes beside a loss that takes them. None beside a Dataset.
            The error is that of all outputs together: one that is tiny beside another needs units of its own.
        names: of the inputs, identifiers; those of the data set or frame, or x_1, x_2, ... by default.
        budget: seconds. The training or fit that is running is finished.
        work: trainings and fits, in place of the budget.
        seeds: of the networks; the first also decides which rows are fitted (three of four, at most 2000) and
            which judge (at most 4096).
        shapes: "auto", or widths such as [2, 1, 1], or [2, (1, 2), 1] with one sum and two products of sums;
            nothing else is looked at then.
        loss: of (prediction, y), a scalar, a mean over rows; None for the mean squared error. A
            prediction is (n, out) in float64, where classes are given (n, classes). Curves are read by the
            rows at which it is curved: of a classifier, near the border.
        functions: names from the library that edges may become; None: all.
        checkpoint: a file that is written after every network and every structure that was read; resume
            continues from it, if it is there, to what a search that was never broken off finds.
        resume: whether to.
        progress: a progress bar with the best formula so far (needs tqdm); None shows one on a terminal.

    Returns:
        The result: a front of formulas, the best, its model. KeyboardInterrupt ends the search with what is
        found.

    Raises:
        ImportError: sympy is missing. ModuleNotFoundError: progress=True without tqdm.
        TypeError, ValueError: naming the argument, before anything is trained.

    Example:
        >>> x = torch.rand(200, 2, dtype=torch.float64)
        >>> options = {"functions": ["x", "x^2", "exp"], "seeds": range(3), "budget": 600}
        >>> found = symbolic.discover(x, (x[:, 0] ** 2 + x[:, 1]).exp(), names=["a", "b"], **options)
        >>> found.formula, found.best.exact
        (exp(a**2 + b), True)
    """
    checks.nonnegative("budget", budget)
    work = None if work is None else checks.integer("work", work, 0)
    if isinstance(seeds, (str, int)) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds: got {seeds!r}, expected several integers")
    seeds = [checks.integer("seeds: seed", seed, 0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds!r}, expected different integers, at least one")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {loss!r}, expected a function of (prediction, y)")
    x, y, names, kept = inputs.given(x, y, names)
    rows, target, outputs, eps = inputs.rows_of(x, y, loss)
    eps = eps if kept is None else kept
    known = inputs.names_of(names, rows.shape[1])
    wanted = shapes_of(shapes, rows.shape[1], outputs)
    candidates = library.resolve(functions, "functions")
    resume = checks.boolean("resume", resume)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint: there is no folder {str(path.parent)!r}")
    if path is not None and path.is_dir():
        raise ValueError(f"checkpoint: {str(path)!r} is a folder, expected a file")
    if resume and path is None:
        raise ValueError("resume: got True without checkpoint, expected the file to resume from")
    open_bar = _bar(None if progress is None else checks.boolean("progress", progress))
    data = inputs.split(rows, target, outputs, eps, loss, seeds[0])
    with threads.few(len(data.train.x)), open_bar(total=None) as bar:
        run = Search(data, known, seeds, wanted, candidates, budget, work, bar, isinstance(shapes, str))
        if path is not None:
            identity = _identity(rows, target, known, seeds, wanted, candidates, loss, outputs)
            run.checkpoint = Checkpoint(path, identity)
            if resume and path.exists():
                run.checkpoint.load(run)
        return run.all()


def _identity(
    rows: Tensor, target: Tensor, names, seeds, shapes, functions, loss: Loss | None, outputs
) -> str:
    """Return a digest of what a search depends on, the loss by its values."""
    parts = (names, seeds, [str(list(s)) for s in shapes], [f.name for f in functions])
    digest = hashlib.sha256(repr((*parts, inputs.values_of(loss, target, outputs))).encode())
    digest.update(rows.numpy().tobytes())
    digest.update(target.numpy().tobytes())
    return digest.hexdigest()


class _Spent(Exception):
    """A sign that the budget or the work that was asked for is done."""


class Search:
    """A search under way."""

    def __init__(
        self, data: Data, names: tuple[str, ...], seeds: list[int], shapes: list[Widths],
        functions: list[library.Function], budget: float, work: int | None, bar: Any, all_shapes: bool,
    ) -> None:  # fmt: skip
        squared = data.train.loss is None
        self.direct = all_shapes and squared and data.outputs == 1
        self.pool = Pool(data.exact if squared else -math.inf)
        self.data, self.seeds, self.shapes, self.bar = data, seeds, shapes, bar
        self.limit = work
        self.start = time.monotonic()
        self.deadline = self.start + budget
        self.before = 0.0  # seconds of the searches that this one continues
        self.work = self.stage = self.networks = 0
        self.opened = 0  # 1: a constant and a line are there; 2: all that needs no training
        self.structures = self.skipped = 0  # that were read; those of them that a resumed search passes by
        self.shown = ""
        self.least = math.inf  # loss of the networks read
        self.started: dict[int, list[Trained]] = {}  # by the shape's number, in the order of the seeds
        self.checkpoint: Checkpoint | None = None
        # the best network of the first three shapes comes before the second best of the first, and so on
        places = [(n, r) for n, shape in enumerate(shapes) for r in range(min(READ, len(self._seeds(shape))))]
        self.order = sorted(places, key=lambda place: (place[0] + 2 * place[1], place[0]))
        self.all_shapes = all_shapes
        if all_shapes and (not self.direct or data.train.x.shape[1] > coordinates.PAIRS):
            widest = (len(shapes) - 1, 0)  # whose structure says what else to try
            self.order.remove(widest)
            self.order.insert(PROBE, widest)
        self.grouped: set[tuple] = set()  # kinds and groups of inputs that were looked at
        self.reader = reading.Reader(data, self.pool, functions, names, self.tick)

    def tick(self) -> None:
        """Count a training or a fit; end the search where the budget is spent."""
        if self.skipped:  # this was counted before
            return
        self.work += 1
        if self.bar is not None:
            self.bar.update()
            if self.pool.laws:
                best = self.pool.best()
                text = f"{best.loss:.1e}  {', '.join(short(e) for e in best.expressions)}"
                if text != self.shown:
                    self.bar.set_description_str(text[:100], refresh=False)
                    self.shown = text
        if self.limit is None:
            if time.monotonic() >= self.deadline:
                raise _Spent
        elif self.work >= self.limit:
            raise _Spent

    def all(self) -> Discovery:
        """Read the networks that are left, and return what was found."""
        stopped = "searched"
        try:
            if not self.opened:
                self._plainest()
                self._save(opened=1)
            if self.opened == 1:
                self._without_networks()
                self._save(opened=2)
            while self.stage < len(self.order) and not self.pool.best().exact:
                self._read(*self.order[self.stage])
                self.stage += 1
                self._save()
            if self.pool.best().exact:
                stopped = "exact"
            self.reader.plainer(self.pool.best())
        except _Spent:
            if stopped != "exact":
                stopped = "budget" if self.limit is None else "work"
        except KeyboardInterrupt:
            stopped = "interrupted"
            if not self.pool.laws:
                self._constant()
        seconds = time.monotonic() - self.start + self.before
        front = self.pool.front()
        for law in front:
            if law.network is None and self.networks + self.structures:
                law.network = laws.rms(self.least) if law.squared else self.least
        best = self.pool.best()
        return Discovery(tuple(front), best, stopped, self.work, seconds, self.networks, self.structures)

    def _save(self, opened: int | None = None) -> None:
        """Write a checkpoint: what follows does not depend on whether the search was broken off here."""
        self.opened = self.opened if opened is None else opened
        if self.checkpoint is not None:
            self.checkpoint.save(self)

    def _constant(self) -> None:
        values = self.data.mean if self.data.train.loss is None else torch.zeros(self.data.outputs)
        form, theta = reading.constant(self.data.outputs, self.data.train.x.shape[1], values)
        theta, _ = self.data.train.fit(form, theta, form.free(), 30, 1e-12)
        self.reader.keep(form, theta, None, "constant")  # something is there before time can run out

    def _plainest(self) -> None:
        self._constant()
        self.tick()
        law = self.pool.best()
        self.reader.plain(law.form, law.theta, None, "constant")
        form, theta = reading.linear(self.data)
        if "x" in self.reader.allowed:
            self.reader.add(form, theta, None, "linear")

    def _without_networks(self) -> None:
        if not self.direct or self.pool.best().exact:
            return
        self.skipped = self.structures
        for judged in direct.laws(self.reader, self.structures):
            if self.skipped:
                self.skipped -= 1
                continue
            self.structures += 1
            self.least = min(self.least, judged.valid)
            self._save()

    def _read(self, number: int, rank: int) -> None:
        """Train the network of a shape that comes at this rank among all seeds to the end, and read it."""
        shape = self.shapes[number]
        started = self.started.setdefault(number, [])
        for seed in self._seeds(shape)[len(started) :]:
            started.append(networks.coarse(self.data, shape, seed))
            self.tick()
            self._save()
        ranked = sorted(started, key=lambda network: (network.valid != network.valid, network.valid))
        trained = networks.fine(self.data, ranked[rank])
        self.least = min(self.least, trained.valid)
        self.tick()
        if self.all_shapes and self._propose(trained, (number, rank)):
            return
        self.networks += 1
        self.reader.read(trained, str(list(shape)))

    def _propose(self, trained: Trained, place: tuple[int, int]) -> bool:
        """Put shapes before a network that have the structure that it has, where no network had it before.

        Where splines of coordinates are a regression, they are looked at here. Returns whether the network
        has to wait.
        """
        found = {kind: tuple(own) for kind, own in groups_of(self.data, trained).items()}
        groups = {kind: own for kind, own in found.items() if (kind, own) not in self.grouped}
        self.grouped.update(groups.items())
        count = self.data.train.x.shape[1]
        for own in dict.fromkeys(groups.values()) if self.direct and count > coordinates.PAIRS else ():
            for judged in direct.grouped_laws(self.reader, own):
                self.structures += 1
                self.least = min(self.least, judged.valid)
                if self.pool.best().exact:
                    return True
        left = self.order[self.stage + 1 :]
        first: list[tuple[int, int]] = []
        for shape in proposed(groups, count, self.data.outputs):
            if shape not in self.shapes:
                self.shapes.append(shape)
                left += [(len(self.shapes) - 1, rank) for rank in range(min(READ, len(self.seeds)))]
            other = (self.shapes.index(shape), 0)
            if other in left and other not in first:
                first.append(other)
        rest = [other for other in left if other not in first]
        self.order[self.stage + 1 :] = [*first, place, *rest] if first else rest
        return bool(first)

    def _seeds(self, shape: Widths) -> list[int]:
        return self.seeds if len(shape) > 2 else self.seeds[:1]  # one layer is nearly convex
