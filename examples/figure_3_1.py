"""Figure 3.1: how the error falls with the number of parameters, KANs against MLPs, on five toy functions.

    python -m examples.figure_3_1 [--fast]

A KAN of the shape of the formula is trained at G = 3, then refined; MLPs have 2 to 6 layers of several
widths. Both are the best of eight short starts by training loss (half of an MLP's with SiLU, half with
tanh), both are minimised by the same LBFGS, and every MLP gets at least the CPU time of the KAN of its
seed, starts included. The exponent is the slope of a line through the networks whose median test error is
below that of all smaller ones, on log-log axes: KANs up to the noise floor, the best depth at each size.
"""

import math
import time

import torch
from torch import Tensor

from .common import main, save_figure
from .scaling import Toy, exponent, front, kan, mlp, network
from .scaling_picture import draw

PI = math.pi


def pairs(x: Tensor) -> Tensor:
    return (torch.sin(PI * x.square().unflatten(1, (2, 2)).sum(2)).sum(1, keepdim=True) / 2).exp()


TOYS = [
    Toy(
        "J0(20x)",
        lambda x: torch.special.bessel_j0(20 * x),
        [[1, 1]],
        (3, 5, 10, 20, 50, 100, 200),
        (4, 12),
    ),
    Toy(
        "exp(sin πx + y²)",
        lambda x: (torch.sin(PI * x[:, :1]) + x[:, 1:] ** 2).exp(),
        [[2, 1, 1]],
        (3, 5, 10, 20, 50, 100),
        (4, 8, 14),
    ),
    Toy("xy", lambda x: x.prod(1, keepdim=True), [[2, 2, 1]], (3, 5, 10, 20, 50), (4, 14)),
    Toy(
        "exp(Σ sin²(πxᵢ/2) / 100), 100 inputs",
        lambda x: torch.sin(PI / 2 * x).square().mean(1, keepdim=True).exp(),
        [[100, 1, 1]],
        (3, 5, 10),
        (5, 20),
    ),
    Toy(
        "exp((sin π(x₁²+x₂²) + sin π(x₃²+x₄²)) / 2)",
        pairs,
        [[4, 4, 2, 1], [4, 2, 1, 1]],
        (3, 5, 10, 20, 50),
        (6, 12, 20),
    ),
]


def compare(toy: Toy, fast: bool) -> dict:
    """KANs of all shapes, then MLPs with at least the time of the slowest of these."""
    seeds, depths = range(1 if fast else 3), (2,) if fast else (2, 3, 4, 5, 6)
    grids, widths = (toy.grids[:3], toy.widths[:1]) if fast else (toy.grids, toy.widths)
    kans = [
        network([r for s in seeds for r in kan(toy, shape, grids, s)], widths=shape) for shape in toy.shapes
    ]
    least = [max(r["seconds"] for k in kans for r in k["runs"] if r["seed"] == s) for s in seeds]
    mlps = [network([mlp(toy, d, w, s, least[s]) for w in widths for s in seeds], depth=d) for d in depths]
    points = [point for one in mlps for point in one["median"]]
    best = {"exponent": exponent(points), "front": front(points)}
    return {"formula": toy.formula, "inputs": toy.shapes[0][0], "kans": kans, "mlps": mlps, "best_mlps": best}


def rows(toy: dict) -> list[dict]:
    def row(what: str, one: dict, theory: str) -> dict:
        size, error = one["front"][-1]
        slope = "none, no larger one is better" if one["exponent"] is None else one["exponent"]
        ours = f"{slope}; {error:.1e} with {size} parameters"
        return {
            "what": f"{toy['formula']}: exponent and lowest median RMSE, {what}",
            "ours": ours,
            "theirs": theory,
        }

    kans = [row(f"KAN {one['widths']}", one, "4 (theorem 2.1)") for one in toy["kans"]]
    return [*kans, row("best MLPs", toy["best_mlps"], f"{4 / toy['inputs']:.2g} (4/d)")]


def run(fast: bool) -> dict:
    began = time.process_time()
    toys = [compare(toy, fast) for toy in (TOYS[1:3] if fast else TOYS)]
    return summary(toys, time.process_time() - began, fast)


def summary(toys: list[dict], seconds: float, fast: bool) -> dict:
    if not fast:
        save_figure(draw(toys), "figure_3_1")
    time_row = {"what": "CPU seconds of all trainings", "ours": round(seconds), "theirs": "-"}
    return {"summary": [*(row for toy in toys for row in rows(toy)), time_row], "toys": toys}


if __name__ == "__main__":
    main("figure_3_1", "Figure 3.1: scaling on toy functions", run)
