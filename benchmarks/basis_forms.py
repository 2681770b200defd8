"""Layers of FastKAN, ChebyKAN, FourierKAN and torch-conv-kan, which are not on PyPI: their structure, in our
own plain torch.

Rivals of the benchmarks, and the stand-ins of the tests, which hold them to the real ones' golden numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .providers.unfused import cox_de_boor


class GaussianBasis(nn.Module):
    """fast-kan's basis: (...) -> (..., num_grids) Gaussians, as wide as their centres are apart."""

    def __init__(self, grid_min: float, grid_max: float, num_grids: int) -> None:
        super().__init__()
        self.num_grids = num_grids
        self.grid = nn.Parameter(torch.linspace(grid_min, grid_max, num_grids), requires_grad=False)
        self.denominator = (grid_max - grid_min) / (num_grids - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = (x[..., None] - self.grid) / self.denominator
        return torch.exp(-(t**2))


class FastKANLayer(nn.Module):
    """A layer as fast-kan computes it: every Gaussian of the normalised x, one product, a base branch."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        use_base_update: bool = True,
        use_layernorm: bool = True,
        base_activation: Callable[[torch.Tensor], torch.Tensor] = F.silu,
    ) -> None:
        nn.Module.__init__(self)  # and not super(): tests make copies of this class, as forks do
        self.input_dim, self.output_dim = input_dim, output_dim
        self.layernorm = nn.LayerNorm(input_dim) if use_layernorm else None
        self.rbf = GaussianBasis(grid_min, grid_max, num_grids)
        self.spline_linear = nn.Linear(input_dim * num_grids, output_dim, bias=False)
        nn.init.trunc_normal_(self.spline_linear.weight, mean=0.0, std=0.1)
        self.use_base_update = use_base_update
        if use_base_update:
            self.base_activation = base_activation
            self.base_linear = nn.Linear(input_dim, output_dim)

    def forward(self, x: torch.Tensor, use_layernorm: bool = True) -> torch.Tensor:
        z = self.layernorm(x) if use_layernorm and self.layernorm is not None else x
        y: torch.Tensor = self.spline_linear(self.rbf(z).flatten(-2))
        return y + self.base_linear(self.base_activation(x)) if self.use_base_update else y


class ChebyKANLayer(nn.Module):
    """A layer as ChebyKAN computes it: cos(r acos(tanh x)) for every r, then one contraction."""

    def __init__(self, input_dim: int, output_dim: int, degree: int) -> None:
        nn.Module.__init__(self)
        self.inputdim, self.outdim, self.degree = input_dim, output_dim, degree
        std = 1.0 / (input_dim * (degree + 1))
        self.cheby_coeffs = nn.Parameter(torch.randn(input_dim, output_dim, degree + 1) * std)
        self.register_buffer("arange", torch.arange(degree + 1))
        self.arange: torch.Tensor

    def forward(self, x: torch.Tensor) -> Any:
        angle = torch.acos(torch.tanh(x).view(-1, self.inputdim, 1).expand(-1, -1, self.degree + 1))
        return torch.einsum("bir,ior->bo", torch.cos(angle * self.arange), self.cheby_coeffs)


class NaiveFourierKANLayer(nn.Module):
    """A layer as FourierKAN computes it: a product for each row, edge and frequency, then their sums."""

    def __init__(
        self,
        inputdim: int,
        outdim: int,
        gridsize: int = 300,
        addbias: bool = True,
        smooth_initialization: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.gridsize, self.addbias, self.inputdim, self.outdim = gridsize, addbias, inputdim, outdim
        damping = (1 + torch.arange(gridsize)).square() if smooth_initialization else gridsize**0.5
        scale = inputdim**0.5 * damping
        self.fouriercoeffs = nn.Parameter(torch.randn(2, outdim, inputdim, gridsize) / scale)
        if addbias:
            self.bias = nn.Parameter(torch.zeros(1, outdim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 1, self.inputdim, 1)
        angle = rows * torch.arange(1, self.gridsize + 1, device=x.device)
        y = (torch.cos(angle) * self.fouriercoeffs[0]).sum((-2, -1))
        y = y + (torch.sin(angle) * self.fouriercoeffs[1]).sum((-2, -1))
        if self.addbias:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.outdim)


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
