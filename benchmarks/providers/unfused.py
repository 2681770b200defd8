"""Rivals written here in plain torch: closed-form basis + one matmul, and the textbook Cox-de Boor recursion.

Both are independent of kan_kernels: the textbook network in float64 is also the oracle of the gate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..workloads import SECOND, LayerWeights, Problem, Workload
from .base import NO_SECOND, Model, Provider, out_in_basis


def cox_de_boor(x: torch.Tensor, knots: torch.Tensor, order: int) -> torch.Tensor:
    """All B-splines by the recursion of Cox and de Boor, dense over the bases, any order, distinct knots.

    x (B, in), knots (in, G+2k+1) -> (B, in, G+k). Half-open cells.
    """
    x = x.unsqueeze(-1)
    values = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
    for degree in range(1, order + 1):
        rising = (x - knots[:, : -degree - 1]) / (knots[:, degree:-1] - knots[:, : -degree - 1])
        falling = (knots[:, degree + 1 :] - x) / (knots[:, degree + 1 :] - knots[:, 1:-degree])
        values = rising * values[..., :-1] + falling * values[..., 1:]
    return values


def _for_cells(x: torch.Tensor) -> torch.Tensor:
    """x in float32 at least: 16 bits are too few for a basis, so only the products are taken in them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class TextbookLayer(nn.Module):
    """One KAN layer as the textbooks have it: recursion over every basis, then two dense products."""

    def __init__(self, weights: LayerWeights, order: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.order = order
        self.spline_weight = nn.Parameter(out_in_basis(weights.spline).to(dtype))  # (out, in, G+k)
        self.base_weight = nn.Parameter(weights.base.t().contiguous().to(dtype))  # (out, in)
        self.register_buffer("grid", weights.grid.to(dtype))
        self.grid: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, dtype = _for_cells(x), self.spline_weight.dtype
        basis = cox_de_boor(x, self.grid, self.order)
        return F.linear(F.silu(x).to(dtype), self.base_weight) + F.linear(
            basis.flatten(1).to(dtype), self.spline_weight.flatten(1)
        )


def textbook_network(layers: list[LayerWeights], order: int, dtype: torch.dtype) -> nn.Sequential:
    """The textbook KAN; in float64 it is the oracle every exact provider is compared with."""
    return nn.Sequential(*(TextbookLayer(w, order, dtype) for w in layers))


class TextbookModel(Model):
    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        layers: Any = self.module.children()
        return [(layer.spline_weight.grad.permute(1, 2, 0), layer.base_weight.grad.t()) for layer in layers]


class Textbook(Provider):
    key, label = "textbook", "textbook Cox-de Boor"
    slow = True

    def build(self, problem: Problem, mode: str) -> Model:
        order = problem.workload.spline_order
        return TextbookModel(textbook_network(problem.layers, order, torch.float32))


def cardinal_cubic(distance: torch.Tensor) -> torch.Tensor:
    """The cubic B-spline on unit knots as a function of the distance |u| from its centre; zero from 2 on."""
    near = (2.0 / 3.0) + distance * distance * (0.5 * distance - 1.0)
    tail = (2.0 - distance).clamp_min(0.0)
    return torch.where(distance < 1.0, near, tail * tail * tail * (1.0 / 6.0))


class ClosedFormLayer(nn.Module):
    """Cubic splines on a uniform grid: every basis from the closed form, silu as one more row, one matmul."""

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__()
        features, self.bases, out = weights.spline.shape
        rows = torch.cat([weights.spline, weights.base.unsqueeze(1)], dim=1)  # (in, G+k+1, out)
        self.weight = nn.Parameter(rows.reshape(features * (self.bases + 1), out).float())
        knots = weights.grid[0]
        self.origin = float(knots[2])  # the centre of basis 0, in knots from the first
        self.inverse_step = float((knots.numel() - 1) / (knots[-1] - knots[0]))
        self.register_buffer("centres", torch.arange(self.bases, dtype=torch.float32))
        self.centres: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _for_cells(x)
        u = ((x - self.origin) * self.inverse_step).unsqueeze(-1)
        basis = cardinal_cubic((u - self.centres).abs())
        rows = torch.cat([basis, F.silu(x).unsqueeze(-1)], dim=-1).flatten(1)
        return rows.to(self.weight.dtype) @ self.weight


class ClosedFormModel(Model):
    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        layers: Any = getattr(self.module, "_orig_mod", self.module).children()
        found = [layer.weight.grad.unflatten(0, (-1, layer.bases + 1)) for layer in layers]
        return [(rows[:, :-1], rows[:, -1]) for rows in found]


class ClosedForm(Provider):
    key, label = "closed-form", "closed form + matmul, eager"

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return None if workload.spline_order == 3 else "the closed form here is for k=3"

    def build(self, problem: Problem, mode: str) -> Model:
        return ClosedFormModel(nn.Sequential(*(ClosedFormLayer(w) for w in problem.layers)))


class ClosedFormCompiled(ClosedForm):
    key, label = "closed-form-compiled", "closed form + matmul, torch.compile"
    compiles = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        if mode == SECOND:
            return NO_SECOND
        return super().refuses(workload, mode)

    def build(self, problem: Problem, mode: str) -> Model:
        eager = super().build(problem, mode).module
        return ClosedFormModel(torch.compile(eager, fullgraph=True, dynamic=False))  # type: ignore[arg-type]
