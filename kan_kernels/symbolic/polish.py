"""Polish: all constants of a model's formulas fitted together, to rounding error, under any loss."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import replicas
from .._core import checks, threads
from ..composition import check_chain, layers_of, opened, products_of
from .curves import rows, x_dtype
from .descent import Loss, NotFinite, curvature_of, descend, normal_equations

_ROWS = 4096  # at a time
Residual = Callable[[torch.nn.Module, Tensor], Tensor]


def polish(
    model: torch.nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    loss: Loss | None = None,
    residual: Residual | None = None,
    steps: int = 50,
    group: Any = None,
) -> float:
    """Fit all formulas of a model together: Levenberg-Marquardt on their parameters and the biases.

    With a handful of parameters this ends at rounding error, where first-order methods and LBFGS slow down.
    Splines that are left do not move. Of a loss, the curvature takes the place of the squares: each row's
    part of it is made positive semidefinite, and only steps that lower the loss are taken.

    Args:
        model: a KAN or a KANLinear with at least one formula.
        x: (..., in), finite.
        y: (..., out), finite; beside a loss what it takes, a row for each of x; with a residual None.
        loss: of (prediction, y), a scalar, a mean or sum over rows; the mean squared error by default.
        residual: of (model, x), a tensor of any shape that should be 0, such as what is left of a
            differential equation: it may call the model as often as it likes, and torch.autograd.grad with
            create_graph=True for derivatives.
        steps: iterations, at most.
        group: as for `grids.update_grid`: the rows of all ranks count, and all get the same.

    Returns:
        At the end, the root mean square error or residual, or the loss; never larger than before.

    Raises:
        TypeError, ValueError: naming the argument; no edge of the model has a formula;
            outputs or derivatives are not finite. The model is as it was.

    Example:
        >>> layer, x = KANLinear(1, 1), torch.linspace(-1, 1, 64)[:, None]
        >>> symbolic.fix(layer, 0, 0, "x", params=(1, 0, 1, 0))
        >>> polish(layer, x, 3 * x + 1) < 1e-6
        True
        >>> polish(layer, x, residual=lambda model, x: model(x) - x) < 1e-6
        True
    """
    if residual is None:
        model, x = opened(model, x)
    layers = layers_of(model)
    check_chain(model)
    for name, function in (("loss", loss), ("residual", residual)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {function!r}, expected a function")
    if residual is not None and (y is not None or loss is not None):
        raise ValueError("residual: got it beside y or loss, expected one or the other")
    if residual is None and y is None:
        raise ValueError("y: got None, expected what the model should give, or a residual")
    if (ranks := replicas.resolve(model, group)) is not None:
        options = {"loss": loss, "residual": residual, "steps": steps}

        def polished(x: Tensor, y: Tensor | None = None) -> tuple[float, dict[str, Tensor]]:
            other = copy.deepcopy(model)
            left = polish(other, x, y, **options, group=replicas.LOCAL)  # type: ignore[arg-type]
            return left, {name: value.cpu() for name, value in other.state_dict().items()}

        given = (x,) if y is None else (x, y)
        left, state = replicas.shared(ranks, model, ("polish", steps), polished, *given)
        model.load_state_dict(state)
        return left
    x = rows(layers[0], x)
    steps = checks.integer("steps", steps, 0)
    if y is not None:
        y = _target(y, x, products_of(model)[-1].nodes, loss)
    if all(layer.symbolic is None for layer in layers):
        raise ValueError(
            "model: no edge has a formula, expected at least one; use symbolic.auto or symbolic.fix"
        )
    free: dict[str, Tensor] = {
        name: value
        for name, value in model.named_parameters()
        if name.endswith(("symbolic.affine", "bias")) and value.requires_grad
    }
    if not free:
        raise ValueError(
            "model: all its formulas and biases are frozen, expected one that requires gradients"
        )
    x = x.to(x_dtype(layers[0]))
    problem: _Outputs | _Residual
    problem = _Outputs(model, free, x, y, loss) if residual is None else _Residual(model, free, x, residual)
    start = torch.cat([value.detach().flatten().double() for value in free.values()])
    inner = torch.cat([_is_inner(name, value) for name, value in free.items()])
    end = start  # what the model is left with, whatever happens
    try:
        best = problem.value(start)
        if not math.isfinite(best):
            what = "outputs are" if loss is None and residual is None else "loss or residual is"
            raise ValueError(f"model: its {what} not finite on x")
        try:
            with threads.few(len(x) * len(start)):
                end, best = descend(start, best, problem.value, problem.system, steps, inner=inner)
        except NotFinite as error:
            raise ValueError("model: the derivatives of its outputs are not finite on x") from error
    finally:
        problem.close(end)
    if loss is not None:
        return best
    return (best / problem.count) ** 0.5


def _is_inner(name: str, value: Tensor) -> Tensor:
    """Return which parameters stand inside of a function: a and b of c f(a x + b) + d."""
    inner = torch.zeros_like(value, dtype=torch.bool)
    if not name.endswith("bias"):
        inner[:, :2] = True
    return inner.flatten()


def error_of(model: torch.nn.Module, x: Tensor, y: Tensor, loss: Loss | None) -> float:
    """Return the root mean square error of a model, or its loss.

    Raises:
        TypeError, ValueError: naming the argument; the error is not finite.
    """
    layers = layers_of(model)
    x = rows(layers[0], x)
    y = _target(y, x, products_of(model)[-1].nodes, loss)
    with torch.no_grad():
        prediction = model(x.to(x_dtype(layers[0]))).double()
        value = (prediction - y).square().mean().sqrt() if loss is None else loss(prediction, y)
    if not math.isfinite(float(value)):
        raise ValueError(f"y: the model's error is {float(value)}, expected a finite one")
    return float(value)


def _target(y: object, x: Tensor, outputs: int, loss: Loss | None) -> Tensor:
    """Return y as rows like those of x, checked."""
    if loss is None:
        checks.tensor("y", y)
    if not isinstance(y, Tensor):
        raise TypeError(f"y: got {type(y).__name__}, expected a torch.Tensor")
    y = y.detach()
    if loss is None:
        y = y.reshape(-1, y.shape[-1]) if y.dim() else y
        if y.shape != (x.shape[0], outputs):
            raise ValueError(f"y: got {tuple(y.shape)} rows and columns, expected {(x.shape[0], outputs)}")
    elif y.dim() == 0 or len(y) != len(x):
        raise ValueError(f"y: got shape {tuple(y.shape)}, expected {len(x)} rows like x")
    if not y.isfinite().all():
        raise ValueError("y: has NaN or inf, expected finite numbers")
    return y.double() if y.is_floating_point() or loss is None else y


class _Outputs:
    """The outputs of a model by some of its parameters, against y."""

    def __init__(
        self, model: torch.nn.Module, free: dict[str, Tensor], x: Tensor, y: Tensor | None, loss: Loss | None
    ) -> None:
        assert y is not None
        self.model, self.free, self.x, self.y, self.loss = model, free, x, y, loss
        self.sizes = [value.numel() for value in free.values()]
        self.count = y.numel()

    def outputs(self, theta: Tensor, part: Tensor) -> Tensor:
        """Return the outputs on some rows."""
        values = zip(self.free.items(), theta.split(self.sizes), strict=True)
        named = {name: flat.view_as(value).to(value.dtype) for (name, value), flat in values}
        return torch.func.functional_call(self.model, named, (part,)).double()

    @torch.no_grad()
    def value(self, theta: Tensor) -> float:
        """Return the sum of squares, or the loss."""
        parts = [self.outputs(theta, part) for part in self.x.split(_ROWS)]
        if self.loss is not None:
            return float(self.loss(torch.cat(parts), self.y))
        wanted = self.y.split(_ROWS)
        return sum(float((p - q).square().sum()) for p, q in zip(parts, wanted, strict=True))

    def system(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return Gauss and Newton's matrix and the negative gradient."""
        matrix, gradient = theta.new_zeros(len(theta), len(theta)), theta.new_zeros(len(theta))
        with torch.no_grad():
            predictions = [self.outputs(theta, part) for part in self.x.split(_ROWS)]
        if self.loss is not None:
            slope, bend = curvature_of(self.loss, torch.cat(predictions), self.y)
            bends = bend.split(_ROWS)
        else:
            slope = torch.cat(predictions) - self.y
        for n, (part, along) in enumerate(zip(self.x.split(_ROWS), slope.split(_ROWS), strict=True)):
            jacobian = torch.func.jacfwd(self.outputs)(theta, part).detach()
            more = normal_equations(jacobian, along, None if self.loss is None else bends[n])
            matrix, gradient = matrix + more[0], gradient + more[1]
        return matrix, gradient

    @torch.no_grad()
    def close(self, theta: Tensor) -> None:
        """Give the model these parameters."""
        for value, flat in zip(self.free.values(), theta.split(self.sizes), strict=True):
            value.copy_(flat.view_as(value))


