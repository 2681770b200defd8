"""The arguments of every op that returns tensors and works on rows, for tests of all ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sharded import F64, draw


def knots(features: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.linspace(-2, 2, 12, dtype=dtype).repeat(features, 1) + draw(features, 1).to(dtype) / 10


def samples(b: int, i: int, o: int, base: int) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of every op that has rules for DTensor."""
    x, w, g = draw(b, i), draw(i, 8, o), draw(b, o)
    wb = draw(i, o) if base else None
    bias, s, heads, grid = draw(o), draw(b, i, seed=5), draw(b, i, o), knots(i)
    numbers = 8, 3, base, 0, 0
    image, filters = draw(b, i, 5, 4), draw(i, 8, 3, 2, o)
    base_filters = draw(i, 3, 2, o) if base else None
    conv = 3, base, [1, 1], [1, 1, 0, 0], [1, 1], 1, False
    rbf = (draw(i), draw(i), draw(o, 8 * i), draw(o, i) if base else None)
    centres = torch.cat([torch.linspace(-2, 2, 8, dtype=F64), torch.tensor([0.5], dtype=F64)]).repeat(i, 1)
    band, border = torch.ops.kan_kernels.edge_gram(x, None, grid, 3, base)
    found: dict[str, tuple[Any, ...]] = {
        "kan_linear": (x, s, w, wb, bias, grid, *numbers),
        "kan_linear_grad_input": (x, w, wb, g, grid, *numbers),
        "kan_linear_grad_weight": (x, s, g, grid, *numbers, w),
        "kan_linear_backward": (x, w, wb, g, grid, *numbers),
        "kan_activation": (x, s, w, wb, grid, *numbers),
        "kan_activation_grad_input": (x, w, wb, heads, grid, *numbers),
        "kan_activation_grad_weight": (x, s, heads, grid, *numbers),
        "kan_activation_backward": (x, w, wb, heads, grid, *numbers),
        "kan_conv": (image, filters, base_filters, bias, grid, *conv),
        "edge_gram": (x, s, grid, 3, base),
        "edge_gram_grad_input": (x, s, grid, 3, base, band, border),
        "edge_cross_gram": (x, s, grid, 3, knots(i) * 1.5, 3),
        "edge_moments": (x, w, wb, grid, 3, base, 1),
        "edge_l1": (x, w, wb, grid, 3, base),
        "layer_norm_rbf": (x, *rbf, bias, centres, 1e-5, base),
        "layer_norm_rbf_backward": (x, *rbf, g, centres, 1e-5, base, True),
    }
    pictures = torch.ops.kan_kernels.kan_conv(*found["kan_conv"])
    moments = torch.ops.kan_kernels.edge_moments(*found["edge_moments"])[1:]
    for need_x, need_weight in ((True, True), (False, True), (True, False)):
        name = f" {need_x} {need_weight}"
        found["kan_conv_backward" + name] = (
            image, filters, base_filters, pictures.sin(), grid, *conv, need_x, need_weight
        )  # fmt: skip
        found["edge_moments_backward" + name] = (
            *found["edge_moments"], draw(i, o), draw(i, o, seed=4), *moments, need_x, need_weight
        )  # fmt: skip
        found["edge_l1_backward" + name] = (x, w, wb, draw(i, o), grid, 3, base, need_x, need_weight)
    return found
