"""Levenberg-Marquardt on a few parameters: for the formulas of a model, and those that `discover` tries."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SMALL, LARGE = 1e-12, 1e8  # of the damping

System = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class NotFinite(ValueError):
    """A sign that derivatives are not finite where the search stands."""


def descend(
    theta: Tensor,
    best: float,
    value: Callable[[Tensor], float],
    system: Callable[[Tensor], System],
    steps: int,
    *,
    floor: float = 0.0,
    tolerance: float = 0.0,
    inner: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Return the parameters with the least value found, and that value, which is never above `best`.

    Args:
        theta: (P,) float64, where to start. best: the value there.
        value: what is minimised; where it is NaN or inf, no step leads.
        system: parameters -> Gauss and Newton's matrix (P, P) and the negative gradient (P,), of the same
            multiple of the value. What is not finite there raises NotFinite.
        steps: at most.
        floor: a value that is as good as none. tolerance: the share that a step must gain, three times.
        inner: (P,) bool, the parameters inside of functions. They stay where they are as long as every step
            of all parameters leads out of a domain.
    """
    inner = torch.zeros_like(theta, dtype=torch.bool) if inner is None else inner
    damping, idle = 1e-3, 0
    for _ in range(steps):
        if best <= floor or idle == 3:
            break
        matrix, gradient = system(theta)
        if not (matrix.isfinite().all() and gradient.isfinite().all()):
            raise NotFinite
        step = _step(theta, best, value, matrix, gradient, damping)
        if step.theta is None and step.left and inner.any():
            matrix = matrix.masked_fill(inner | inner[:, None], 0.0)
            step = _step(theta, best, value, matrix, gradient.masked_fill(inner, 0.0), 1e-3)
        if step.theta is None:
            break
        idle = idle + 1 if best - step.value <= tolerance * abs(best) else 0
        theta, best, damping = step.theta, step.value, max(step.damping / 10, SMALL)
    return theta, best


class _Step(NamedTuple):
    """A better place, its value and the damping that led there; None, and whether a domain was left."""

    theta: Tensor | None
    value: float
    damping: float
    left: bool


def _step(
    theta: Tensor, best: float, value: Callable[[Tensor], float], matrix: Tensor, gradient: Tensor,
    damping: float,
) -> _Step:  # fmt: skip
    # in units in which all parameters matter alike: those of x must not decide what has no rank
    unit = matrix.diagonal().sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    scaled, slope = (matrix / unit / unit[:, None]).cpu(), (gradient / unit).cpu()[:, None]
    left = False
    while damping < LARGE:
        # formulas have parameters that can be traded against each other; the damping chooses among them
        damped = scaled + damping * torch.eye(len(unit), dtype=scaled.dtype)
        move = torch.linalg.lstsq(damped, slope, driver="gelsd").solution[:, 0]  # any rank; on the CPU only
        trial = theta + move.to(theta.device) / unit
        found = value(trial)
        if found < best:  # false for NaN, where a step leaves a domain
            return _Step(trial, found, damping, left)
        left = left or not math.isfinite(found)
        damping *= 8
    return _Step(None, best, damping, left)


def normal_equations(jacobian: Tensor, slope: Tensor, curvature: Tensor | None) -> System:
    """Return Gauss and Newton's matrix (P, P) and the negative gradient (P,).

    Args:
        jacobian: (n, out, P), of the predictions.
        slope: (n, out), the gradient of the loss by them. curvature: (n, out, out); None for the identity.
    """
    flat = jacobian.flatten(0, 1)
    gradient = flat.t() @ slope.flatten()
    if curvature is None:
        return flat.t() @ flat, -gradient
    return torch.einsum("nof,nop,npg->fg", jacobian, curvature, jacobian), -gradient


def finite(value: float) -> float:
    """Return the value, or inf in place of NaN."""
    return value if math.isfinite(value) else math.inf


def curvature_of(loss: Loss, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (n, out) and the curvature (n, out, out) of a loss by the prediction.

    Each row's curvature is made positive semidefinite, and where a loss has none, as the absolute error, it
    gets a little: steps are then the gradient's.
    """
    p = prediction.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(p, y)
        (gradient,) = torch.autograd.grad(value, p, create_graph=True)
        columns = []
        for k in range(p.shape[1]):
            second = None
            if gradient.requires_grad:
                (second,) = torch.autograd.grad(gradient[:, k].sum(), p, retain_graph=True, allow_unused=True)
            columns.append(torch.zeros_like(p) if second is None else second)
    gradient, matrix = gradient.detach(), torch.stack(columns, 1)
    values, vectors = torch.linalg.eigh((matrix + matrix.transpose(1, 2)) / 2)
    spread = float((p.detach() - p.detach().mean(0)).abs().mean()) + 1e-12
    least = 1e-3 * float(gradient.abs().mean()) / spread
    return gradient, (vectors * values.clamp(min=least)[:, None]) @ vectors.transpose(1, 2)
