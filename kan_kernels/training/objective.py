"""What is minimised, and the optimizer that does it."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, AdamW, Optimizer

from .._core import checks
from . import direct, lbfgs, rescaling
from .data import Batches, evaluating, measure
from .lbfgs_memory import Iterations

Loss = Callable[[Tensor, Tensor], Tensor]
Rate = float | Callable[[int], float]


class Objective:
    """The objective, loss(model(x), y) + lamb regularization(model, x)."""

    def __init__(self, model: nn.Module, loss: Loss | None, lamb: float, options: Mapping[str, Any]) -> None:
        self.model, self.loss, self.lamb, self.options = model, loss or mean_squared_error, lamb, options
        self._weights = direct.weights_of(lamb, options) if lamb else None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the regularisation, or None without it."""
        value = one_number("loss", self.loss(self.model(x), y))
        if not self.lamb:
            return value, None
        from ..regularization import regularization

        return value, regularization(self.model, x, **self.options)

    def try_out(self, x: Tensor, y: Tensor) -> None:
        """Find out what cannot be computed, before anything changes."""
        with torch.no_grad(), evaluating(self.model):
            self(x, y)

    def final(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the regularisation of the trained model."""
        with torch.no_grad():
            return self(x, y)

    def measure(self, batches: Batches, functions: Mapping[str, Any]) -> dict[str, float]:
        """Return means of functions of (prediction, y), in eval mode."""
        return measure(self.model, batches, functions)

    @staticmethod
    def kan_of(model: nn.Module) -> nn.Module:
        """Return what changes of grids act on."""
        return model

    def on(self, x: Tensor, y: Tensor, vector: lbfgs.Vector | None = None) -> "Evaluate | None":
        """Return what computes the objective on these rows, with its gradient: without autograd where it is a
        KAN's default loss. Ask anew where more than the numbers of the parameters may have changed.

        vector: see `direct.squared_errors`; None is returned where autograd would read the parameters.
        """
        errors = None
        if self.loss is mean_squared_error and (not self.lamb or self._weights is not None):
            errors = direct.squared_errors(self.model, x, y, self._weights, vector)
        if errors is None:
            return None if vector is not None else lambda: self._with_autograd(*self(x, y))

        def evaluate() -> Evaluation:
            try:
                error = errors()
            except RuntimeError:
                if vector is not None:
                    raise
                return self._with_autograd(*self(x, y))  # the layers say what is wrong
            return Evaluation(
                error.value, error.penalty, error.total, error.backward, error.gradient, error.iterate
            )

        return evaluate

    def _with_autograd(self, value: Tensor, penalty: Tensor | None) -> "Evaluation":
        total = value if penalty is None else value + self.lamb * penalty
        if not total.requires_grad:
            raise ValueError(
                "loss: its value has no gradient, expected a function that torch can differentiate"
            )
        return Evaluation(
            value.detach(),
            None if penalty is None else penalty.detach(),
            total.detach(),
            lambda scale: (total if scale == 1.0 else total * scale).backward(),
        )


class Evaluation(NamedTuple):
    """The loss, the regularisation and what is minimised; backward(s) adds s times the gradient to `grad`.

    gradient: returns that by the vector that was read instead of the parameters. iterate: see
    `lbfgs.Function`; its first argument is the scale of the objective.
    """

    value: Tensor
    penalty: Tensor | None
    total: Tensor
    backward: Callable[[float], Any]
    gradient: Callable[[], Tensor] | None = None
    iterate: Callable[..., Iterations] | None = None


Evaluate = Callable[[], Evaluation]


def one_number(name: str, value: object) -> Tensor:
    """Return `value`, which a function of the user's returned, if it is a tensor of one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {what}, expected a function that returns a tensor of one number")
    return value


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

    What LBFGS sees is scaled up as it shrinks: see `rescaling`.
    """

    def __init__(self, model: nn.Module, build, lr: Rate | None) -> None:
        if lr is not None and not callable(lr):
            expected = "a positive number or a function of the step"
            if isinstance(lr, bool) or not isinstance(lr, Real):
                raise TypeError(f"lr: got {lr!r}, expected {expected}")
            if not (math.isfinite(lr) and lr > 0):
                raise ValueError(f"lr: got {lr}, expected {expected}")
            lr = float(lr)
        self.model, self.build, self.lr = model, build, lr
        self.rebuild()
        self.lbfgs = isinstance(self.optimizer, LBFGS)

    def rebuild(self) -> None:
        self.optimizer = self.build([p for p in self.model.parameters() if p.requires_grad])
        if not all(hasattr(self.optimizer, name) for name in ("step", "zero_grad", "param_groups")):
            got = type(self.optimizer).__name__
            raise TypeError(f"optimizer: returned {got}, expected an optimizer of torch for these parameters")
        self.scale: float | None = None if isinstance(self.optimizer, LBFGS) else 1.0

    def step(self, step: int, prepare: "Callable[[lbfgs.Vector | None], Evaluate | None]") -> None:
        """Take one step on the objective that `prepare` returns: see `Objective.on`."""
        if self.lr is not None:
            rate = checks.nonnegative(f"lr({step})", self.lr(step)) if callable(self.lr) else self.lr
            for group in self.optimizer.param_groups:
                group["lr"] = rate

        alone = type(self.optimizer) is lbfgs.LBFGS  # others' may change more than numbers in between
        evaluate: Evaluate | None = None

        def evaluated() -> tuple[Tensor, Callable[[float], Any]]:
            nonlocal evaluate
            self.optimizer.zero_grad()
            if evaluate is None or not alone:
                evaluate = prepare(None)
            assert evaluate is not None
            made = evaluate()
            return made.total, made.backward

        def on_vector(vector: lbfgs.Vector) -> lbfgs.Function | None:
            function = prepare(vector)
            if function is None:
                return None
            self.optimizer.zero_grad()
            first: Evaluation | None
            try:
                first = function()
            except RuntimeError:  # the layers say what is wrong, or run where all of them in one call cannot
                return None

            def evaluated_there() -> tuple[float, Tensor]:
                nonlocal first
                made, first = function() if first is None else first, None
                assert made.gradient is not None
                return float(made.total), made.gradient()

            return lbfgs.Function(evaluated_there, first.iterate)

        if not self.lbfgs or isinstance(self.optimizer, rescaling.LBFGS):  # which does it itself
            self.optimizer.step(lambda: _with_gradient(*evaluated()))  # type: ignore[arg-type]
            return
        take, memory = self.optimizer.step, self._memory
        self.scale = rescaling.rescaled_step(
            take, evaluated, self.scale, memory, on_vector if alone else None
        )
        if self.scale is None:
            self.rebuild()

    def _memory(self) -> dict[str, Any]:
        return next(iter(self.optimizer.state.values()))

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rebuild()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale = state["scale"]


def _with_gradient(value: Tensor, backward: Callable[[float], Any]) -> Tensor:
    backward(1.0)
    return value
