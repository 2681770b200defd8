"""All constants of a form fitted together, under any loss: Gauss and Newton's matrix, damped."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...nn import function_library as library
from ..descent import Loss, NotFinite, curvature_of, descend, finite, normal_equations
from ..search import bounds
from .form import Form, evaluate


def times(value: float, factor: float) -> float:
    """Return what is `factor` times larger than a value, or so much above a negative one."""
    return value + (factor - 1) * abs(value)


@dataclass(frozen=True)
class Rows:
    """A set of rows and the loss on them: None for the mean squared error.

    Attributes:
        x: (n, inputs) float64. y: (n, out) float64, or what the loss takes.
        floor: a loss that is rounding error.
        rounding: how well constants are known, relative to their size, where nothing but rounding is left.
    """

    x: Tensor
    y: Tensor
    loss: Loss | None
    floor: float
    rounding: float = 1e-9

    def part(self, count: int) -> "Rows":
        """Return at most so many of them, the first ones: they are in random order."""
        return replace(self, x=self.x[:count], y=self.y[:count])

    def limit(self, value: float, factor: float) -> float:
        """Return the loss that is `factor` times larger than a value, or so much above a negative one."""
        return times(value, factor) + self.floor

    def of(self, prediction: Tensor) -> float:
        """Return the loss of a prediction, inf where it is not finite."""
        if self.loss is None:
            return finite(float((prediction - self.y).square().mean()))
        with torch.no_grad():
            return finite(float(self.loss(prediction, self.y)))

    def value(self, form: Form, theta: Tensor) -> float:
        """Return the loss of a formula."""
        return self.of(evaluate(form, theta, self.x)[0])

    def system(self, form: Form, theta: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return Gauss and Newton's matrix and the negative gradient, by the constants that are free."""
        prediction, slope = evaluate(form, theta, self.x, free)
        if self.loss is None:
            return normal_equations(slope, prediction - self.y, None)
        return normal_equations(slope, *curvature_of(self.loss, prediction, self.y))

    def fit(
        self, form: Form, theta: Tensor, free: Tensor, steps: int, tolerance: float = 1e-6
    ) -> tuple[Tensor, float]:
        """Return better constants and their loss; those given, where there are none."""
        start = self.value(form, theta)
        if not bool(free.any()) or start == float("inf"):
            return theta, start

        def full(part: Tensor) -> Tensor:
            whole = theta.clone()
            whole[free] = part
            return whole

        try:
            found, value = descend(
                theta[free],
                start,
                lambda part: self.value(form, full(part)),
                lambda part: self.system(form, full(part), free),
                steps,
                floor=self.floor,
                tolerance=tolerance,
            )
        except NotFinite:  # a slope is infinite right at the end of a domain
            return theta, start
        return full(found), value


def settled(form: Form, theta: Tensor) -> Tensor:
    """Return the same formula where a and b of a term that alone reads a sum are part of that sum.

    The constant of a sum that only a line or an exponential reads is part of what comes after it.
    """
    theta = theta.clone()
    places = {slot[:4]: slot.at for slot in form.slots()}
    for slot in form.slots():
        if slot.term < 0:
            continue
        term = form.term(slot)
        a, b, c = theta[slot.at : slot.at + 3].tolist()
        if term.name == "x":
            theta[slot.at : slot.at + 3] = theta.new_tensor([1.0, 0.0, a * c])
            theta[places[(*slot[:3], -1)]] += c * b
            a, b = 1.0, 0.0
        if slot.layer == 0 or len(form.users(slot.layer - 1, term.source)) > 1:
            continue
        source = term.source
        product = len(form.layers[slot.layer - 1][source]) > 1
        for below in form.slots():
            if (below.layer, below.node, below.factor) == (slot.layer - 1, source, 0):
                theta[below.at + 2 * (below.term >= 0)] *= a
        theta[slot.at] = 1.0
        if product:
            continue
        theta[places[slot.layer - 1, source, 0, -1]] += b
        theta[slot.at + 1] = 0.0
        name, at = form.term(slot).name, places[slot.layer - 1, source, 0, -1]
        shift = float(theta[at])
        if name == "x":
            theta[places[(*slot[:3], -1)]] += theta[slot.at + 2] * shift
            theta[at] = 0.0
        elif name == "exp" and abs(shift) < 30:
            theta[slot.at + 2] *= math.exp(shift)
            theta[at] = 0.0
    return theta


def inside(form: Form, theta: Tensor, x: Tensor) -> Tensor:
    """Return constants for which every function gets arguments inside its domain on the rows x."""
    theta = theta.clone()
    for slot in form.slots():
        if slot.term < 0:
            continue
        term = form.term(slot)
        low, high = bounds(library.get(term.name))
        if low == -torch.inf and high == torch.inf:
            continue
        below = Form(form.inputs, form.layers[: slot.layer])
        values = x if slot.layer == 0 else evaluate(below, theta[: below.size], x)[0]
        a, b = theta[slot.at : slot.at + 2].tolist()
        z = a * values[:, term.source] + b
        least, most = float(z.min()), float(z.max())
        if not (least < low or most > high):
            continue
        margin = 0.02 * (most - least) + 1e-12
        scale = min(1.0, (high - low) / (most - least + 2 * margin))
        shift = max(low - scale * (least - margin), 0.0) + min(high - scale * (most + margin), 0.0)
        theta[slot.at], theta[slot.at + 1] = scale * a, scale * b + shift
    return settled(form, theta)


def head(form: Form) -> Tensor:
    """Return which constants the outputs are linear in: those of the last layer, (size,) bool."""
    mask = torch.zeros(form.size, dtype=torch.bool)
    for slot in form.slots():
        if slot.layer == len(form.layers) - 1 and len(form.layers[-1][slot.node]) == 1:
            mask[slot.at if slot.term < 0 else slot.at + 2] = True
    return mask
