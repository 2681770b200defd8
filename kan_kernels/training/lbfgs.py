"""LBFGS with a strong-Wolfe line search, in few calls: small models spend their time in Python."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .lbfgs_memory import FewNumbers, Iterations, Memory, described, largest, memory_of

ARMIJO, CURVATURE = 1e-4, 0.9  # c1 and c2 of Nocedal & Wright, eq. 3.7
AT_ONCE = 100  # evaluations of one call, for whose end an interrupt waits
NARROW = 1e-9  # a bracket that moves no parameter by more is not searched any further


class Point(NamedTuple):
    """A point of the objective along a direction: step length, value, gradient, directional derivative."""

    t: float
    value: float
    gradient: Tensor
    slope: float


class Vector(NamedTuple):
    """A vector of all parameters, one behind the other."""

    numbers: Tensor
    parameters: list[Tensor]


class Function(NamedTuple):
    """The objective as a function of the vector, or of the parameters.

    evaluate: returns the objective there, and a gradient of its own. iterate: takes the iterations of a step
    from the vector, as `LBFGS._iterate` does, or None; it has the arguments of the op `kan_network_lbfgs`
    from `value` on.
    """

    evaluate: Callable[[], tuple[Any, Tensor]]
    iterate: Callable[..., Iterations] | None = None


class VectorClosure:
    """A closure for `LBFGS.step` that may know the objective as a function of one vector.

    The parameters are then written once a step. on_vector: returns that function of the vector that it gets;
    None, where the parameters have to be looked at.
    """

    def __init__(self, closure: Callable[[], Tensor], on_vector: Callable[[Vector], Function | None]) -> None:
        self.closure, self.on_vector = closure, on_vector

    def __call__(self) -> Tensor:
        return self.closure()


class LBFGS(torch.optim.LBFGS):
    """A faster torch.optim.LBFGS with strong Wolfe: the same arguments, state and steps up to rounding.

    What differs is the work around the evaluations, which takes longer than those of a small model: the
    parameters are written from one vector, once an evaluation or, by a `VectorClosure`, once a step; the
    scalars of the two loops (Nocedal & Wright, algorithm 7.4) and of the line search are Python's, so in
    float32 they are not rounded to it. And the line search steps back from NaN, where torch's goes on.

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
        state = self.state.get(self._params[0], {})
        for name in ("d", "prev_flat_grad"):
            if name in state:
                state[name] = state[name].to(self._flat)
        for name in ("old_dirs", "old_stps"):
            if name in state:
                state[name] = [vector.to(self._flat) for vector in state[name]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for p in self._params:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take up to `max_iter` iterations and `max_eval` + 1 evaluations. Return the loss before them."""
        self._prepare()
        function = None
        if isinstance(closure, VectorClosure):
            torch._foreach_copy_(self._parts, self._params)
            function = closure.on_vector(Vector(self._flat, self._params))
        if function is None:
            return self._minimize(Function(partial(self._at_parameters, torch.enable_grad()(closure))), False)
        state = self.state[self._params[0]]
        before = dict(state)
        try:
            first = self._minimize(function, True)
        except BaseException:  # the parameters are those of before, too
            state.clear()
            state.update(before)
            raise
        torch._foreach_copy_(self._params, self._parts)
        return self._flat.new_full((), first)

    def _at_parameters(self, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        return closure(), self._gradient()

    def _minimize(self, function: Function, on_vector: bool) -> Any:
        """Do what `step` does with a function of the vector, or of the parameters."""
        group = self.param_groups[0]
        state = self.state[self._params[0]]
        state.setdefault("n_iter", 0)
        state.setdefault("func_evals", 0)
        first, gradient = function.evaluate()
        value = float(first)
        memory = memory_of(state, group["history_size"], gradient, group["max_iter"])
        try:
            iterate = function.iterate if group["max_eval"] <= AT_ONCE else None
            if iterate is not None and isinstance(memory, FewNumbers):
                evaluations = self._iterate_in_one_call(iterate, memory, value, gradient)
            else:
                evaluations = self._iterate(function.evaluate, on_vector, memory, value, gradient)
        finally:
            memory.write(state)
        state["func_evals"] += evaluations
        return first

    def _iterate_in_one_call(
        self, iterate: Callable[..., Iterations], memory: FewNumbers, value: float, gradient: Tensor
    ) -> int:
        """Do what `_iterate` does where the objective has a call for it."""
        group, state = self.param_groups[0], self.state[self._params[0]]
        taken = state["n_iter"]
        last = state.get("prev_flat_grad"), state.get("d"), float(state.get("t", 0.0))
        most = group["max_iter"], math.ceil(group["max_eval"])
        options = float(group["lr"]), *most, group["tolerance_grad"], group["tolerance_change"]
        made = memory.iterate(iterate, value, gradient, taken, *last, *options)
        if made.iterations > taken:
            state.update(n_iter=made.iterations, d=made.d, t=made.t)
            state.update(prev_flat_grad=made.previous, prev_loss=made.value)
        return made.evaluations

    def _iterate(
        self, function: Callable[[], tuple[Any, Tensor]], on_vector: bool, memory: Memory, value: float,
        gradient: Tensor,
    ) -> int:  # fmt: skip
        """Take the iterations of a step from a value and a gradient; return the number of evaluations."""
        group, state = self.param_groups[0], self.state[self._params[0]]
        lr, evaluations = float(group["lr"]), 1
        for _ in range(group["max_iter"]):
            if largest(gradient) <= group["tolerance_grad"]:
                break
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                memory.clear()
                way, t = described(gradient.neg(), gradient), min(1.0, 1.0 / float(gradient.abs().sum())) * lr
            else:
                last = state["prev_flat_grad"], state["d"], float(state["t"])  # torch's may be a tensor
                way, t = memory.next(gradient, *last), lr
            state.update(d=way.d, t=t, prev_flat_grad=gradient, prev_loss=value)
            if way.slope > -group["tolerance_change"]:
                break
            before, start = value, Point(0.0, value, gradient, way.slope)
            left = group["max_eval"] - evaluations
            point, calls = self._search(function, on_vector, way.d, way.largest, start, t, left)
            value, gradient = point.value, point.gradient
            state["t"] = point.t
            evaluations += calls
            if evaluations >= group["max_eval"]:
                break
            tolerance = group["tolerance_change"]
            if abs(value - before) < tolerance or point.t * way.largest <= tolerance:
                break
        return evaluations

    def _gradient(self) -> Tensor:
        parts = []
        for p in self._params:
            g = torch.zeros_like(p) if p.grad is None else p.grad
            parts.append(g.to_dense() if g.is_sparse else g)
        return _flattened(parts)

    def _move(self, start: Tensor, t: float, d: Tensor, on_vector: bool) -> None:
        """Set the vector, or the parameters, to start + t d; for t = 0 whatever d is."""
        if t == 0:
            self._flat.copy_(start)
        else:
            torch.add(start, d, alpha=t, out=self._flat)
        if not on_vector:
            torch._foreach_copy_(self._params, self._parts)

    def _search(
        self, function, on_vector: bool, d: Tensor, width: float, start: Point, t: float, most: int
    ) -> tuple[Point, int]:
        """Find a step that satisfies the strong Wolfe conditions, or the best one, and move there.

        Nocedal & Wright, algorithms 3.5 (a bracket) and 3.6 (zoom), with cubic interpolation. width: the
        largest entry of d. most: evaluations after the first one. Returns the step and their number.
        """
        origin = self._flat.clone() if on_vector else _flattened(self._params)
        more, at = -1, 0.0

        def evaluate(t: float) -> Point:
            nonlocal more, at
            self._move(origin, t, d, on_vector)
            more, at = more + 1, t
            value, gradient = function()
            return Point(t, float(value), gradient, float(gradient.dot(d)))

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
            self._move(origin, best.t, d, on_vector)
        return best, more + 1


def _lower(a: Point, b: Point) -> int:
    """Return which of two has the lower value, 0 or 1: the first of equal ones, never NaN beside a number."""
    return 0 if a.value <= b.value or math.isnan(b.value) else 1


def _flattened(tensors: list[Tensor]) -> Tensor:
    flat: Tensor = torch._C._nn.flatten_dense_tensors(tensors)
    return flat.clone() if len(tensors) == 1 else flat  # of one it may be the tensor itself


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
