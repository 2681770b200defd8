"""An objective that is a function of the model: residuals of differential equations, with any derivatives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import replicas
from ..composition import layers_of
from ..nn import KAN, KANLinear
from .data import Batches, Points, evaluating
from .lbfgs import Vector
from .objective import Evaluate, Objective, one_number


class Equation(Objective):
    """The objective function(model) + lamb regularization(kan, points), for the one KAN inside the model.

    Where the points are drawn by a function, they are the objective's second argument.
    """

    def __init__(
        self,
        model: nn.Module,
        function: Callable[..., Tensor],
        points: Points,
        lamb: float,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(model, None, lamb, options)
        self.function, self.drawn = function, points.function is not None

    @staticmethod
    def kan_of(model: nn.Module) -> nn.Module:
        return kan_inside(model)

    def value(self, function: Callable[..., Any], x: Tensor) -> Any:
        """Return a function of the model, which may differentiate it."""
        with torch.enable_grad():
            return function(self.model, x) if self.drawn else function(self.model)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        value = one_number("objective", self.value(self.function, x)).reshape(())
        if not self.lamb:
            return value, None
        from ..regularization import regularization

        with torch.enable_grad():
            return value, regularization(kan_inside(self.model), x, **self.options)

    def try_out(self, x: Tensor, y: Tensor) -> None:
        with evaluating(self.model):
            value, _ = self(x, y)
        if value.is_complex():
            raise TypeError(f"objective: got {value.dtype}, expected a function that returns a real number")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        reached = value.requires_grad and any(
            g is not None for g in torch.autograd.grad(value, parameters, allow_unused=True)
        )
        if not reached:
            raise ValueError(
                "objective: its value has no gradient for the parameters of the model, expected a function "
                "that computes it from the model it gets, without detach, no_grad or item"
            )

    def final(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        value, penalty = self(x, y)
        return value.detach(), None if penalty is None else penalty.detach()

    def measure(self, batches: Batches, functions: Mapping[str, Any]) -> dict[str, float]:
        """Return functions of the model, or of the model and its points where those are drawn."""
        (x, _), *_ = batches
        with evaluating(self.model):
            return {name: float(self.value(function, x)) for name, function in functions.items()}

    def on(self, x: Tensor, y: Tensor, vector: Vector | None = None) -> Evaluate | None:
        return None if vector is not None else lambda: self._with_autograd(*self(x, y))


def kans_inside(model: nn.Module) -> list[nn.Module]:
    """Return the KANs in a model, and the KANLinear that are in none of them."""
    if isinstance(model, (KAN, KANLinear)):
        return [model]
    found = {id(kan): kan for child in model.children() for kan in kans_inside(child)}
    return list(found.values())


def kan_inside(model: nn.Module) -> nn.Module:
    """Return the one KAN or KANLinear that the model is or has.

    Raises:
        TypeError: there is none, or there are several.
    """
    found = kans_inside(model)
    if len(found) != 1:
        raise TypeError(
            f"model: {type(model).__name__} has {len(found)} KANs, expected one for points, penalties and "
            "changes of grids"
        )
    return found[0]


def points_of(
    model: nn.Module, objective: object, points: object, resample_at: list[int], given: dict, needed: bool
) -> Points:
    """Return the points of an objective, checked. `given`: arguments of data that there must not be."""
    if not callable(objective):
        raise TypeError(f"objective: got {objective!r}, expected a function of the model")
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: got it beside objective, expected None: the objective has its own")
    if replicas.is_sharded(model) or replicas.unwrapped(model) is not model:
        raise ValueError("objective: got a model that is spread over ranks, expected a whole one")
    if resample_at and not callable(points):
        raise ValueError("resample_at: got steps, but points is no function that could be asked for others")
    if needed and points is None:
        raise ValueError(
            "points: got None, expected a tensor (..., in) for the penalty and grid updates to look at"
        )
    layer = layers_of(kan_inside(model))[0] if len(kans_inside(model)) == 1 or needed else None
    return Points(model, layer, points)
