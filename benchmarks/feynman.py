"""The Feynman equations with up to three variables: `symbolic.discover` against gplearn and pyoperon.

    python -m benchmarks.feynman [--python PYTHON] [--equation NAME ...] [--noise 0 0.01] [--seconds 10 30]

PYTHON is one that has gplearn and pyoperon (`pip install gplearn pyoperon` in an environment of its own). Of
each equation 1000 points are drawn, uniform in its ranges; noise is normal, its standard deviation that share
of y's. Each method has the same seconds of processor time on one core, in a process of its own, one after the
other on the same data, with its defaults (ours) or the settings in `benchmarks.feynman_rivals`. Wall time is
written down too; on a machine that others use it says little.

A formula is judged on 1000 new points without noise, by `benchmarks.feynman_judge`, all by the same rules:

- Without noise it is exact if its root mean square error is below 1e-6 of y's spread, its values agree with
  the law's on ranges half as wide again too, and sympy shows both equal after their constants were rounded to
  4 digits. Where sympy cannot decide (|x| under roots, identities of angles), the values decide; the
  column "by" says which.
- With 1% noise constants cannot be exact. There it is the law if it becomes the law, by the same test of
  values, when its numbers, other than whole ones and exponents, are fitted to the law's values, and none
  moves by more than 5% of itself. One more term is a number that has to move to 0, and fails; a number that
  is added to all the rest, as pyoperon does to every formula, may move by 1% of y's spread, as the noise is.

Of gplearn the most exact program of all generations and the one it chooses are judged, of pyoperon every
formula of its front, and each counts as exact if any of them is; of ours only `found.best`. Error and
complexity are those of the exact formula, or else of the one with the least error on the data.

Within a longer limit only what the shorter one left open is run again, from the start: a rival's exact
formula counts for longer limits too, and so does ours where the search ended because nothing was left.

Results are written after every run, JSON, a table and a picture; what is missing there is run, the rest kept.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import feynman_judge as judge
from .feynman_equations import EQUATIONS, Equation
from .machine import basics
from .readme import render
from .report import markdown_table

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "feynman.svg"
PAGE = Path(__file__).parents[1] / "docs" / "symbolic.md"
OURS = "discover"
METHODS = (OURS, "gplearn", "pyoperon")
NOISE = (0.0, 0.01)
LIMITS = (10.0, 30.0)
ROWS = 1000


def data(equation: Equation, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y with noise, and new points x, y without."""
    names = list(equation.ranges)
    law = judge.law_of(equation.formula, names)
    generator = np.random.default_rng(0)
    low, high = np.array(list(equation.ranges.values())).T
    x, new_x = generator.uniform(low, high, (2, ROWS, len(names)))
    y, new_y = (judge.values(law, names, part) for part in (x, new_x))
    return x, y + noise * y.std() * generator.standard_normal(ROWS), new_x, new_y


def answer(method: str, task: dict[str, Any], python: str) -> dict[str, Any]:
    """Return what a method answers, in a process of its own."""
    if method == OURS:
        command = [sys.executable, "-m", "benchmarks.feynman", "--answer"]
    else:
        command = [python, str(Path(__file__).with_name("feynman_rivals.py")), method]
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, check=False,
        env={**os.environ, **dict.fromkeys(threads, "1")},
    )  # fmt: skip
    if done.returncode:
        said = [f"exit {done.returncode}", *done.stderr.strip().splitlines()[-1:]]
        return {"formulas": [], "failed": ": ".join(said), "cpu": None, "wall": None}
    return json.loads(done.stdout)


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """Return what `discover` answers; an interrupt ends it when its processor time is over."""
    import torch

    from kan_kernels import symbolic

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    torch.set_num_threads(1)
    names = [f"v{n}" for n in range(len(task["x"][0]))]
    x, y = (torch.tensor(task[key], dtype=torch.float64) for key in ("x", "y"))
    signal.signal(signal.SIGPROF, stop)
    cpu, wall = time.process_time(), time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])
    found = symbolic.discover(x, y, names, budget=1e9, progress=False)
    signal.setitimer(signal.ITIMER_PROF, 0)
    spent = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
    return {"formulas": [str(found.formula)], **spent, "stopped": found.stopped, "networks": found.networks}


def run(equation: Equation, noise: float, method: str, seconds: float, python: str) -> dict[str, Any]:
    """Return what a method made of an equation, judged."""
    names = list(equation.ranges)
    law = judge.law_of(equation.formula, names)
    x, y, new_x, new_y = data(equation, noise)
    made = answer(method, {"x": x.tolist(), "y": y.tolist(), "seconds": seconds, "seed": 0}, python)
    result = {
        "equation": equation.name, "noise": noise, "method": method, "exact": False, "by": "",
        "error": None, "complexity": None, "formula": None, "cpu": made["cpu"], "wall": made["wall"],
        "seconds": seconds,
    }  # fmt: skip
    result |= {key: made[key] for key in ("versions", "stopped", "failed") if key in made}
    equal = judge.exact if noise == 0 else judge.same_structure
    for formula in made["formulas"]:
        found = judge.parsed(formula, names, protected=method == "gplearn")
        by = equal(found, law, names, new_x, new_y)
        if result["formula"] is None or by:
            error = judge.relative(found, names, new_x, new_y)
            result |= {"formula": str(found), "error": error, "complexity": judge.size(found)}
        if by:
            result |= {"exact": True, "by": by}
            break
    return result


