"""What the tests of symbolic edges share: a layer with formulas, and the same by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KANLinear, symbolic

AFFINE = (1.3, 0.2, 0.7, -0.1)


def layer_with_formulas(**options: Any) -> KANLinear:
    layer = KANLinear(4, 3, **{"device": DEVICE, "dtype": torch.float64, **options})
    for i, o, name in ((0, 0, "sin"), (2, 0, "exp"), (3, 0, "sin"), (2, 1, "x^3"), (1, 2, "tanh")):
        symbolic.fix(layer, i, o, name, params=AFFINE)
    return layer


def by_hand(layer: KANLinear, x: Tensor) -> Tensor:
    """The layer of `layer_with_formulas`, edge by edge."""
    mask = torch.ones(4, 3, dtype=x.dtype, device=x.device)
    formulas = {
        (0, 0): torch.sin,
        (2, 0): torch.exp,
        (3, 0): torch.sin,
        (2, 1): lambda z: z**3,
        (1, 2): torch.tanh,
    }
    for i, o in formulas:
        mask[i, o] = 0
    splines = copy.deepcopy(layer)
    splines.set_symbolic(None)
    splines.set_edge_mask(mask)
    columns = list(splines(x).unbind(-1))
    a, b, c, d = AFFINE
    for (i, o), f in formulas.items():
        columns[o] = columns[o] + c * f(a * x[..., i] + b) + d
    return torch.stack(columns, -1)
