"""efficient-kan, which is not on PyPI: the structure of its classes, with our own plain torch.

A rival of `benchmarks.integrations`, and the stand-in of the tests, which hold it to the golden numbers of
the real package.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class KANLinear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Any = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Any = (-1, 1),
    ) -> None:
        nn.Module.__init__(self)  # and not super(): tests make copies of this class, as forks do
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.spline_order = grid_size, spline_order
        width = (grid_range[1] - grid_range[0]) / grid_size
        knots = grid_range[0] + width * torch.arange(-spline_order, grid_size + spline_order + 1)
        self.register_buffer("grid", knots.repeat(in_features, 1))
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + spline_order))
        if enable_standalone_scale_spline:
            self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        self.scale_noise, self.scale_base, self.scale_spline = scale_noise, scale_base, scale_spline
        self.enable_standalone_scale_spline = enable_standalone_scale_spline
        self.base_activation = base_activation()
        self.grid_eps = grid_eps
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5) * scale_base)
        nn.init.normal_(self.spline_weight, std=0.1)
        if enable_standalone_scale_spline:
            nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5) * scale_spline)

    def b_splines(self, x: Tensor) -> Tensor:
        """Cox-de Boor without a guard: coincident knots give 0/0."""
        assert x.dim() == 2 and x.shape[1] == self.in_features
        t, u = self.grid, x[..., None]
        n = t.shape[1]
        value = torch.logical_and(u >= t[:, : n - 1], u < t[:, 1:]).to(x.dtype)
        for p in range(1, self.spline_order + 1):
            m = n - 1 - p
            rising = (u - t[:, :m]) / (t[:, p : p + m] - t[:, :m])
            falling = (t[:, p + 1 : p + 1 + m] - u) / (t[:, p + 1 : p + 1 + m] - t[:, 1 : 1 + m])
            value = rising * value[..., :m] + falling * value[..., 1 : m + 1]
        return value

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        matrix = self.b_splines(x).permute(1, 0, 2)
        return torch.linalg.lstsq(matrix, y.permute(1, 0, 2)).solution.permute(2, 0, 1)

    @property
    def scaled_spline_weight(self) -> Tensor:
        if not self.enable_standalone_scale_spline:
            return self.spline_weight
        return self.spline_weight * self.spline_scaler[..., None]

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.in_features
        rows = x.reshape(-1, self.in_features)
        y = self.base_activation(rows) @ self.base_weight.t()
        y = y + self.b_splines(rows).flatten(1) @ self.scaled_spline_weight.flatten(1).t()
        return y.reshape(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        targets = torch.einsum("bir,oir->bio", self.b_splines(x), self.scaled_spline_weight)
        size, k = self.grid_size, self.spline_order
        ordered = x.sort(0).values
        picked = ordered[torch.linspace(0, len(x) - 1, size + 1, dtype=torch.int64)]
        step = (ordered[-1] - ordered[0] + 2 * margin) / size
        even = ordered[0] - margin + step * torch.arange(size + 1)[:, None]
        inner = self.grid_eps * even + (1 - self.grid_eps) * picked
        before = [inner[0] - step * n for n in range(k, 0, -1)]
        after = [inner[-1] + step * n for n in range(1, k + 1)]
        self.grid.copy_(torch.stack([*before, *inner, *after], 1))
        self.spline_weight.copy_(self.curve2coeff(x, targets))

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        size = self.spline_weight.abs().mean(-1)
        share = size / size.sum()
        return regularize_activation * size.sum() - regularize_entropy * (share * share.log()).sum()


class KAN(nn.Module):
    def __init__(
        self, layers_hidden: list[int], grid_size: int = 5, spline_order: int = 3, **options: Any
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            KANLinear(a, b, grid_size, spline_order, **options) for a, b in pairwise(layers_hidden)
        )

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x)
            x = layer(x)
        return x
