"""How other KAN codebases compute their layers, in plain torch: the rivals of `benchmarks.integrations`.

Where a peer is on PyPI the peer itself is measured; these stand for those that are not, with the names and
shapes of their parameters: convolution here, FastKAN's and ChebyKAN's layers in `basis_forms`,
efficient-kan's in `efficient_kan_form`. They share no code with kan_kernels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .providers.unfused import cox_de_boor


class BasisImageConv2d(nn.Module):
    """torch-conv-kan's convolution part: the image of the bases, (G+k) times the input, through conv2d.

    base_conv (O, C, 3, 3), spline_conv (O, C * (G+k), 3, 3), without bias; silu; uniform knots on [-1, 1].
    """

    def __init__(self, channels: int, out: int, grid_size: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        self.base_conv = nn.ModuleList([nn.Conv2d(channels, out, 3, padding=1, bias=False)])
        rows = grid_size + order
        self.spline_conv = nn.ModuleList([nn.Conv2d(channels * rows, out, 3, padding=1, bias=False)])
        knots = torch.arange(-order, grid_size + order + 1, dtype=torch.float64) * (2.0 / grid_size) - 1.0
        self.register_buffer("grid", knots.to(torch.get_default_dtype())[None])
        self.grid: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        basis = cox_de_boor(x.reshape(-1, 1), self.grid, self.order)  # (N C H W, 1, G+k)
        image = basis.view(*x.shape, -1).movedim(-1, 2).flatten(1, 2)
        y: torch.Tensor = self.base_conv[0](F.silu(x)) + self.spline_conv[0](image)
        return y
