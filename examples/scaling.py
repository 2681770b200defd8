"""Scaling laws: KANs by grid extension and MLPs on one function, how their errors fall with their size."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from kan_kernels import KAN
from kan_kernels.training import fit

from .common import rmse

SAMPLES, STEPS = 3000, 10  # steps of LBFGS at every grid size
STARTS, START_SAMPLES, START_STEPS = 8, 500, 5
Point = tuple[int, float]  # parameters, RMSE


class Toy(NamedTuple):
    formula: str
    function: Callable[[Tensor], Tensor]
    shapes: list[list[int]]
    grids: tuple[int, ...]
    widths: tuple[int, ...]  # of MLPs


def lbfgs(parameters: list[nn.Parameter]) -> LBFGS:
    return LBFGS(
        parameters, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )


class Problem:
    """The data of a toy and a seed, and the CPU seconds spent on them."""

    def __init__(self, toy: Toy, seed: int) -> None:
        torch.manual_seed(seed)
        self.x, self.x_test = torch.rand(2, SAMPLES, toy.shapes[0][0]) * 2 - 1
        self.y, self.y_test = toy.function(self.x), toy.function(self.x_test)
        self.seconds = 0.0

    def train(self, model: nn.Module, steps: int, rows: int = SAMPLES, **options) -> float:
        began = time.process_time()
        history = fit(model, (self.x[:rows], self.y[:rows]), steps=steps, optimizer=lbfgs, **options)
        self.seconds += time.process_time() - began
        return math.sqrt(history.train_loss[-1])

    def best_start(self, models: list[nn.Module]) -> nn.Module:
        return min(models, key=lambda model: self.train(model, START_STEPS, START_SAMPLES))

    def result(self, model: nn.Module, train: float, **what: object) -> dict:
        test, parameters = rmse(model, self.x_test, self.y_test), sum(p.numel() for p in model.parameters())
        errors = {"train_rmse": train, "test_rmse": test}
        return {**what, "parameters": parameters, **errors, "seconds": round(self.seconds, 2)}


def kan(toy: Toy, shape: list[int], grids: tuple[int, ...], seed: int) -> list[dict]:
    """One KAN at one grid size after the other, with uniform knots where the data of every layer are."""
    problem = Problem(toy, seed)
    model, results = problem.best_start([KAN(shape, grid_size=grids[0]) for _ in range(STARTS)]), []
    for grid in grids:
        train = problem.train(
            model, STEPS, refine_at={0: grid}, update_grid_at=[0], update_grid={"grid_eps": 1.0}
        )
        results.append(problem.result(model, train, seed=seed, grid=grid))
    return results


def mlp(toy: Toy, depth: int, width: int, seed: int, least: float) -> dict:
    problem, sizes = Problem(toy, seed), [toy.shapes[0][0], *[width] * (depth - 1), 1]

    def make(kind: type[nn.Module]) -> nn.Module:
        layers = [m for n, o in itertools.pairwise(sizes) for m in (nn.Linear(n, o), kind())]
        return nn.Sequential(*layers[:-1])

    model = problem.best_start([make((nn.SiLU, nn.Tanh)[n % 2]) for n in range(STARTS)])
    train = problem.train(model, STEPS)
    while problem.seconds < least:
        train = problem.train(model, 2 * STEPS)
    return problem.result(model, train, seed=seed, width=width, activation=str(model[1]))


def network(runs: list[dict], **what: object) -> dict:
    """Runs of networks of several sizes, the median of the test error at each size, front and exponent."""
    sizes = sorted({run["parameters"] for run in runs})
    errors = [[run["test_rmse"] for run in runs if run["parameters"] == size] for size in sizes]
    median = [(size, statistics.median(e)) for size, e in zip(sizes, errors, strict=True)]
    return {**what, "exponent": exponent(median), "front": front(median), "median": median, "runs": runs}


def front(points: list[Point]) -> list[Point]:
    """The points whose error is lower than that of every point with no more parameters."""
    kept: list[Point] = []
    for parameters, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((parameters, error))
    return kept


def exponent(points: list[Point]) -> float | None:
    """a of error = c parameters^-a, by least squares on the logarithms of the front; None for one point."""
    best = front(points)
    if len(best) < 2:
        return None
    parameters, errors = np.log(np.array(best)).T
    return round(float(-np.polyfit(parameters, errors, 1)[0]), 2)
