"""Layers and stacks made from tensors, for the converters."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..._core import checks
from ...nn import KAN, KANLinear, Products


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def regular_inputs(grid: Tensor, *, flat: bool) -> Tensor:
    """Return (in,): whether the knots of a feature are finite and increase or, if `flat`, all coincide."""
    steps = grid.diff()
    good = (steps > 0).all(1)
    if flat:
        good = good | (steps == 0).all(1)
    return good & grid.isfinite().all(1)


@torch.no_grad()
def filled(
    spline_weight: Tensor,
    grid: Tensor,
    order: int,
    *,
    base: str | None,
    base_weight: Tensor | None,
    bias: Tensor | None = None,
    edge_mask: Tensor | None = None,
) -> KANLinear:
    """Return a KANLinear with copies of these tensors, in the kernels' layout; a bias of zeros is left out.

    Raises:
        ValueError: the knots decrease or are not finite. Whether they may coincide is for the converter.
    """
    checks.knots(grid)
    fan_in, rows, fan_out = spline_weight.shape
    has_bias = bias is not None and bool(bias.any())
    layer = KANLinear(
        fan_in,
        fan_out,
        rows - order,
        order,
        base=base,
        bias=has_bias,
        device="meta",
        dtype=spline_weight.dtype,
    ).to_empty(device=spline_weight.device)
    layer.spline_weight.copy_(spline_weight)
    layer.place_grid(grid)
    if layer.base_weight is not None:
        assert base_weight is not None
        layer.base_weight.copy_(base_weight)
    if layer.bias is not None:
        assert bias is not None
        layer.bias.copy_(bias)
    if edge_mask is not None:
        layer.set_edge_mask(edge_mask)
    return layer


def stacked(layers: list[KANLinear], products: list[Products] | None = None) -> KAN:
    """Return a KAN of these very layers, which may differ in grid size, order and base, and of products."""
    model = KAN([1, 1], 1, 0, device="meta")
    model.layers = nn.ModuleList(layers)
    if products is not None:
        model.set_products(products)
    return model


def chain(layers: Sequence[KANLinear], name: str) -> None:
    """Raise ValueError unless each layer has as many inputs as the one before has outputs."""
    for n, (before, after) in enumerate(pairwise(layers)):
        require(
            before.out_features == after.in_features,
            f"{name.format(n + 1)}: has {after.in_features} inputs, expected {before.out_features} like "
            "the outputs before it",
        )
