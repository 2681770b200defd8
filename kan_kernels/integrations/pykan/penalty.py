"""pykan's regularisation, in few operations."""

from typing import Any

from torch import Tensor

from ..._engine.penalties import RowColumnPenalty


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
        total = total + RowColumnPenalty.run(size, lamb_l1, lamb_entropy)[0]
    if lamb_coef or lamb_coefdiff:
        for layer in layers:
            coef = layer.coef
            if lamb_coef:
                total = total + lamb_coef * coef.abs().mean(1).sum()
            if lamb_coefdiff:
                total = total + lamb_coefdiff * coef.diff().abs().mean(1).sum()
    return total
