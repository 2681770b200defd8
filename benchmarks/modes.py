"""The four things that are timed, as one callable each, and the numbers they produce for the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .providers import Model
from .workloads import FORWARD, SECOND, STEP, TRAIN, Problem

LEARNING_RATE = 1e-4


@dataclass
class Numbers:
    """What a mode computed; None where the mode or the provider has no such number.

    y (B, out), dx and second (B, in), gradients [(spline (in, G+k, out), base (in, out)), ...].
    """

    y: torch.Tensor
    dx: torch.Tensor | None = None
    second: torch.Tensor | None = None
    gradients: list[tuple[torch.Tensor, torch.Tensor]] | None = None


def drop_gradients(parameters: list[nn.Parameter], x: torch.Tensor) -> None:
    """As zero_grad(set_to_none=True): what any training loop does before backward."""
    for parameter in parameters:
        parameter.grad = None
    x.grad = None


def second_derivative(
    module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and d2(sum y)/dx2 summed over the inputs of each row, (B, in), both still attached to the graph."""
    y = module(x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return y, second


class Runner:
    """One provider's model in one mode. ``call()`` is timed; ``numbers()`` runs it once for the gate.

    A training step is zero_grad, forward, mean squared error, backward and a fused AdamW step, for everyone.
    ``network`` is what is called, the model's module unless given (a compiled version of it, say).
    """

    def __init__(
        self,
        model: Model,
        problem: Problem,
        mode: str,
        network: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.model, self.problem, self.mode = model, problem, mode
        self.network = model.module if network is None else network
        self.parameters = model.parameters()
        needs_x = mode == SECOND or (mode == TRAIN and problem.workload.input_grad)
        self.x = problem.x.clone().requires_grad_(needs_x)
        self.call: Callable[[], object] = {
            FORWARD: self._forward,
            TRAIN: self._train,
            STEP: self._step,
            SECOND: self._second,
        }[mode]
        self._optimizer: torch.optim.Optimizer | None = None

    def _forward(self) -> torch.Tensor:
        with torch.no_grad():
            y: torch.Tensor = self.network(self.x)
            return y

    def _train(self) -> torch.Tensor:
        drop_gradients(self.parameters, self.x)
        y: torch.Tensor = self.network(self.x)
        y.backward(self.problem.cotangent)
        return y

    def _step(self) -> torch.Tensor:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        self._optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.network(self.x), self.problem.target)
        loss.backward()
        self._optimizer.step()
        return loss

    def _second(self) -> tuple[torch.Tensor, torch.Tensor]:
        drop_gradients(self.parameters, self.x)
        y, second = second_derivative(self.network, self.x)
        second.sum().backward()
        return y, second

    def release(self) -> None:
        """Drop gradients, so that a memory measurement counts them again."""
        drop_gradients(self.parameters, self.x)

    def numbers(self) -> Numbers:
        """Run once, return the numbers. A training step is checked before its optimizer moves the weights."""
        if self.mode == FORWARD:
            return Numbers(self._forward())
        if self.mode == SECOND:
            y, second = self._second()
            return Numbers(y.detach(), second=second.detach(), gradients=self.model.gradients())
        y = self._train()
        return Numbers(y.detach(), dx=self.x.grad, gradients=self.model.gradients())

    def finite(self) -> bool:
        """True when every gradient the last call left behind is finite."""
        return all(bool(torch.isfinite(p.grad).all()) for p in self.parameters if p.grad is not None)
