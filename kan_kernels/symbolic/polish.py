"""Polish: least squares on the few parameters of the formulas, to rounding error."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from .. import replicas
from .._core import checks, threads
from ..inspection import layers_of
from .curves import rows

_ROWS = 4096  # at a time


def polish(model: torch.nn.Module, x: Tensor, y: Tensor, *, steps: int = 50, group: Any = None) -> float:
    """Fit all formulas of a model together: Levenberg-Marquardt on their parameters and the biases.

    With a handful of parameters this ends at rounding error, where first-order methods and LBFGS slow down.
    Splines that are left do not move.

    Args:
        model: a KAN or a KANLinear with at least one formula.
        x: (..., in), finite. y: (..., out), finite.
        steps: iterations, at most.
        group: as for `grids.update_grid`: the rows of all ranks count, and all get the same.

    Returns:
        The root mean square error at the end; the model's is never larger than before.

    Raises:
        TypeError, ValueError: naming the argument; no edge of the model has a formula;
            outputs or derivatives are not finite. The model is as it was.

    Example:
        >>> layer, x = KANLinear(1, 1), torch.linspace(-1, 1, 64)[:, None]
        >>> symbolic.fix(layer, 0, 0, "x", params=(1, 0, 1, 0))
        >>> polish(layer, x, 3 * x + 1) < 1e-6
        True
    """
    layers = layers_of(model)
    if (ranks := replicas.resolve(model, group)) is not None:

        def polished(x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
            other = copy.deepcopy(model)
            left = polish(other, x, y, steps=steps, group=replicas.LOCAL)
            return left, {name: value.cpu() for name, value in other.state_dict().items()}

        left, state = replicas.shared(ranks, model, ("polish", steps), polished, x, y)
        model.load_state_dict(state)
        return left
    x = rows(layers[0], x)
    checks.tensor("y", y)
    y = y.detach().reshape(-1, y.shape[-1]) if y.dim() else y
    if y.shape != (x.shape[0], layers[-1].out_features):
        raise ValueError(
            f"y: got {tuple(y.shape)} rows and columns, expected {(x.shape[0], layers[-1].out_features)}"
        )
    if not y.isfinite().all():
        raise ValueError("y: has NaN or inf, expected finite numbers")
    steps = checks.integer("steps", steps, 0)
    if all(layer.symbolic is None for layer in layers):
        raise ValueError(
            "model: no edge has a formula, expected at least one; use symbolic.auto or symbolic.fix"
        )
    free = {
        name: value.detach()
        for name, value in model.named_parameters()
        if name.endswith(("symbolic.affine", "bias"))
    }
    sizes = [value.numel() for value in free.values()]
    x, y = x.to(next(iter(free.values())).dtype), y.double()

    def outputs(theta: Tensor, part: Tensor) -> Tensor:
        values = zip(free.items(), theta.split(sizes), strict=True)
        named = {name: flat.view_as(value).to(value.dtype) for (name, value), flat in values}
        return torch.func.functional_call(model, named, (part,)).double()

    @threads.few(len(x) * sum(sizes))
    @torch.no_grad()
    def error(theta: Tensor) -> float:
        return sum(
            float((outputs(theta, p) - q).square().sum())
            for p, q in zip(x.split(_ROWS), y.split(_ROWS), strict=True)
        )

    @threads.few(len(x) * sum(sizes))
    def system(theta: Tensor) -> tuple[Tensor, Tensor]:
        matrix, gradient = theta.new_zeros(len(theta), len(theta)), theta.new_zeros(len(theta))
        for p, q in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            jacobian = torch.func.jacfwd(outputs)(theta, p).flatten(0, 1).detach()
            matrix += jacobian.t() @ jacobian
            gradient += jacobian.t() @ (q - outputs(theta, p).detach()).flatten()
        return matrix, gradient

    theta = torch.cat([value.flatten().double() for value in free.values()])
    best, damping = error(theta), 1e-3
    if not math.isfinite(best):
        raise ValueError("model: its outputs are not finite on x")
    for _ in range(steps):
        matrix, gradient = system(theta)
        if not (matrix.isfinite().all() and gradient.isfinite().all()):
            raise ValueError("model: the derivatives of its outputs are not finite on x")
        scale = matrix.diagonal() + 1e-12 * matrix.diagonal().max()
        while damping < 1e8:
            # formulas have parameters that can be traded against each other; the damping chooses among them
            damped = (matrix + damping * scale.diag()).cpu()  # gelsd, for any rank, runs on the CPU only
            move = torch.linalg.lstsq(damped, gradient.cpu()[:, None], driver="gelsd").solution[:, 0]
            trial = theta + move.to(theta.device)
            found = error(trial)
            if found < best:  # false for NaN, where a step leaves a domain
                break
            damping *= 8
        else:
            break
        theta, best, damping = trial, found, max(damping / 10, 1e-12)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for (name, value), flat in zip(free.items(), theta.split(sizes), strict=True):
            parameters[name].copy_(flat.view_as(value))
    return (best / y.numel()) ** 0.5
