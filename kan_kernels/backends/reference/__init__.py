"""Everything in plain torch: a basis a file, found by its name; the layer; the sums over the rows."""

from ..._core.bases import BASES
from ..._core.problem import COMPOSED, OPS, Problem, without_kernel
from .activation import (
    kan_activation,
    kan_activation_backward,
    kan_activation_grad_input,
    kan_activation_grad_weight,
)
from .bspline import bspline_basis
from .edges import edge_cross_gram, edge_gram, edge_gram_grad_input, edge_l1, edge_l1_backward
from .linear import (
    base_activation,
    basis_values,
    kan_linear,
    kan_linear_backward,
    kan_linear_grad_input,
    kan_linear_grad_weight,
)
from .moments import edge_moments, edge_moments_backward, moments_of_sums

__all__ = [
    "base_activation", "basis_values", "bspline_basis", "edge_cross_gram", "edge_gram",
    "edge_gram_grad_input", "edge_l1", "edge_l1_backward", "edge_moments", "edge_moments_backward",
    "kan_activation", "kan_activation_backward", "kan_activation_grad_input",
    "kan_activation_grad_weight", "kan_linear", "kan_linear_backward", "kan_linear_grad_input",
    "kan_linear_grad_weight", "moments_of_sums",
]  # fmt: skip

NAME = "reference"
NAMESPACE = None  # plain functions, no ops
DIFFERENTIABLE = True  # plain autograd differentiates these functions; no autograd.Function is needed
STACKS = False


def can_run(problem: Problem) -> str | None:
    """Return None for any device, dtype and order, and for every op that is not composed of layers."""
    return without_kernel(problem, NAME, tuple(op for op in OPS if op not in COMPOSED), tuple(BASES))


def why(problem: Problem) -> str:
    """Return what speaks for this backend where it is the first that can run."""
    return "plain torch runs everywhere"
