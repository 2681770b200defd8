"""The spline networks of `discover`: data in their units, a training from coarse to fine."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import grids
from ...inspection import node_values
from ...nn import KAN
from ...nn.network import drawn
from ...training import fit
from .joint import Rows

Widths = tuple[int | tuple[int, int], ...]  # as KAN takes them

COARSE, FINE = (5, 8), ((10, 12), (20, 16))  # cells and LBFGS steps


@dataclass(frozen=True)
class Data:
    """The data of a search: rows to fit and rows to judge by, and the units in which networks see them.

    Attributes:
        train, valid: see `Rows`.
        center, half: (inputs,), that map the training rows to [-1, 1].
        mean, scale: (out,), of y; 0 and 1 beside a loss of the user's.
        outputs: how many numbers a prediction has.
        exact: a root mean square error below that is rounding.
        exact_outputs: (out,), the same of each output: where all are below theirs the formula is exact.
    """

    train: Rows
    valid: Rows
    center: Tensor
    half: Tensor
    mean: Tensor
    scale: Tensor
    outputs: int
    exact: float
    exact_outputs: Tensor

    def units(self, x: Tensor) -> Tensor:
        """Map rows to what the networks see."""
        return (x - self.center) / self.half

    def target(self, rows: Rows) -> Tensor:
        """Return y in the units of the networks."""
        return rows.y if rows.loss is not None else (rows.y - self.mean) / self.scale

    def prediction(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return what a network makes of rows in its units, in y's own units."""
        y: Tensor = model(x)
        return y * self.scale + self.mean

    def loss(self, model: nn.Module, rows: Rows) -> float:
        """Return the loss of a network on rows, in y's own units."""
        with torch.no_grad():
            return rows.of(self.prediction(model, self.units(rows.x)))

    @property
    def variance(self) -> float:
        """Return the mean variance of the outputs; 1 beside a loss of the user's."""
        return float(self.scale.square().mean())


@dataclass
class Judged:
    """The losses of splines, and the seed they came from, None of a regression."""

    seed: int | None
    train: float
    valid: float


@dataclass
class Trained(Judged):
    """A network with its losses."""

    model: KAN

    def state(self) -> dict[str, Any]:
        """Return plain data and tensors, for a checkpoint."""
        losses = {"seed": self.seed, "train": self.train, "valid": self.valid}
        return {**losses, "model": self.model.state_dict()}


def restored(data: Data, widths: Widths, state: dict[str, Any]) -> Trained:
    """Return the network on a coarse grid that `state` was taken from."""
    values = dict(state)
    model = _new(data, widths, values["seed"])
    model.load_state_dict(values.pop("model"))
    return Trained(model=model, **values)


def _new(data: Data, widths: Widths, seed: int) -> KAN:
    generator = torch.Generator().manual_seed(seed)
    model = drawn(generator, widths, COARSE[0], base="identity", dtype=torch.float64)
    if data.train.loss is not None:
        model.layers[-1].bias = nn.Parameter(torch.zeros(data.outputs, dtype=torch.float64))
    return model


def coarse(data: Data, widths: Widths, seed: int) -> Trained:
    """Return a network in float64 on a coarse grid, after a few steps."""
    model = _new(data, widths, seed)
    train(data, model, COARSE[1])
    return judged(data, model, seed)


def fine(data: Data, start: Trained) -> Trained:
    """Return a copy, trained further on finer and finer grids while that helps on the rows to judge by."""
    best, model = start, start.model
    cells = len(data.train.x) // 8
    for size, steps in FINE:
        model = copy.deepcopy(model)
        for layer, x in zip(model.layers, node_values(model, data.units(data.train.x)), strict=False):
            if min(size, cells) > layer.grid_size:
                grids.refine(layer, min(size, cells), x)
        train(data, model, steps)
        new = judged(data, model, start.seed)
        if not new.valid < best.valid:
            break
        best = new
    return best


def train(data: Data, model: KAN, steps: int) -> None:
    """Take steps of LBFGS, with the knots where the data are.

    Under a loss of the user's a network ends where it is best on rows that it does not see: where classes can
    be told apart it would grow sure of itself without end.
    """
    loss, x = data.train.loss, data.units(data.train.x)
    rows: Any = (x, data.target(data.train))
    if loss is not None:
        rows = {"train": rows, "test": (data.units(data.valid.x), data.target(data.valid))}
    for layer, inputs in zip(model.layers, node_values(model, x), strict=False):
        grids.update_grid(layer, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that diverges is put back, and judged as it is
        history = fit(
            model, rows, steps=steps, loss=loss, progress=False,
            evaluate_every=steps if loss is None else 1, patience=None if loss is None else steps,
        )  # fmt: skip
    if history.stopped == "interrupted":  # which ends that training alone
        raise KeyboardInterrupt


def judged(data: Data, model: KAN, seed: int | None) -> Trained:
    """Return the network with its losses."""
    return Trained(seed, data.loss(model, data.train), data.loss(model, data.valid), model)
