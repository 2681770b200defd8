"""LBFGS on an objective that is scaled up as it shrinks, so that it goes on to rounding error."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import lbfgs
from .lbfgs_memory import Iterations

_PROGRESS = 1e-9  # of an objective near 1: less in a step's first iteration is none
Step = Callable[[Callable[[], Tensor]], Any]
Evaluated = Callable[[], tuple[Tensor, Callable[[float], Any]]]


class LBFGS(lbfgs.LBFGS):
    """The LBFGS of `fit`: torch.optim.LBFGS with strong Wolfe, on an objective that is kept at 1.

    torch's ignores curvature y.s below 1e-10, and so stalls where the loss is that small: at a mean squared
    error of 1e-12 or so. Here the loss is scaled up to 1 before the method sees it, again after every step,
    which changes nothing else: the method does not depend on the scale. Where its memory leads nowhere it
    starts anew, and the line search backs off from NaN. The closure returns the plain loss, and `grad` holds
    the plain gradient; the two tolerances are relative to the loss. Build another one when parameters are
    replaced (`grids.refine`) or get another meaning (`grids.update_grid`).

    Args:
        params: real tensors, as for any optimizer of torch; one group.
        lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size: as for torch.optim.LBFGS.
        line_search_fn: "strong_wolfe", the only one.

    Raises:
        TypeError: a parameter is complex, or `params` are none of torch's.
        ValueError: an option that torch refuses; line_search_fn is not "strong_wolfe".

    Example:
        >>> x = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
        >>> model = KAN([1, 1], dtype=torch.float64)
        >>> optimizer = LBFGS(model.parameters())
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (model(x) - x**2).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> losses = [float(optimizer.step(closure)) for _ in range(3)]
        >>> losses[-1] < losses[0]
        True
    """

    _scale = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take up to `max_iter` iterations and `max_eval` + 1 evaluations. Return the loss before them.

        Args:
            closure: clears the gradients, computes the loss, a tensor of one number, and its gradients, and
                returns the loss.

        Raises:
            TypeError, ValueError: the closure returned something else.
        """
        first: list[Tensor] = []

        def evaluate() -> tuple[Tensor, Callable[[float], None]]:
            loss = closure()  # with gradients: that of the class above has seen to it
            if not isinstance(loss, Tensor):
                raise TypeError(f"closure: returned {type(loss).__name__}, expected the loss as a tensor")
            if loss.numel() != 1:
                raise ValueError(f"closure: returned shape {tuple(loss.shape)}, expected one number")
            first.append(loss)
            return loss.detach(), self._set_scale

        state = self.state[self._params[0]]
        scale = rescaled_step(super().step, evaluate, state.get("scale"), lambda: self.state[self._params[0]])
        if scale is None:
            self.state.clear()
        else:
            self.state[self._params[0]]["scale"] = scale
        return first[0]

    def _set_scale(self, scale: float) -> None:
        self._scale = scale

    def _gradient(self) -> Tensor:
        gradient = super()._gradient()
        return gradient if self._scale == 1.0 else gradient * self._scale


def rescaled_step(
    step: Step,
    evaluate: Evaluated,
    scale: float | None,
    memory: Callable[[], dict[str, Any]],
    on_vector: Callable[[lbfgs.Vector], lbfgs.Function | None] | None = None,
) -> float | None:
    """Take a step of LBFGS on `scale` times an objective, and return the scale to go on with.

    Args:
        step: of an optimizer of torch's kind, which takes a closure.
        evaluate: returns the objective, and what adds so many times its gradient.
        scale: None, before the first step, lifts the objective to 1.
        memory: returns the state of the optimizer, which is rescaled.
        on_vector: see `lbfgs.VectorClosure`.

    Returns:
        None where the direction led nowhere: the memory is of no use then.
    """
    start, latest, calls = None, 1.0, 0

    def see(value: float, dtype: torch.dtype) -> float:
        """Note the objective, and return what the method sees: a line search backs off from inf only."""
        nonlocal start, latest, calls, scale
        calls += 1
        if scale is None:
            scale = _to_one(value)
        latest = value * scale
        start = latest if start is None else start
        return math.inf if math.isnan(latest) else max(latest, torch.finfo(dtype).min)

    def closure() -> Tensor:
        made, backward = evaluate()
        seen = see(float(made), made.dtype)
        assert scale is not None
        backward(scale)
        return made.new_full((), seen)

    def rescaled(vector: lbfgs.Vector) -> lbfgs.Function | None:
        assert on_vector is not None
        function = on_vector(vector)
        if function is None:
            return None

        def evaluated() -> tuple[float, Tensor]:
            value, gradient = function.evaluate()
            seen = see(value, gradient.dtype)
            assert scale is not None
            return seen, gradient if scale == 1.0 else gradient.mul_(scale)

        def iterate(*arguments: Any) -> Iterations:
            nonlocal latest, calls
            assert function.iterate is not None
            made = function.iterate(scale, *arguments)
            if made.evaluations > 1:
                latest, calls = made.latest, calls + made.evaluations - 1
            return made

        return lbfgs.Function(evaluated, None if function.iterate is None else iterate)

    step(closure if on_vector is None else lbfgs.VectorClosure(closure, rescaled))
    if scale is None or start is None:  # it was not called
        return None
    state = memory()
    if calls == 1:  # without a line search the last iteration is not evaluated; or there was none
        slope = float(state["prev_flat_grad"].dot(state["d"])) if "d" in state else 0.0
        progress = -slope
    else:
        progress = start - latest if calls == 2 else math.inf
    if not progress > _PROGRESS:
        return None
    factor = _to_one(latest)
    _rescale(state, factor)
    return scale * factor


def _rescale(memory: dict[str, Any], factor: float) -> None:
    """Go on as if the objective had always been `factor` times larger.

    Of what LBFGS stores, y and the gradient grow with the objective, 1/(y.s) and the diagonal of the inverse
    Hessian shrink, and steps and directions stay.
    """
    for name in ("old_dirs", "prev_flat_grad", "prev_loss"):
        memory[name] = _times(memory[name], factor)
    for name in ("ro", "H_diag"):
        memory[name] = _times(memory[name], 1.0 / factor)


def _to_one(objective: float) -> float:
    """Return the factor that lifts it to 1, if it is smaller."""
    return 1.0 / abs(objective) if 0 < abs(objective) < 1 else 1.0


def _times(value: Any, factor: float) -> Any:
    if not isinstance(value, list):
        return value * factor
    vectors = bool(value) and isinstance(value[0], Tensor)
    return list(torch._foreach_mul(value, factor)) if vectors else [v * factor for v in value]
