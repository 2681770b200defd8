"""What an op is asked to do: the problem that backends answer for, and the constants of their calls."""

from dataclasses import dataclass
from typing import Any

import torch

from .bases import BASES, MAX_DERIVATIVE, MAX_SPLINE_ORDER, RBF
from .checks import DTYPES

OPS = {
    "kan_linear": "a layer, and the gradients of it",
    "kan_activation": "a function for every feature and head, without a sum, and the gradients of it",
    "kan_conv": "a convolution",
    "edge_gram": "sums over the rows of products of bases, and what comes of them: moments, refits",
    "edge_l1": "the mean over the rows of |phi|",
    "layer_norm_rbf": "a layer of Gaussians behind a layer norm",
    "kan_network": "all layers of a KAN in one call, and the gradients of them",
}
"""Every op that backends have kernels of."""

FAMILIES = ("kan_linear", "kan_activation")
"""Ops that are one of three contractions of a trilinear form: see _engine/autograd.py."""

COMPOSED = {
    "kan_conv": "composed of kan_linear",
    "layer_norm_rbf": "composed of torch's layer norm and kan_linear",
    "kan_network": "composed of kan_linear",
}
"""Ops that every backend runs: those without a kernel of their own compose them of their layers."""


def bases_of(op: str) -> tuple[str, ...]:
    """Return the names of the bases that an op is for, whoever runs it."""
    if op in FAMILIES:
        return tuple(BASES)
    return (RBF.name,) if op == "layer_norm_rbf" else tuple(name for name, b in BASES.items() if b.local)


@dataclass(frozen=True)
class Problem:
    """All that a backend needs to say whether it can run, and on a GPU what the work is.

    No backend's answer depends on the last two, which only weigh one GPU backend against another.
    """

    device: str
    dtype: torch.dtype
    x_dtype: torch.dtype
    in_features: int
    out_features: int
    functions: int  # R: G+k for B-splines
    order: int = 0  # k of B-splines
    base: str | None = "silu"
    derivative: int = 0
    basis: str = "bspline"
    index: int | None = None  # of the device; None for the current one
    op: str = "kan_linear"
    rows: int = 0  # of a call on a GPU, rounded up to a power of two; 0: not known
    training: bool = False  # whether anything needs a gradient


class Spec:
    """The constants of the contractions of one layer, which travel as one.

    `numbers` are those of the ops' schemas, in their order: functions, order, base, derivative, basis. Not a
    tuple itself: torch.func would look into it for tensors.
    """

    __slots__ = (
        "backend", "base", "basis", "composed", "derivative", "functions", "numbers", "order", "summed",
    )  # fmt: skip

    def __init__(
        self, functions: int, order: int, base: int, derivative: int, basis: int, backend: Any,
        composed: bool = False, summed: bool = True,
    ) -> None:  # fmt: skip
        self.functions = functions
        self.order = order
        self.base = base
        self.derivative = derivative
        self.basis = basis
        self.backend = backend  # the module that runs it
        self.composed = composed  # of kan_linear: the backend has no kernel of the op itself
        self.summed = summed  # over the features: kan_linear; else kan_activation
        self.numbers: tuple[int, int, int, int, int] = (functions, order, base, derivative, basis)

    def raised(self) -> "Spec":
        """Return those of one derivative more."""
        return self._with(self.base, self.derivative + 1)

    def without_base(self) -> "Spec":
        """Return those of the splines alone."""
        return self._with(0, self.derivative)

    def _with(self, base: int, derivative: int) -> "Spec":
        numbers = self.functions, self.order, base, derivative, self.basis
        return Spec(*numbers, self.backend, summed=self.summed)


def beyond_limits(problem: Problem) -> str | None:
    """Return why no fused kernel has the dtype, functions, order or derivative of a problem, or None."""
    if problem.dtype not in DTYPES:
        return f"no kernels for {problem.dtype}"
    basis = BASES[problem.basis]
    if basis.most is not None and problem.functions > basis.most:
        return f"{problem.functions} functions of the basis {basis.name!r} are more than {basis.most}"
    if problem.order > MAX_SPLINE_ORDER:
        return f"spline_order {problem.order} is above {MAX_SPLINE_ORDER}"
    if problem.derivative > MAX_DERIVATIVE:
        return f"derivative {problem.derivative} is above {MAX_DERIVATIVE}"
    return None


def without_kernel(problem: Problem, name: str, ops: tuple[str, ...], bases: tuple[str, ...]) -> str | None:
    """Return why a backend of this name, with kernels for these ops and bases alone, cannot run a problem."""
    if problem.op not in ops:
        return f"the backend {name!r} has no kernel of {problem.op} for {problem.device}"
    if problem.basis not in bases:
        return f"no kernels for the basis {problem.basis!r}, only for {', '.join(map(repr, bases))}"
    return None
