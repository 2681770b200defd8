"""Nodes that multiply neighbouring outputs of a layer, in plain torch."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def multiply(y: Tensor, sums: int, arities: Sequence[int]) -> Tensor:
    """Map outputs (..., sums + sum of arities) to nodes (..., sums + their number), sums first."""
    parts, start = [y[..., :sums]] if sums else [], sums
    for arity, alike in itertools.groupby(arities):
        end = start + arity * len(list(alike))
        product = y[..., start:end:arity]
        for factor in range(1, arity):  # not Tensor.prod, whose derivative looks for zeros in the data
            product = product * y[..., start + factor : end : arity]
        parts.append(product)
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def by_layer(products: Sequence[int], layers: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return (sums, arities) of each layer from the numbers of `kan_network`; (0, ()) multiplies nothing.

    The numbers are, layer by layer, its sums, how many groups it has, and their sizes; none: no products.
    """
    if not products:
        return [(0, ())] * layers
    numbers = iter(products)
    return [(next(numbers), tuple(itertools.islice(numbers, next(numbers)))) for _ in range(layers)]
