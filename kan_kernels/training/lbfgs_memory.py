"""What LBFGS knows of the curvature, the last steps and what they did to the gradient, and its directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import library

FEW = 16384  # parameters: of so many, calls of torch cost more than their arithmetic


class Direction(NamedTuple):
    """A direction, its directional derivative, and its largest entry."""

    d: Tensor
    slope: float
    largest: float


class Iterations(NamedTuple):
    """The results of the op `kan_network_lbfgs`.

    previous, value: gradient and value before the last iteration. first_row, stored: of the rings.
    iterations: that were ever taken. evaluations: with the first one, that was made before. latest: the last
    value that was seen.
    """

    previous: Tensor
    d: Tensor
    first_row: int
    stored: int
    iterations: int
    evaluations: int
    scale: float
    t: float
    value: float
    latest: float


class Memory:
    """The memory in lists of tensors, as torch.optim.LBFGS has it in its state.

    Args:
        state: the optimizer's; `write` brings it up to date.
        size: how many steps are stored.
    """

    def __init__(self, state: dict[str, Any], size: int) -> None:
        self.size = size
        rhos = state.get("ro", ())
        kept = slice(max(0, len(rhos) - size), None)
        self.changes, self.steps = (list(state.get(name, ())[kept]) for name in ("old_dirs", "old_stps"))
        # torch's are tensors
        self.rhos, self.scale = [float(rho) for rho in rhos[kept]], float(state.get("H_diag", 1.0))

    def clear(self) -> None:
        """Forget all."""
        self.changes, self.steps, self.rhos, self.scale = [], [], [], 1.0

    def next(self, gradient: Tensor, previous: Tensor, d: Tensor, t: float) -> Direction:
        """Store the step t d, from where the gradient was `previous`, if it shows curvature; return minus the
        inverse Hessian that the memory stands for, times the gradient: Nocedal & Wright, algorithm 7.4.
        """
        y, s = gradient - previous, d * t
        curvature = float(y.dot(s))
        if curvature > 1e-10:
            self.changes.append(y)
            self.steps.append(s)
            self.rhos.append(1.0 / curvature)
            if len(self.rhos) > self.size:
                del self.changes[0], self.steps[0], self.rhos[0]
            self.scale = curvature / float(y.dot(y))
        shares, pairs = [], list(zip(self.steps, self.changes, self.rhos, strict=True))
        d = gradient.neg()
        for s, y, rho in reversed(pairs):
            share = rho * float(s.dot(d))
            d.add_(y, alpha=-share)
            shares.append(share)
        d.mul_(self.scale)
        for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
            d.add_(s, alpha=share - rho * float(y.dot(d)))
        return described(d, gradient)

    def write(self, state: dict[str, Any]) -> None:
        """Put the memory into the state."""
        state.update(old_dirs=self.changes, old_stps=self.steps, ro=self.rhos, H_diag=self.scale)


class FewNumbers(Memory):
    """The same for short vectors on the CPU: one call of the library stores and returns the direction."""

    def __init__(self, state: dict[str, Any], size: int, like: Tensor, more: int) -> None:
        super().__init__(state, size)
        self._first, self._count = 0, len(self.rhos)
        self._rows = min(size, self._count + more)  # of the rings: `size` may be any number
        self._pairs = like.new_empty(2, self._rows, like.numel())
        self._inverse_curvatures = like.new_zeros(self._rows, dtype=torch.float64)
        if self._count:
            torch.stack(self.steps, out=self._pairs[0, : self._count])
            torch.stack(self.changes, out=self._pairs[1, : self._count])
            self._inverse_curvatures[: self._count] = like.new_tensor(self.rhos, dtype=torch.float64)

    def clear(self) -> None:
        super().clear()
        self._first = self._count = 0

    def iterate(
        self, call: Callable[..., Iterations], value: float, gradient: Tensor, *others: Any
    ) -> Iterations:
        """Return the results of `call`, which stores what its steps did, behind a value and a gradient."""
        stored = self._pairs, self._inverse_curvatures, self._first, self._count, self.scale
        made = call(value, gradient, *stored, *others)
        self._first, self._count, self.scale = made.first_row, made.stored, made.scale
        return made

    def next(self, gradient: Tensor, previous: Tensor, d: Tensor, t: float) -> Direction:
        d, self._first, self._count, self.scale, slope, largest = _call(
            self._pairs, self._inverse_curvatures, self._first, self._count, self.scale, gradient, previous,
            d, t,
        )  # fmt: skip
        return Direction(d, slope, largest)

    def write(self, state: dict[str, Any]) -> None:
        first, rhos = self._first, self._inverse_curvatures.tolist()
        # a copy, without rows that were never written: once the first one moves there are none
        used = self._pairs[:, : self._count].clone() if first == 0 else self._pairs.roll(-first, 1)
        self.steps, self.changes = (list(rows.unbind()) for rows in used)
        self.rhos = (rhos[first:] + rhos[:first])[: self._count]
        super().write(state)


def memory_of(state: dict[str, Any], size: int, gradient: Tensor, more: int) -> Memory:
    """Return the memory in a state, in the form that is fast for vectors like this gradient.

    size: how many steps are stored. more: the most calls of `next` until it is written.
    """
    few = gradient.numel() <= FEW and gradient.device.type == "cpu" and type(gradient) is Tensor
    there = library.LOAD_ERROR is None and "lbfgs" not in library.OFF
    if few and there and gradient.dtype in (torch.float32, torch.float64):
        return FewNumbers(state, size, gradient, more)
    return Memory(state, size)


def described(d: Tensor, gradient: Tensor) -> Direction:
    """Return a direction with its numbers."""
    return Direction(d, float(gradient.dot(d)), largest(d))


def largest(vector: Tensor) -> float:
    """Return the largest absolute value, NaN where there is one."""
    return float(vector.abs().max())


_call: Any = None if library.LOAD_ERROR is not None else torch.ops.kan_kernels.lbfgs_direction.default
