"""Knots of every kind, and points that lie where knots make trouble."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_dtype(dtype: torch.dtype) -> torch.dtype:
    """Knots are float64 beside float64 weights and float32 beside everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_grid(kind: str, in_features: int, grid_size: int, order: int, gen: torch.Generator) -> Tensor:
    """Knots (in_features, G+2k+1) in float64. Kinds: uniform, ranges, adaptive, steep, clamped, repeated,
    collapsed.
    """
    count = grid_size + 2 * order + 1
    step = 2.0 / grid_size
    uniform = (torch.arange(count, dtype=torch.float64) - order) * step - 1.0
    rows = uniform.repeat(in_features, 1)
    if kind == "uniform":
        return rows
    if kind == "ranges":  # uniform, another range for every feature
        scale = 0.5 + 2.0 * torch.rand(in_features, 1, generator=gen, dtype=torch.float64)
        return rows * scale + torch.randn(in_features, 1, generator=gen, dtype=torch.float64)
    gaps = 0.3 + 1.4 * torch.rand(in_features, count - 1, generator=gen, dtype=torch.float64)
    if kind == "steep":  # neighbouring cells may differ 300 times in length
        gaps = 10.0 ** (-2.5 * torch.rand(in_features, count - 1, generator=gen, dtype=torch.float64))
    start = rows[:, :1]
    if kind == "repeated":  # a third of the cells has no length, in the extension too
        gaps[torch.rand(gaps.shape, generator=gen) < 0.34] = 0.0
    if kind == "clamped":  # open knot vector: the k extension cells of each side have no length
        gaps[:, :order] = 0.0
        gaps[:, count - 1 - order :] = 0.0
        start = torch.full_like(start, -1.0)
    if kind == "collapsed":  # a constant feature: every knot is the same number
        gaps.zero_()
    return start + step * torch.cat([torch.zeros_like(start), gaps.cumsum(1)], 1)


def make_points(kind: str, batch: int, grid: Tensor, order: int, gen: torch.Generator) -> Tensor:
    """Inputs (batch, in_features) like the grid: inside, extension, outside, knots, mixed, nan, inf."""
    features, count = grid.shape
    first, last = grid[:, 0], grid[:, -1]
    low, high = grid[:, order], grid[:, count - 1 - order]
    u = torch.rand(batch, features, generator=gen, dtype=torch.float64).to(grid.dtype)
    inside = low + (high - low) * u
    span = (last - first).clamp_min(0.5)
    extension = torch.where(u < 0.5, first + (low - first) * 2 * u, high + (last - high) * (2 * u - 1))
    far = torch.where(u < 0.5, first - span * (0.01 + 40 * u), last + span * (40 * u - 19.99))
    picked = grid.gather(1, torch.randint(0, count, (features, batch), generator=gen)).t()
    nudge = torch.randint(
        0, 4, (batch, features), generator=gen
    )  # half of them exactly, the rest an ulp beside
    below, above = (torch.nextafter(picked, torch.full_like(picked, v)) for v in (-torch.inf, torch.inf))
    knots = torch.where(nudge < 2, picked, torch.where(nudge == 2, below, above))
    if batch * features > 1 and kind == "knots":
        knots[0], knots[-1] = first, last
    named = {"inside": inside, "extension": extension, "outside": far, "knots": knots}
    if kind in named:
        return named[kind].contiguous()
    choice = torch.randint(0, 5, (batch, features), generator=gen)
    x = inside.clone()
    for index, other in ((2, extension), (3, far), (4, knots)):
        x = torch.where(choice == index, other, x)
    special = {"nan": (torch.nan,), "inf": (torch.inf, -torch.inf)}.get(kind, ())
    for n, value in enumerate(special):
        hit = torch.rand(batch, features, generator=gen) < 0.12
        hit.view(-1)[n : n + 1] = True
        x = torch.where(hit, torch.full_like(x, value), x)
    return x
