"""pykan's regularisation, in few operations."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ...functional.edges import apply
from ...regularization import _entropy_of_rows_and_columns as entropy


def penalty(
    sizes: list[Tensor],
    layers: Any,
    lamb_l1: float,
    lamb_entropy: float,
    lamb_coef: float,
    lamb_coefdiff: float,
) -> Any:
    """Return the L1 norm and entropies of sizes of edges or nodes, size and roughness of coefficients.

    Args:
        sizes: a matrix for each layer, or for each of something else that the metric looks at.
        layers: pykan's layers, each with a coef (in, out, G+k).
    """
    total: Any = 0.0
    for size in sizes:
        total = total + apply(Penalty, size, lamb_l1, lamb_entropy)[0]
    if lamb_coef or lamb_coefdiff:
        for layer in layers:
            coef = layer.coef
            if lamb_coef:
                total = total + lamb_coef * coef.abs().mean(1).sum()
            if lamb_coefdiff:
                total = total + lamb_coefdiff * coef.diff().abs().mean(1).sum()
    return total


class Penalty(Function):
    """A Function: lamb_l1 sum(v) + lamb_entropy (entropy of rows and of columns), constants 1 and 1e-4."""

    @staticmethod
    def forward(v, lamb_l1, lamb_entropy):
        total, slope = lamb_l1 * v.sum(), torch.full_like(v, lamb_l1)
        for dim in (0, 1):
            inverse = 1.0 / (v.sum(dim, keepdim=True) + 1.0)
            p = v * inverse
            shifted = p + 1e-4
            h = shifted.log2()
            factor = -lamb_entropy / v.shape[1 - dim]
            total = total.add_((p * h).sum(), alpha=factor)
            h.addcdiv_(p, shifted, value=1.0 / math.log(2.0))  # the derivative of p log2(p + 1e-4)
            slope.addcmul_(h - (h * p).sum(dim, keepdim=True), inverse, value=factor)
        return total, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        v, *ctx.lambs = inputs
        slope = output[1]
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(v, slope)

    @staticmethod
    def backward(ctx, g, _):
        v, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return g * slope, None, None
        lamb_l1, lamb_entropy = ctx.lambs  # this backward is itself to be differentiated
        total = lamb_l1 * v.sum() + lamb_entropy * entropy(v)
        return torch.autograd.grad(total, v, g, create_graph=True)[0], None, None
