"""The nodes of pykan's MultKAN behind a layer: what they multiply, and their scales and shifts."""

from typing import Any

import torch
from torch import Tensor

from ...nn import Products
from ...nn.products import rows_of
from .._shared.converted import require


def products_of_widths(width: Any, mult_arity: Any) -> list[Products]:
    """Return the nodes behind every layer."""
    pairs = [tuple(size) if isinstance(size, (list, tuple)) else size for size in width]
    if not any(isinstance(size, tuple) and size[1] for size in pairs):
        mult_arity = 2  # pykan looks at none
    try:
        return rows_of(pairs, mult_arity)[1:]
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: its multiplication nodes cannot be held: {error}") from None


def affine_of(
    products: Products, scale: Tensor, bias: Tensor, sub_scale: Tensor, sub_bias: Tensor, where: str
) -> tuple[Tensor, Tensor]:
    """Return scale and shift (subnodes,) in front of the products, of those of nodes and subnodes."""
    sums = products.sums
    require(
        not bool(bias[sums:].any()),
        f"{where}: node_bias of a multiplication node is not 0, which kan_kernels cannot hold",
    )
    first = torch.ones_like(sub_scale)  # all of a product's scale goes into its first factor
    first[[group.start for group in products.groups()]] = scale
    shift = first * sub_bias
    shift[:sums] += bias[:sums]
    return first * sub_scale, shift
