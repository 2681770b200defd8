"""LBFGS with a strong-Wolfe line search, in few calls: small models spend their time in Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ARMIJO, CURVATURE = 1e-4, 0.9  # c1 and c2 of Nocedal & Wright, eq. 3.7
FEW = 8192  # parameters: of so many, a call costs more than its arithmetic, and NumPy's calls cost less
NARROW = 1e-9  # a bracket that moves no parameter by more is not searched any further


class Point(NamedTuple):
    """A point of the objective along a direction: step length, value, gradient, directional derivative."""

    t: float
    value: float
    gradient: Tensor
    slope: float


class LBFGS(torch.optim.LBFGS):
    """A faster torch.optim.LBFGS with strong Wolfe: the same arguments, state and steps up to rounding.

    What differs is the work around the evaluations, which takes longer than those of a small model: the
    parameters are written from one vector, once an evaluation; the scalars of the two loops (Nocedal &
    Wright, algorithm 7.4) and of the line search are Python's, so in float32 they are not rounded to it. And
    the line search steps back from NaN, where torch's goes on.

    Raises:
        TypeError: a parameter is complex, or `params` are none of torch's.
        ValueError: an option that torch refuses; line_search_fn is not "strong_wolfe".
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str = "strong_wolfe",
    ) -> None:
        if line_search_fn != "strong_wolfe":
            raise ValueError(f"line_search_fn: got {line_search_fn!r}, expected 'strong_wolfe'")
        options = (lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)
        super().__init__(params, *options)
        self._layout: list[tuple] = []
        self._prepare()

    def _prepare(self) -> None:
        """Make the one vector and its parts, anew where parameters were cast, moved or reshaped."""
        layout = [(p.dtype, p.device, p.shape) for p in self._params]
        if layout == self._layout:
            return
        for n, p in enumerate(self._params):
            if p.is_complex():
                raise TypeError(
                    f"params: parameter {n} is {p.dtype}, expected real ones; see torch.optim.LBFGS"
                )
        self._flat = torch.cat([p.detach().reshape(-1) for p in self._params])
        parts = zip(self._flat.split([p.numel() for p in self._params]), self._params, strict=True)
        self._parts = [part.view(p.shape) for part, p in parts]
        self._layout = layout

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for p in self._params:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take up to `max_iter` iterations and `max_eval` + 1 evaluations. Return the loss before them."""
        self._prepare()
        closure = torch.enable_grad()(closure)
        group = self.param_groups[0]
        lr = float(group["lr"])
        state = self.state[self._params[0]]
        state.setdefault("n_iter", 0)
        state.setdefault("func_evals", 0)
        first = closure()
        value, gradient = float(first), self._gradient()
        evaluations = 1
        for _ in range(group["max_iter"]):
            if _largest(gradient) <= group["tolerance_grad"]:
                break
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
                d, t = gradient.neg(), min(1.0, 1.0 / float(gradient.abs().sum())) * lr
            else:
                self._store(state, gradient, group["history_size"])
                d, t = _direction(state, gradient), lr
            state.update(d=d, t=t, prev_flat_grad=gradient, prev_loss=value)
            slope = float(gradient.dot(d))
            if slope > -group["tolerance_change"]:
                break
            before, largest = value, _largest(d)
            start, left = Point(0.0, value, gradient, slope), group["max_eval"] - evaluations
            point, calls = self._search(closure, d, largest, start, t, left)
            value, gradient = point.value, point.gradient
            state["t"] = point.t
            evaluations += calls
            if evaluations >= group["max_eval"]:
                break
            tolerance = group["tolerance_change"]
            if abs(value - before) < tolerance or point.t * largest <= tolerance:
                break
        state["func_evals"] += evaluations
        return first

    def _gradient(self) -> Tensor:
        parts = []
        for p in self._params:
            g = torch.zeros_like(p) if p.grad is None else p.grad
            parts.append(g.to_dense() if g.is_sparse else g)
        return _flattened(parts)

    def _move(self, start: Tensor, t: float, d: Tensor) -> None:
        """Set the parameters to start + t d; for t = 0 whatever d is."""
        if t == 0:
            self._flat.copy_(start)
        else:
            torch.add(start, d, alpha=t, out=self._flat)
        torch._foreach_copy_(self._params, self._parts)

    @staticmethod
    def _store(state: dict, gradient: Tensor, size: int) -> None:
        """Store the last step and what it did to the gradient, if that shows curvature."""
        y, s = gradient - state["prev_flat_grad"], state["d"] * state["t"]
        curvature = float(y.dot(s))
        if curvature > 1e-10:
            state["old_dirs"].append(y)
            state["old_stps"].append(s)
            state["ro"].append(1.0 / curvature)
            if len(state["ro"]) > size:
                for name in ("old_dirs", "old_stps", "ro"):
                    del state[name][0]
            state["H_diag"] = curvature / float(y.dot(y))

    def _search(
        self, closure, d: Tensor, width: float, start: Point, t: float, most: int
    ) -> tuple[Point, int]:
        """Find a step that satisfies the strong Wolfe conditions, or the best one; the parameters are there.

        Nocedal & Wright, algorithms 3.5 (a bracket) and 3.6 (zoom), with cubic interpolation. width: the
        largest entry of d. most: evaluations after the first one. Returns the step and their number.
        """
        origin = _flattened(self._params)
        more, at = -1, 0.0

        def evaluate(t: float) -> Point:
            nonlocal more, at
            self._move(origin, t, d)
            more, at = more + 1, t
            value, gradient = float(closure()), self._gradient()
            return Point(t, value, gradient, float(gradient.dot(d)))

        def too_high(point: Point) -> bool:
            return not point.value <= start.value + ARMIJO * point.t * start.slope

        def flat(point: Point) -> bool:
            return abs(point.slope) <= -CURVATURE * start.slope

        last, point = start, evaluate(t)
        found = None
        while more < most:
            if too_high(point) or (more > 1 and point.value >= last.value):
                break
            if flat(point):
                found = point
                break
            if point.slope >= 0:
                break
            t = _cubic(last, point, point.t + 0.01 * (point.t - last.t), 10 * point.t)
            last, point = point, evaluate(t)
        else:
            last = start  # the last point was not looked at
        bracket, low, stuck = [last, point], _lower(last, point), False
        while found is None and more < most and abs(bracket[1].t - bracket[0].t) * width >= NARROW:
            left, right = sorted((bracket[0].t, bracket[1].t))
            t, margin = _cubic(bracket[0], bracket[1], left, right), 0.1 * (right - left)
            if min(right - t, t - left) < margin:  # twice in a row or at an end: away from it
                if stuck or t >= right or t <= left:
                    t = right - margin if right - t < t - left else left + margin
                    stuck = False
                else:
                    stuck = True
            else:
                stuck = False
            point = evaluate(t)
            if too_high(point) or point.value >= bracket[low].value:
                bracket[1 - low] = point
                low = _lower(*bracket)  # not the same one where a lower value is still too high
                continue
            if flat(point):
                found = point
                break
            if point.slope * (bracket[1 - low].t - bracket[low].t) >= 0:
                bracket[1 - low] = bracket[low]
            bracket[low] = point
        best = bracket[low] if found is None else found
        if at != best.t:
            self._move(origin, best.t, d)
        return best, more + 1


def _lower(a: Point, b: Point) -> int:
    """Return which of two has the lower value, 0 or 1: the first of equal ones, never NaN beside a number."""
    return 0 if a.value <= b.value or math.isnan(b.value) else 1


def _flattened(tensors: list[Tensor]) -> Tensor:
    flat: Tensor = torch._C._nn.flatten_dense_tensors(tensors)
    return flat.clone() if len(tensors) == 1 else flat  # of one it may be the tensor itself


def _largest(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, math.inf))


def _direction(state: dict, gradient: Tensor) -> Tensor:
    """Return minus the inverse Hessian that the memory stands for, times the gradient."""
    direction = gradient.neg()
    shares, rhos, scale = (
        [],
        [float(rho) for rho in state["ro"]],
        float(state["H_diag"]),
    )  # torch's are tensors
    steps, changes = state["old_stps"], state["old_dirs"]
    d: Any = direction
    add: Callable[..., Any] = torch.Tensor.add_
    if steps and d.numel() <= FEW and d.device.type == "cpu" and d.dtype in (torch.float32, torch.float64):
        d, steps, changes = d.numpy(), torch.stack(steps).numpy(), torch.stack(changes).numpy()
        add = _add
    with np.errstate(all="ignore"):
        for s, y, rho in zip(reversed(steps), reversed(changes), reversed(rhos), strict=True):
            share = rho * float(s.dot(d))
            add(d, y, alpha=-share)
            shares.append(share)
        d *= scale
        for s, y, rho, share in zip(steps, changes, rhos, reversed(shares), strict=True):
            add(d, s, alpha=share - rho * float(y.dot(d)))
    return direction


def _add(to: np.ndarray, vector: np.ndarray, *, alpha: float) -> None:
    to += alpha * vector


def _cubic(a: Point, b: Point, low: float, high: float) -> float:
    """Return where the cubic through two points with their slopes is least, within bounds (eq. 3.59)."""
    if a.t > b.t:
        a, b = b, a
    values = a.value, b.value, a.slope, b.slope
    if a.t < b.t and all(map(math.isfinite, values)):
        d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
        square = d1 * d1 - a.slope * b.slope
        if square >= 0:
            d2 = math.sqrt(square)
            below = b.slope - a.slope + 2 * d2
            if below != 0:
                t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / below)
                return min(max(t, low), high)
    return (low + high) / 2
