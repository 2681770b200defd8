"""What is minimised, and the optimizer that does it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, AdamW, Optimizer

from . import direct, lbfgs

Loss = Callable[[Tensor, Tensor], Tensor]
Rate = float | Callable[[int], float]


class Objective:
    """The objective, loss(model(x), y) + lamb regularization(model, x)."""

    def __init__(self, model: nn.Module, loss: Loss | None, lamb: float, options: Mapping[str, Any]) -> None:
        self.model, self.loss, self.lamb, self.options = model, loss or mean_squared_error, lamb, options
        self._weights = direct.weights_of(lamb, options) if lamb else None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the regularisation, or None without it."""
        value = self.loss(self.model(x), y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: got {what}, expected a function that returns a tensor of one number")
        if not self.lamb:
            return value, None
        from ..regularization import regularization

        return value, regularization(self.model, x, **self.options)

    def evaluate(self, x: Tensor, y: Tensor) -> "Evaluation":
        """Return the objective with its gradient: without autograd where it is a KAN's default loss."""
        if self.loss is mean_squared_error and (not self.lamb or self._weights is not None):
            error = direct.squared_error(self.model, x, y, self._weights)
            if error is not None:
                return Evaluation(error.value, error.penalty, error.total, error.backward)
        value, penalty = self(x, y)
        total = value if penalty is None else value + self.lamb * penalty
        return Evaluation(
            value.detach(),
            None if penalty is None else penalty.detach(),
            total.detach(),
            lambda scale: (total if scale == 1.0 else total * scale).backward(),
        )


class Evaluation(NamedTuple):
    """The loss, the regularisation and what is minimised; backward(s) adds s times the gradient to `grad`."""

    value: Tensor
    penalty: Tensor | None
    total: Tensor
    backward: Callable[[float], Any]


def mean_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the default loss; broadcasting is no part of it."""
    if prediction.shape != y.shape:
        rows, expected = prediction.shape[:-1], f"{tuple(prediction.shape)} like the prediction"
        if prediction.shape[-1:] != (1,) and y.shape in (rows, (*rows, 1)):
            expected += (
                f", or class indices of shape {tuple(rows)} with loss=torch.nn.functional.cross_entropy"
            )
        raise ValueError(f"data: y has shape {tuple(y.shape)}, expected {expected}")
    return nn.functional.mse_loss(prediction, y)


HISTORY_SIZE = 10  # of LBFGS, in pykan too


def builder(optimizer: object, history_size: int = HISTORY_SIZE) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return what makes the optimizer of a list of parameters."""
    if optimizer != "lbfgs" and history_size != HISTORY_SIZE:
        raise ValueError(
            f"history_size: got {history_size} with optimizer={optimizer!r}, expected it with 'lbfgs' only"
        )
    if callable(optimizer):
        return optimizer
    if optimizer == "lbfgs":
        options: dict[str, Any] = {
            "history_size": history_size,
            "tolerance_grad": 0.0,
            "tolerance_change": 0.0,
        }

        def build_lbfgs(parameters: list[nn.Parameter]) -> Optimizer:
            if any(p.is_complex() for p in parameters):  # ours knows real numbers only
                return LBFGS(parameters, line_search_fn="strong_wolfe", **options)
            return lbfgs.LBFGS(parameters, **options)

        return build_lbfgs
    if optimizer in ("adam", "adamw"):
        kind = Adam if optimizer == "adam" else AdamW

        def build(parameters: list[nn.Parameter]) -> Optimizer:
            fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
            return kind(parameters, lr=1e-2, fused=fused)

        return build
    raise ValueError(f"optimizer: got {optimizer!r}, expected 'lbfgs', 'adam', 'adamw' or a function")


class Minimizer:
    """An optimizer that is built anew when the parameters are replaced.

    torch's LBFGS ignores curvature y.s below 1e-10, so an objective below 1 is scaled up to 1 before it sees
    it, again after every step.
    """

    def __init__(self, model: nn.Module, build, lr: Rate | None) -> None:
        if lr is not None and not callable(lr):
            expected = "a positive number or a function of the step"
            if isinstance(lr, bool) or not isinstance(lr, (int, float)):
                raise TypeError(f"lr: got {lr!r}, expected {expected}")
            if not (math.isfinite(lr) and lr > 0):
                raise ValueError(f"lr: got {lr}, expected {expected}")
        self.model, self.build, self.lr = model, build, lr
        self.rebuild()
        self.lbfgs = isinstance(self.optimizer, LBFGS)

    def rebuild(self) -> None:
        self.optimizer = self.build([p for p in self.model.parameters() if p.requires_grad])
        self.scale: float | None = None if isinstance(self.optimizer, LBFGS) else 1.0

    def step(self, step: int, evaluate: Callable[[], Evaluation]) -> None:
        """Take one step on the objective that `evaluate` computes."""
        if self.lr is not None:
            rate = self.lr(step) if callable(self.lr) else self.lr
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        latest, calls = torch.tensor(1.0), 0

        def closure() -> Tensor:
            nonlocal latest, calls
            calls += 1
            self.optimizer.zero_grad()
            objective = evaluate()
            if self.scale is None:
                self.scale = _to_one(objective.total)
            objective.backward(self.scale)
            latest = objective.total if self.scale == 1.0 else objective.total * self.scale
            return latest.nan_to_num(torch.inf, torch.inf)  # a line search backs off from inf only

        self.optimizer.step(closure)
        if self.lbfgs:
            if calls <= 2:  # its direction leads nowhere, so its memory is of no use
                self.rebuild()
            else:
                self._rescale(_to_one(latest))

    def _rescale(self, factor: float) -> None:
        """Go on as if the objective had always been `factor` times larger.

        Of what LBFGS stores, y and the gradient grow with the objective, 1/(y.s) and the diagonal of the
        inverse Hessian shrink, and steps and directions stay.
        """
        assert self.scale is not None
        self.scale *= factor
        memory = next(iter(self.optimizer.state.values()))
        for name in ("old_dirs", "prev_flat_grad", "prev_loss"):
            memory[name] = _times(memory[name], factor)
        for name in ("ro", "H_diag"):
            memory[name] = _times(memory[name], 1.0 / factor)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rebuild()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale = state["scale"]


def _to_one(objective: Tensor) -> float:
    """Return the factor that lifts it to 1, if it is smaller."""
    value = abs(float(objective.detach()))
    return 1.0 / value if 0 < value < 1 else 1.0


def _times(value: Any, factor: float) -> Any:
    return [v * factor for v in value] if isinstance(value, list) else value * factor
