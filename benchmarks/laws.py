"""How often `symbolic.discover` finds a law with its defaults: ten draws of the data each.

    python -m benchmarks.laws [--draws 10] [--law NAME ...]

Seven laws of two variables without noise, one of four with two idle inputs and 2% noise, and the border
between two moons, under cross entropy. Results, JSON and tables, are written after every run. What is missing
in the file is run, the rest kept; without the file all is.

- Without noise a formula is found if its error on 1000 new points is below 1e-8 and sympy shows it equal to
  the law after both were rounded to 4 digits, within 60 seconds of processor time: the clock of a shared
  machine says little.
- Nothing is exact under noise, so that those searches spend the default budget, 60 seconds by the clock; the
  work that was done then is written down, and as much gives the same formula again. The structure is exact if
  sympy shows the formula equal to the law after each of its numbers that is within 0.01 of 1, pi/2 or pi, or
  added to a function's argument and within 0.01 of 0, became that; all its constants are plain if both are
  equal as above, without that.
- The border's accuracy is that of `found.model` on 10000 new points; beside it that of the spline network
  that the formula was read from, trained again from the same seed.
"""

import argparse
import ast
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kan_kernels import symbolic
from kan_kernels.symbolic.discovery import inputs, networks

from .report import markdown_table

RESULTS = Path(__file__).parent / "results"
ROWS, NEW, LIMIT, TARGET = 1000, 10000, 60.0, 1e-8
NEAR = 0.01
MOONS, SPREAD, CLOSE = "two moons", 0.2, 0.005


class Case(NamedTuple):
    """A law, the inputs it may depend on, and the noise as a share of y's spread."""

    law: str
    names: tuple[str, ...] = ("x", "y")
    noise: float = 0.0


LAWS = (
    Case("exp(sin(pi*x) + y**2)"),
    Case("sqrt(x**2 + y**2)"),
    Case("x*y"),
    Case("sin(2*x) + tanh(3*y)"),
    Case("1/(1 + x**2 + y**2)"),
    Case("exp(-(x - y)**2)"),
    Case("log(1 + x**2 + Abs(y))"),
    Case("x1**2 + sin(pi*x2) + x3*x4", ("x1", "x2", "x3", "x4", "x5", "x6"), 0.02),
)
NAMES = (*(case.law for case in LAWS), MOONS)


