"""What is compared: each contest gives the work of both sides, and checks that they do the same."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kan_kernels import KAN, grids, symbolic
from kan_kernels.inspection import edge_values, node_values
from kan_kernels.symbolic.search import CANCEL
from kan_kernels.training import direct, fit
from kan_kernels.training.lbfgs import LBFGS

from . import twin

SAME = 1e-10  # the two networks before the work, relative to the largest output
FIRST_STEP = 1e-6  # relative difference of the losses after one step of LBFGS
SAME_R2 = 1e-6  # of two fits of one function: ours keep terms from cancelling, which may cost as much
LOSS = 1.1  # ratio of the RMSEs at the end: rounding grows with every step
MOVED = 1.5  # ratio of how far update_grid moves the outputs: the quantiles are up to one sample apart


class Job:
    """Work on a model that is made anew, outside of the timing, before each call."""

    def __init__(self, make: Callable[[], Any], work: Callable[[Any], Any]) -> None:
        self.make, self.work = make, work
        self.model = self.result = None
        self.seconds = 0.0

    def prepare(self) -> None:
        self.model = self.result = None
        self.model = self.make()

    def __call__(self) -> None:
        start = time.perf_counter()
        self.result = self.work(self.model)
        self.seconds = time.perf_counter() - start


def clock(call: Callable[[], object], inner: int) -> float:
    """Seconds in the calls alone."""
    assert isinstance(call, Job)
    seconds = 0.0
    for _ in range(inner):
        call.prepare()
        call()
        seconds += call.seconds
    return seconds


@dataclass
class Contest:
    """One row of the table.

    wanted: how many times faster we set out to be. once: pykan takes minutes, so it runs once, for time and
    memory, and without a warm-up. check: after both ran, what they did, and why it is not the same, or None.
    """

    what: str
    wanted: float
    ours: Job
    theirs: Job
    check: Callable[[Job, Job], tuple[dict[str, Any], str | None]]
    once: bool = False
    start: float = field(default=0.0)  # distance of the networks before


def function(x: Tensor) -> Tensor:
    """Of the paper: exp(sin(pi x) + y^2), and exp(mean of sin(pi (x^2 + y^2)) over two pairs)."""
    if x.shape[1] == 2:
        return torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:].square())
    pairs = x.square().unflatten(1, (-1, 2)).sum(2)
    return torch.exp(torch.sin(math.pi * pairs).mean(1, keepdim=True))


def _data(features: int, samples: int) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    parts = (torch.rand(samples, features, generator=generator, dtype=twin.DTYPE) * 2 - 1 for _ in range(2))
    return {name: (x, function(x)) for name, x in zip(("train", "test"), parts, strict=True)}


def _model(widths: list[int], grid_size: int = 5) -> KAN:
    torch.manual_seed(0)
    return KAN(widths, grid_size, dtype=twin.DTYPE)


def lbfgs(widths: list[int], steps: int, samples: int, wanted: float) -> Contest:
    """`training.fit` and `MultKAN.fit`: the same steps from the same network."""
    model, data = _model(widths), _data(widths[0], samples)
    x, y = data["train"]

    def rmse(network: Any) -> float:
        with torch.no_grad():
            return float((network(x) - y).square().mean().sqrt())

    def run(network: Any, count: int) -> None:
        if isinstance(network, KAN):
            fit(network, data, steps=count)
        else:
            twin.fit(network, data, count)

    ours = Job(lambda: copy.deepcopy(model), lambda m: run(m, steps))
    theirs = Job(lambda: twin.twin(model), lambda m: run(m, steps))

    def evaluations(network: Any) -> int:
        """Count them in a training of its own: a KAN whose forward is counted is a case for autograd."""
        if isinstance(network, KAN):
            optimizers: dict[int, LBFGS] = {}
            take = LBFGS.step

            def step(self: LBFGS, closure: Any) -> Tensor:
                optimizers[id(self)] = self
                return take(self, closure)

            with (
                mock.patch.object(direct, "SquaredError", wraps=direct.SquaredError) as evaluated,
                mock.patch.object(LBFGS, "step", step),
            ):
                run(network, steps)
            states = [next(iter(o.state.values())) for o in optimizers.values()]
            return sum(state["func_evals"] for state in states) if evaluated.called else 0
        calls = twin.counted(network)
        run(network, steps)
        return calls() - steps  # forward runs after every step on the test data too

    def check(ours: Job, theirs: Job) -> tuple[dict[str, Any], str | None]:
        first = []
        for make in (ours.make, theirs.make):
            network = make()
            run(network, 1)
            first.append(rmse(network))
        calls = [evaluations(job.make()) for job in (ours, theirs)]
        last = rmse(ours.model), rmse(theirs.model)
        found = {"rmse": last, "rmse_after_one_step": first, "evaluations": calls}
        reason = None
        if calls[0] == 0:
            reason = "fit went through autograd, which it needs for no such network"
        elif abs(first[0] - first[1]) > FIRST_STEP * first[1]:
            reason = f"RMSE after one step is {first[0]:.8g} and {first[1]:.8g}"
        elif last[0] > LOSS * last[1]:
            reason = f"RMSE at the end is {last[0]:.3g} and {last[1]:.3g}"
        return found, reason

    what = f"{steps} steps of LBFGS, [{','.join(map(str, widths))}] G=5, {samples} samples"
    return Contest(what, wanted, ours, theirs, check, start=twin.distance(model, twin.twin(model), x))


def grid_update(widths: list[int], samples: int, wanted: float) -> Contest:
    """`grids.update_grid` and `MultKAN.update_grid`, both with 2% uniform knots and no margin."""
    model, x = _model(widths), _data(widths[0], samples)["train"][0]
    ours = Job(lambda: copy.deepcopy(model), lambda m: grids.update_grid(m, x, grid_eps=0.02, margin=0.0))
    theirs = Job(lambda: twin.twin(model), lambda m: m.update_grid(x))
    what = f"grid update, [{','.join(map(str, widths))}] G=5, {samples} samples"
    return _grids(what, wanted, model, x, ours, theirs)


def refinement(widths: list[int], samples: int, wanted: float) -> Contest:
    """`grids.refine` and `MultKAN.refine`, 5 to 10 cells."""
    model, x = _model(widths), _data(widths[0], samples)["train"][0]

    def refine(network: Any) -> Any:
        with twin.silent():
            return network.refine(10)

    ours = Job(lambda: copy.deepcopy(model), lambda m: grids.refine(m, 10, x))
    what = f"refinement of 5 cells to 10, [{','.join(map(str, widths))}], {samples} samples"
    return _grids(what, wanted, model, x, ours, Job(lambda: twin.seen(model, x), refine))


def _grids(what: str, wanted: float, model: KAN, x: Tensor, ours: Job, theirs: Job) -> Contest:
    with torch.no_grad():
        before = model(x)

    def moved(network: Any) -> float:
        with torch.no_grad():
            return float((network(x) - before).square().mean().sqrt() / before.square().mean().sqrt())

    def check(ours: Job, theirs: Job) -> tuple[dict[str, Any], str | None]:
        # refine of pykan returns another model, its update_grid None
        change = moved(ours.model), moved(theirs.result or theirs.model)
        reason = None
        if change[0] > max(MOVED * change[1], SAME):
            reason = f"outputs moved by {change[0]:.2g} and {change[1]:.2g}"
        return {"change": change}, reason

    return Contest(what, wanted, ours, theirs, check, start=twin.distance(model, twin.twin(model), x))


def judged(r2: float, term: float, largest: float) -> float:
    """The r2 of a fit as `symbolic` judges its own. term, largest: of |c f| and of the curve, at most.

    A term beyond the limit counts only where it leaves less of the curve, by the square of its excess.
    """
    excess = term / (CANCEL * largest) if largest > 0 else 0.0
    return r2 if excess <= 1 else 1 - (1 - r2) * excess**2


def automatic(
    widths: list[int], steps: int, samples: int, wanted: float, names: list[str] | None = None
) -> Contest:
    """`symbolic.auto` and `auto_symbolic` on a trained network, with pykan's functions and weight."""
    model, data = _model(widths), _data(widths[0], samples)
    x = data["train"][0]
    fit(model, data, steps=steps)
    functions = {name: f for name, f in twin.library().items() if names is None or name in names}
    candidates = list(dict.fromkeys(symbolic.get(name).name for name in functions))

    ours = Job(
        lambda: copy.deepcopy(model),
        lambda m: symbolic.auto(m, x, library=candidates, r2_threshold=0.0, complexity_weight=0.8),
    )
    theirs = Job(lambda: twin.seen(model, x), lambda m: twin.auto_symbolic(m, names))

    def check(ours: Job, theirs: Job) -> tuple[dict[str, Any], str | None]:
        report, (fits, chosen) = ours.result, theirs.result  # type: ignore[misc]
        picked = {(e.layer, e.input, e.output): e.best.name for e in report.edges}  # type: ignore[attr-defined]
        inputs = node_values(model, x)
        edges, single, cancelling = [], 0, 0
        for (n, i, o), theirs_of in fits.items():
            layer, column = model.layers[n], inputs[n][:, i]
            curve = edge_values(layer, inputs[n])[:, i, o]  # type: ignore[arg-type]
            found = {
                c.name: twin.explained(symbolic.get(c.name).torch, c.affine, column, curve)
                for c in symbolic.suggest(layer, i, o, inputs[n], len(candidates), library=candidates)  # type: ignore[arg-type]
            }
            rival, largest = {}, float(curve.abs().max())
            for name, affine in theirs_of.items():
                r2 = twin.explained(functions[name], affine, column, curve)
                term = float((affine[2] * functions[name](affine[0] * column + affine[1])).abs().max())
                rival[name] = judged(r2, term, largest)
                cancelling += rival[name] < r2
            single += sum(r > found[symbolic.get(name).name] + SAME_R2 for name, r in rival.items())
            edge = {"edge": [n, i, o], "chosen": [picked[n, i, o], chosen[n, i, o]]}
            for side, values in (("ours", found), ("theirs", rival)):
                best = max(values, key=values.__getitem__)
                edge[side] = {"best": best, "r2": values[best]}
            edges.append(edge)
        behind = [e["edge"] for e in edges if e["ours"]["r2"] < e["theirs"]["r2"] - SAME_R2]
        found_all = {
            "edges": edges,
            "functions": len(functions),
            "fits": sum(map(len, fits.values())),
            "fits_better_with_pykan": single,
            "fits_that_cancel": cancelling,
        }
        return found_all, f"pykan's best r2 is higher on {behind}" if behind else None

    what = f"automatic formulas, [{','.join(map(str, widths))}] G=5, {samples} samples"
    start = twin.distance(model, twin.twin(model), x)
    return Contest(what, wanted, ours, theirs, check, once=names is None, start=start)


def contests(quick: bool) -> dict[str, Callable[[], Contest]]:
    """What makes each of them, by its key; quick: tiny ones through the same code."""
    if quick:
        names = ["x", "x^2", "sin", "0"]
        return {
            "lbfgs-2-2-1": partial(lbfgs, [2, 2, 1], 3, 100, 8.0),
            "update_grid": partial(grid_update, [6, 4], 60, 100.0),
            "refine": partial(refinement, [6, 4], 60, 100.0),
            "auto_symbolic": partial(automatic, [2, 1, 1], 5, 100, 100.0, names),
        }
    return {
        "lbfgs-4-5-1": partial(lbfgs, [4, 5, 1], 20, 1000, 50.0),
        "lbfgs-2-5-1": partial(lbfgs, [2, 5, 1], 50, 1000, 50.0),
        "update_grid": partial(grid_update, [64, 64, 64], 1000, 100.0),
        "refine": partial(refinement, [64, 64, 64], 1000, 100.0),
        "auto_symbolic": partial(automatic, [4, 5, 1], 20, 1000, 100.0),
    }