def decided(run: dict[str, Any]) -> bool:
    """Whether longer limits have nothing to add."""
    return run["exact"] and (run["method"] != OURS or run.get("stopped") == "exact")


def within(runs: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Return the longest run within a limit of each equation, noise and method that is known there."""
    last = {}
    for run in sorted(runs, key=lambda r: r["seconds"]):
        if run["seconds"] <= limit:
            last[run["noise"], run["method"], run["equation"]] = run
    return [run for run in last.values() if run["seconds"] == limit or decided(run)]


def write(document: dict[str, Any]) -> None:
    """Write the results, the table and the picture."""
    place = {e.name: n for n, e in enumerate(EQUATIONS)}
    document["runs"].sort(
        key=lambda r: (r["noise"], place[r["equation"]], METHODS.index(r["method"]), r["seconds"])
    )
    lines = ",\n  ".join(json.dumps(r) for r in document["runs"])
    head = json.dumps({k: v for k, v in document.items() if k != "runs"}, indent=1)[:-2]
    (RESULTS / "feynman.json").write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n')
    (RESULTS / "feynman.md").write_text(table(document))
    draw(document["runs"], PICTURE)
    PAGE.write_text(render(PAGE.read_text(), block(document), "feynman"))


def block(document: dict[str, Any]) -> str:
    """Return what the documentation says."""
    return f"{summary(document['runs'])}\n\n{_conditions(document['meta'])}{_missing(document['runs'])}\n"


def _conditions(meta: dict[str, Any]) -> str:
    """Return what was measured, with what and where."""
    machines = [f"{limit} s on {m['cpu']}, {m['date']}" for limit, m in meta["machines"].items()]
    versions = [f"{name} {number}" for name, number in meta["versions"].items()]
    return (
        "The limit is of processor time on one core of a shared machine: "
        f"{'; '.join(machines)}; {', '.join(versions)}."
    )


def _missing(runs: list[dict[str, Any]]) -> str:
    """Return what to say of equations that were not run yet with all methods."""
    left = [
        f"{noise:.0%} noise and {limit:g} s"
        for limit in LIMITS
        for noise in NOISE
        if 0 < len(run_by_all(runs, noise, limit)) < len(EQUATIONS)
    ]
    return f" Not every equation was run with all methods at {', '.join(left)}." if left else ""


def run_by_all(runs: list[dict[str, Any]], noise: float, limit: float) -> set[str]:
    """Return the equations of which every method's outcome is known."""
    known = [(r["method"], r["equation"]) for r in within(runs, limit) if r["noise"] == noise]
    return set.intersection(*({e for m, e in known if m == method} for method in METHODS))


def summary(runs: list[dict[str, Any]]) -> str:
    """Return a table of how many equations each method found, of those that all of them were run on."""
    head = ["limit", "noise", "method", "exact", "error, median", "complexity of the exact, median"]
    body = []
    for limit in LIMITS:
        for noise in NOISE:
            common = run_by_all(runs, noise, limit)
            for method in METHODS if common else ():
                own = [
                    r
                    for r in within(runs, limit)
                    if (r["noise"], r["method"]) == (noise, method) and r["equation"] in common
                ]
                good = [r for r in own if r["exact"]]
                errors = [np.inf if r["error"] is None else r["error"] for r in own]
                sizes = f"{np.median([r['complexity'] for r in good]):g}" if good else "-"
                share = f"{len(good)} of {len(own)} ({100 * len(good) / len(own):.0f}%)"
                row = [f"{limit:g} s", f"{noise:.0%}", method, share, f"{np.median(errors):.1e}", sizes]
                body.append(row)
    return markdown_table(head, body, tuple(range(len(head))))


def table(document: dict[str, Any]) -> str:
    """Return the results as tables."""
    runs = within(document["runs"], LIMITS[0])
    parts = [
        f"Made by `python -m benchmarks.feynman`. {_conditions(document['meta'])} What exact means, and what "
        "a longer limit runs again, is written in `benchmarks/feynman.py`. Errors are root mean squares on "
        "new points without noise, as shares of the spread of y.\n"
    ]
    parts.append(summary(document["runs"]))
    for noise in NOISE:
        head = ["equation", "law", *(f"{m}: error, complexity" for m in METHODS)]
        body = []
        for equation in EQUATIONS:
            own = {r["method"]: r for r in runs if (r["noise"], r["equation"]) == (noise, equation.name)}
            if own:
                law = f"`{equation.formula}`"
                body.append([equation.name, law, *(_cell(own.get(method)) for method in METHODS)])
        if body:
            parts.append(f"\nNoise {noise:.0%}, {LIMITS[0]:g} seconds. In bold: exact.\n")
            parts.append(markdown_table(head, body, tuple(range(len(head)))))
    failures = [
        [f"{r['noise']:.0%}", r["equation"], f"`{_short(r['formula'])}`"]
        for r in runs if r["method"] == OURS and not r["exact"]
    ]  # fmt: skip
    parts.append(_later(document["runs"]))
    parts.append(f"\nWhat `discover` did not find in {LIMITS[0]:g} seconds, and what it said instead:\n")
    parts.append(
        markdown_table(["noise", "equation", "formula"], failures, (0, 1, 2)) if failures else "Nothing."
    )
    return "\n".join(parts) + "\n"


def _later(runs: list[dict[str, Any]]) -> str:
    """Return what longer limits changed."""
    lines = []
    for shorter, longer in itertools.pairwise(LIMITS):
        before = {(r["noise"], r["method"], r["equation"]): r["exact"] for r in within(runs, shorter)}
        for run in within(runs, longer):
            key = run["noise"], run["method"], run["equation"]
            if before.get(key, run["exact"]) != run["exact"]:
                what = "found" if run["exact"] else "no longer found"
                lines.append(f"- {run['method']}, {run['noise']:.0%} noise: {run['equation']}, {what}")
    body = "\n".join(lines) or "Nothing."
    return f"\nWhat longer limits changed:\n\n{body}\n"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None or result["formula"] is None:
        return "-"
    text = f"{result['error']:.1e}, {result['complexity']}"
    return f"**{text}**" if result["exact"] else text


def _short(formula: str | None) -> str:
    """Return a formula with few digits, in one line."""
    import sympy

    if formula is None:
        return "nothing"
    expression = sympy.sympify(formula, locals={n: sympy.Symbol(n) for e in EQUATIONS for n in e.ranges})
    floats = expression.atoms(sympy.Float)
    text = str(expression.xreplace({f: sympy.Float(f, 4) for f in floats}))
    return text if len(text) < 160 else text[:157] + "..."


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw which method found which equation."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    colors = {OURS: "#3949ab", "gplearn": "#ef6c00", "pyoperon": "#00897b"}
    rows = [(noise, method) for noise in NOISE for method in METHODS]
    with plt.rc_context({"svg.hashsalt": "feynman", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(11, 2.9), layout="constrained")
        known = {(r["noise"], r["method"], r["equation"]): r["exact"] for r in within(runs, LIMITS[0])}
        for n, (noise, method) in enumerate(rows):
            y = -n - 0.5 * (noise > 0)
            for k, equation in enumerate(EQUATIONS):
                exact = known.get((noise, method, equation.name))
                face = "white" if exact is None else colors[method] if exact else "#e8e8ee"
                axes.add_patch(
                    plt.Rectangle((k, y - 0.4), 0.86, 0.8, facecolor=face, edgecolor="#b8b8c4", lw=0.4)
                )
            own = [known[noise, method, e.name] for e in EQUATIONS if (noise, method, e.name) in known]
            axes.text(len(EQUATIONS) + 0.5, y, f"{sum(own)} of {len(own)}", va="center")
            label = f"{method}, {'no noise' if noise == 0 else f'{noise:.0%} noise'}"
            axes.text(-0.5, y, label, ha="right", va="center")
        axes.set_xlim(-11, len(EQUATIONS) + 5)
        axes.set_ylim(-len(rows), 0.6)
        axes.set_xticks(
            [k + 0.43 for k in range(len(EQUATIONS))], [e.name for e in EQUATIONS], rotation=90, fontsize=6
        )
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="one that has gplearn and pyoperon")
    parser.add_argument("--equation", nargs="*", default=[e.name for e in EQUATIONS])
    parser.add_argument("--noise", nargs="*", type=float, default=NOISE)
    parser.add_argument("--method", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seconds", nargs="*", type=float, default=LIMITS, choices=LIMITS)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        json.dump(ours(json.load(sys.stdin)), sys.stdout)
        return
    path = RESULTS / "feynman.json"
    new: dict[str, Any] = {"meta": {"machines": {}, "versions": {}}, "runs": []}
    document = json.loads(path.read_text()) if path.exists() else new
    document["runs"] = [r for r in document["runs"] if r["formula"] is not None]  # what failed is run again
    write(document)
    tasks = itertools.product(options.seconds, options.noise, EQUATIONS, options.method)
    for seconds, noise, equation, method in tasks:
        key = equation.name, noise, method
        known = {(r["equation"], r["noise"], r["method"]) for r in within(document["runs"], seconds)}
        if equation.name not in options.equation or key in known:
            continue
        result = run(equation, noise, method, seconds, options.python)
        versions = result.pop("versions", {})
        document["meta"]["versions"] |= {k: v for k, v in versions.items() if k in METHODS}
        document["meta"]["machines"].setdefault(f"{seconds:g}", basics())
        document["runs"].append(result)
        write(document)
        print(*(f"{key}={value}" for key, value in result.items()), flush=True)


if __name__ == "__main__":
    main()