def data(case: Case, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, y and x, y of new points, uniform in [-1, 1]; y of the new ones has no noise."""
    import sympy

    function = sympy.lambdify(sympy.symbols(case.names), sympy.sympify(case.law), "numpy")
    generator = torch.Generator().manual_seed(draw)
    points = torch.rand(2, ROWS, len(case.names), generator=generator, dtype=torch.float64) * 2 - 1
    y, new_y = (torch.from_numpy(function(*part.numpy().T)) for part in points)
    if case.noise:
        y = y + case.noise * y.std() * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return points[0], y, points[1], new_y


def equal(found: Any, law: str) -> bool:
    """Return whether sympy shows a formula equal to the law, both rounded to 4 digits."""
    import sympy

    def rounded(expression: Any) -> Any:
        expression = expression.xreplace({sympy.pi: sympy.Float(sympy.pi)})
        floats = expression.atoms(sympy.Float)
        return expression.xreplace({f: sympy.nsimplify(round(float(f), 4)) for f in floats})

    return bool(sympy.simplify(rounded(found) - rounded(sympy.sympify(law))) == 0)


def straightened(found: Any) -> tuple[Any, float]:
    """Return a formula with the plain numbers that its own are near to, and how far off these were at most.

    Only what is added inside of a function becomes 0: a term of the whole that is small is one too many.
    """
    import sympy

    known = {float(n): n for n in (sympy.Integer(0), sympy.Integer(1), sympy.pi / 2, sympy.pi)}
    added = {n for part in found.atoms(sympy.Add) - {found} for n in part.args}
    moved: dict[Any, Any] = {}
    for number in found.atoms(sympy.Float):
        near = min(known, key=lambda value: abs(abs(float(number)) - value))
        if abs(abs(float(number)) - near) < NEAR and (near or number in added):
            moved[number] = sympy.sign(number) * known[near]
    return found.xreplace(moved), max((abs(float(f - n)) for f, n in moved.items()), default=0.0)


def search(*arguments: Any, **options: Any) -> tuple[symbolic.Discovery, dict[str, Any]]:
    """Return what `discover` finds, and what that took."""
    start = time.process_time()
    found = symbolic.discover(*arguments, **options, progress=False)
    seconds = round(time.process_time() - start, 2)
    spent = {"cpu_seconds": seconds, "stopped": found.stopped, "work": found.work}
    return found, {**spent, "networks": found.networks}


def run(case: Case, draw: int) -> dict[str, Any]:
    """Return what `discover` made of one draw of a law's data."""
    x, y, new_x, new_y = data(case, draw)
    budget = {} if case.noise else {"budget": 1e9}
    found, spent = search(x, y, names=case.names, **budget)
    with torch.no_grad():
        error = float((found.model(new_x)[:, 0] - new_y).square().mean().sqrt())
    same = equal(found.formula, case.law)
    straight, off = straightened(found.formula)
    structure = same or equal(straight, case.law)
    exact = error < TARGET and same and spent["cpu_seconds"] <= LIMIT
    return {
        "law": case.law, "draw": draw, "formula": str(found.formula), "rmse": error, "structure": structure,
        "off": off, "equal": same, **spent, "found": structure if case.noise else exact,
    }  # fmt: skip


def moons(draw: int) -> dict[str, Any]:
    """Return what `discover` made of one draw of two moons."""
    from sklearn.datasets import make_moons

    x, label = map(torch.as_tensor, make_moons(ROWS, noise=SPREAD, random_state=draw))
    new_x, new_label = map(torch.as_tensor, make_moons(NEW, noise=SPREAD, random_state=10**6 + draw))
    found, spent = search(x, label, names=("x", "y"), loss=cross_entropy)
    seen = inputs.split(*inputs.rows_of(x, label, cross_entropy), cross_entropy, 0)
    network = network_of(found.best, seen)

    def accuracy(scores: Tensor) -> float:
        return float((scores.argmax(1) == new_label).double().mean())

    with torch.no_grad():
        ours, splines = accuracy(found.model(new_x)), accuracy(network(seen.units(new_x)))
    return {
        "law": MOONS, "draw": draw, "formula": str(found.formula), "accuracy": ours, "network": splines,
        "shape": found.best.shape, **spent, "found": ours >= splines - CLOSE,
    }  # fmt: skip


def network_of(law: Any, seen: networks.Data) -> torch.nn.Module:
    """Return the spline network that a law was read from, trained again: its loss says which it was."""
    for seed in law.seeds:
        trained = networks.fine(seen, networks.coarse(seen, ast.literal_eval(law.shape), seed))
        if trained.valid == law.network:
            return trained.model
    raise RuntimeError(f"no network of {law.shape} with the seeds {law.seeds} has the loss {law.network}")


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the results as tables."""
    said = "Made by `python -m benchmarks.laws`: `symbolic.discover` with its defaults on 1000 points."
    head = [
        "law", "noise", "found", "structure exact", "all constants plain", "largest error of those found",
        "CPU seconds, median and most", "formulas that are not plain",
    ]  # fmt: skip
    body = []
    for case in LAWS:
        own = [r for r in runs if r["law"] == case.law]
        if not own:
            continue
        counts = [f"{sum(r[key] for r in own)} of {len(own)}" for key in ("found", "structure", "equal")]
        worst = max((r["rmse"] for r in own if r["found"]), default=float("nan"))
        other = "; ".join(f"`{_short(r['formula'])}`" for r in own if not r["equal"]) or "-"
        body.append([f"`{case.law}`", f"{case.noise:.0%}", *counts, f"{worst:.1e}", _seconds(own), other])
    text = f"{said}\n\n{markdown_table(head, body, tuple(range(len(head))))}\n"
    own = [r for r in runs if r["law"] == MOONS]
    if not own:
        return text
    good = sum(r["found"] for r in own)
    head = ["draw", "accuracy of the formula", "of its network", "network", "formula"]
    body = []
    for r in own:
        accuracies = (f"{r[key]:.4f}" for key in ("accuracy", "network"))
        body.append([str(r["draw"]), *accuracies, r["shape"], f"`{_short(r['formula'])}`"])
    return (
        f"{text}\nTwo moons, normal noise of {SPREAD:g}, cross entropy: the accuracy on {NEW} new points is "
        f"within {CLOSE:g} of that of the network that the formula was read from, or above it, in {good} of "
        f"{len(own)} draws; CPU seconds, median and most: {_seconds(own)}.\n\n"
        f"{markdown_table(head, body, tuple(range(len(head))))}\n"
    )


def _seconds(runs: list[dict[str, Any]]) -> str:
    times = sorted(r["cpu_seconds"] for r in runs)
    return f"{times[len(times) // 2]}, {times[-1]}"


def _short(formula: str) -> str:
    """Return a formula with 5 digits."""
    import sympy

    parsed = sympy.sympify(formula)
    expressions = parsed if isinstance(parsed, list) else [parsed]
    return ", ".join(symbolic.discovery.laws.short(e) for e in expressions)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--law", nargs="*", default=NAMES, choices=NAMES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "laws.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    known = {(r["law"], r["draw"]) for r in runs}
    cases = {case.law: case for case in LAWS}
    for draw in range(options.draws):
        for law in options.law:
            if (law, draw) in known:
                continue
            runs.append(moons(draw) if law == MOONS else run(cases[law], draw))
            print(*(f"{k}={v}" for k, v in runs[-1].items()), flush=True)
            runs.sort(key=lambda r: (NAMES.index(r["law"]), r["draw"]))
            path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
            (RESULTS / "laws.md").write_text(tables(runs))


if __name__ == "__main__":
    main()
