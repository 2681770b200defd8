"""How often `symbolic.discover` finds a law with its defaults: seven laws, ten draws of the data each.

    python -m benchmarks.laws [--draws 10] [--law NAME ...]

Writes its results, JSON and a table, after every run. A formula counts as found if its error on 1000
new points is below 1e-8 and sympy shows it equal to the law after both were rounded to 4 digits, within 60
seconds of processor time: the clock of a shared machine says little. What is missing in the file is run, the
rest kept; without the file all is.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from kan_kernels import symbolic

from .report import markdown_table

RESULTS = Path(__file__).parent / "results"
ROWS, LIMIT, TARGET = 1000, 60.0, 1e-8
LAWS = (
    "exp(sin(pi*x) + y**2)",
    "sqrt(x**2 + y**2)",
    "x*y",
    "sin(2*x) + tanh(3*y)",
    "1/(1 + x**2 + y**2)",
    "exp(-(x - y)**2)",
    "log(1 + x**2 + Abs(y))",
)


def data(law: str, draw: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x, y and x, y of new points, uniform in [-1, 1]^2."""
    import sympy

    function = sympy.lambdify(sympy.symbols("x y"), sympy.sympify(law), "numpy")
    generator = torch.Generator().manual_seed(draw)
    points = torch.rand(2, ROWS, 2, generator=generator, dtype=torch.float64) * 2 - 1
    values = [torch.from_numpy(function(*part.numpy().T)) for part in points]
    return points[0], values[0], points[1], values[1]


def equal(found, law: str) -> bool:
    """Return whether sympy shows a formula equal to the law, both rounded to 4 digits."""
    import sympy

    def rounded(expression):
        expression = expression.xreplace({sympy.pi: sympy.Float(sympy.pi)})
        floats = expression.atoms(sympy.Float)
        return expression.xreplace({f: sympy.nsimplify(round(float(f), 4)) for f in floats})

    return sympy.simplify(rounded(found) - rounded(sympy.sympify(law))) == 0


def run(law: str, draw: int) -> dict:
    """Return what `discover` made of one draw."""
    x, y, new_x, new_y = data(law, draw)
    start = time.process_time()
    found = symbolic.discover(x, y, names=["x", "y"], budget=1e9, progress=False)
    seconds = time.process_time() - start
    with torch.no_grad():
        error = float((found.model(new_x)[:, 0] - new_y).square().mean().sqrt())
    same = equal(found.formula, law)
    return {
        "law": law, "draw": draw, "formula": str(found.formula), "rmse": error, "equal": same,
        "cpu_seconds": round(seconds, 2), "work": found.work, "networks": found.networks,
        "found": error < TARGET and same and seconds <= LIMIT,
    }  # fmt: skip


def table(runs: list[dict]) -> str:
    """Return the results as a table."""
    said = "Made by `python -m benchmarks.laws`: `symbolic.discover` with its defaults on 1000 points."
    head = ["law", "found", "largest error of those", "CPU seconds, median and most", "otherwise"]
    body = []
    for law in dict.fromkeys(r["law"] for r in runs):
        own = [r for r in runs if r["law"] == law]
        good = [r for r in own if r["found"]]
        times = sorted(r["cpu_seconds"] for r in own)
        worst = max((r["rmse"] for r in good), default=float("nan"))
        other = "; ".join(f"`{r['formula']}`" for r in own if not r["found"]) or "-"
        seconds = f"{times[len(times) // 2]}, {times[-1]}"
        body.append([law, f"{len(good)} of {len(own)}", f"{worst:.1e}", seconds, other])
    return f"{said}\n\n{markdown_table(head, body, tuple(range(len(head))))}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--law", nargs="*", default=LAWS)
    options = parser.parse_args()
    path = RESULTS / "laws.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    known = {(r["law"], r["draw"]) for r in runs}
    for draw in range(options.draws):
        for law in options.law:
            if (law, draw) in known:
                continue
            runs.append(run(law, draw))
            print(*(f"{k}={v}" for k, v in runs[-1].items()), flush=True)
            runs.sort(key=lambda r: (LAWS.index(r["law"]) if r["law"] in LAWS else len(LAWS), r["draw"]))
            path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
            (RESULTS / "laws.md").write_text(table(runs))


if __name__ == "__main__":
    main()
