"""Where the affine fit starts: all candidates on a grid of (a, b), scored for all edges by GEMMs.

An edge's data interval is mapped to t in [0, 1], and a fit is described by z0 and z1, the values of a x + b
at its two ends. That makes the same grid good for every edge, and a domain is a pair of bounds for both.
For given (z0, z1) the best c and d are a linear regression on f(z), whose r2 needs three weighted sums over
the nodes: of f, f^2 and f y. f(z) is the same for all edges, so each sum is one GEMM.
"""

import math

import torch
from torch import Tensor

from ..nn.function_library import Function

NODES = 128  # of t, on which the curves are compared
FAR = 30.0  # the largest |z| that is searched; the refinement may go on from there
LARGE = 1e16  # f may vary by this much, or its inverse, over the data
CANCEL = 10.0  # |c f| may be so many times the largest value of the curve, unless that pays: see `fit`
OPEN, CLOSED = 1e-12, 1e-15  # how far from the ends of a domain
_COLUMNS = 512  # edges at a time


def bounds(function: Function) -> tuple[float, float]:
    """Return the domain as bounds for z, a little inside of its ends: f or its slope may be infinite."""
    low, high = function.domain
    ends = torch.tensor([low, high], dtype=torch.float64)
    low_inset, high_inset = torch.where(function.torch(ends).isfinite(), CLOSED, OPEN).tolist()
    if math.isfinite(low):
        low += low_inset * max(1.0, abs(low))
    if math.isfinite(high):
        high -= high_inset * max(1.0, abs(high))
    return low, high


def grid(function: Function) -> Tensor:
    """Return (rows, columns, 2): pairs (z0, z1) inside the domain; neighbours in the table are similar."""
    low, high = bounds(function)
    unbounded = math.isinf(low) and math.isinf(high)
    if function.degree is not None:  # only the ratio of z0 and z1 and their signs matter
        if unbounded:
            zero = 0.5 + 0.25 * _sinh_spaced(-6, 6, 241)  # the t where z = 0
            start, end = -zero, 1 - zero
        else:
            start = low + torch.cat((torch.zeros(1), torch.logspace(-8, 2, 121))).double()
            end = start + 1.0
        return torch.stack((torch.stack((start, end), -1), torch.stack((end, start), -1)))
    if function.period is not None and unbounded:
        start = torch.linspace(0, function.period, 9, dtype=torch.float64)[:-1, None]
        span = torch.linspace(0.25, 2 * FAR, 160, dtype=torch.float64)
        return torch.stack(((start + 0 * span), start + span), -1)
    nodes = _nodes(low, high)
    return torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1)


def _nodes(low: float, high: float) -> Tensor:
    """Return z inside [low, high], closer together where functions vary faster: at 0 and at the ends."""
    if math.isinf(low) and math.isinf(high):
        return FAR / math.sinh(6.0) * _sinh_spaced(-6, 6, 41)
    if math.isinf(high):
        return low + torch.logspace(-5, math.log10(FAR), 41, dtype=torch.float64)
    if math.isinf(low):
        return high - torch.logspace(-5, math.log10(FAR), 41, dtype=torch.float64)
    ramp = torch.tanh(torch.linspace(-5, 5, 39, dtype=torch.float64)) / 2 + 0.5
    return low + (high - low) * torch.cat((ramp.new_zeros(1), ramp, ramp.new_ones(1)))


def _sinh_spaced(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64).sinh()


def usable(f: Tensor, largest: Tensor, eps: float, strict: float) -> Tensor:
    """Return where c f + d does not drown in rounding, (..., 1).

    It does where f hardly varies beside its size, as a cosine does on a short arc, or varies by so little
    that its inverse overflows float32, as the tail of a gaussian. Early stages are held to stricter limits,
    so that rounding or other samples do not decide later.

    Args:
        f: (..., n), centred. largest: (..., 1), of |f| before. eps: of the dtype that will evaluate it.
    """
    size = f.square().mean(-1, keepdim=True).sqrt()
    return (size > 1 / LARGE) & (size < LARGE) & (size > strict * max(1e3 * eps, 1e-6) * largest)


def bounded(c: Tensor, largest: Tensor, limit: Tensor) -> Tensor:
    """Return c as far as |c f| stays within the limit, where |f| is at most `largest`."""
    most = limit / largest.clamp(min=1e-300)
    return torch.minimum(torch.maximum(c, -most), most)


def starts(
    function: Function, weight: Tensor, curve: Tensor, limit: Tensor, count: int, eps: float
) -> Tensor:
    """Return the best local optima of r2 on the grid.

    Args:
        weight: (NODES, E), how many of an edge's data lie at each node of t; columns add up to 1.
        curve: (NODES, E), the edge at the nodes. limit: (E,), the largest |c f| that is allowed.

    Returns:
        (E, count, 2): pairs (z0, z1), the best first; repeated where there are fewer.
    """
    pairs = grid(function).to(weight.device)
    rows, columns = pairs.shape[:2]
    t = torch.linspace(0, 1, NODES, dtype=torch.float64, device=weight.device)
    z = torch.lerp(pairs[..., :1], pairs[..., 1:], t).flatten(0, 1).clamp(*bounds(function))
    f = function.torch(z)
    largest = f.abs().amax(1, keepdim=True)
    f = f - f.mean(1, keepdim=True)
    good = usable(f, largest, eps, 16.0)
    scale = f.abs().amax(1, keepdim=True)
    f, largest = torch.where(good, f / scale, 0.0), torch.where(good, largest / scale, 1.0)
    # r2 is the squared correlation: of the sums below, y is centred by its weights and f is not
    best = []
    for w, y, most in zip(*(v.split(_COLUMNS, -1) for v in (weight, curve, limit)), strict=True):
        mean = f @ w
        variance = f.square() @ w - mean.square()
        covariance = f @ (w * (y - (w * y).sum(0)))
        c = bounded(covariance / variance.clamp(min=1e-12), largest, most)
        r2 = torch.where(good & (variance > 1e-12), c * (2 * covariance - c * variance), -1.0)
        table = r2.t().reshape(-1, 1, rows, columns)
        peak = (table >= 0) & (table >= torch.nn.functional.max_pool2d(table, 3, 1, 1))
        size = table.amax((2, 3), keepdim=True)  # r2 times the variance of y
        best.append(torch.where(peak, table, table - 2 * size - 1).flatten(1).topk(count, 1).indices)
    return pairs.flatten(0, 1)[torch.cat(best)]