class _Residual:
    """A residual that calls a model, by some of its parameters, which change in place meanwhile."""

    def __init__(
        self, model: torch.nn.Module, free: dict[str, Tensor], x: Tensor, residual: Residual
    ) -> None:
        self.model, self.x, self.residual = model, x, residual
        self.parameters = list(free.values())
        self.sizes = [value.numel() for value in self.parameters]
        self.count = 1

    def value(self, theta: Tensor) -> float:
        """Return the sum of squares."""
        return float(self._at(theta).detach().square().sum())

    def _at(self, theta: Tensor) -> Tensor:
        self._write(theta)
        with torch.enable_grad():
            left = self.residual(self.model, self.x)
        if not isinstance(left, Tensor) or left.numel() == 0:
            got = f"shape {tuple(left.shape)}" if isinstance(left, Tensor) else type(left).__name__
            raise TypeError(f"residual: got {got}, expected a function that returns a tensor with values")
        self.count = left.numel()
        return left.double().flatten()

    def system(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return Gauss and Newton's matrix and the negative gradient.

        The product of the transposed Jacobian with w is linear in w: its gradients by w are the columns.
        """
        left = self._at(theta)
        if not left.requires_grad:
            raise TypeError("residual: does not depend on the model's formulas, expected one that does")
        weight = torch.zeros_like(left, requires_grad=True)
        parts = torch.autograd.grad(left, self.parameters, weight, create_graph=True, allow_unused=True)
        columns = []
        for part, size in zip(parts, self.sizes, strict=True):
            if part is None or not part.requires_grad:
                columns += [torch.zeros_like(left.detach())] * size
                continue
            for entry in part.flatten():
                (column,) = torch.autograd.grad(entry, weight, retain_graph=True, allow_unused=True)
                columns.append(torch.zeros_like(left.detach()) if column is None else column)
        jacobian = torch.stack(columns, 1).detach()
        return jacobian.t() @ jacobian, -(jacobian.t() @ left.detach())

    @torch.no_grad()
    def _write(self, theta: Tensor) -> None:
        for value, flat in zip(self.parameters, theta.split(self.sizes), strict=True):
            value.copy_(flat.view_as(value))

    def close(self, theta: Tensor) -> None:
        """Give the model these parameters."""
        self._write(theta)
