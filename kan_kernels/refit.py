"""The same spline on other knots: exactly by knot insertion, or to the least-squares optimum by Gram
matrices.

Everything is float64, batched over the input features, on the tensors' own device. No function is ever
sampled for each edge: a spline is linear in its coefficients, so the normal equations of the new ones are
K_new,new C_new = K_new,old C_old, whose matrices are `functional.basis_gram`.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from .functional.edges import basis_gram

SPAN_WEIGHT = 1e-12
"""What the distance of both splines over the whole span of the new knots counts for, beside their mean square
distance on the data: it decides where the data says nothing, and is below anything else."""

_GRAM_ELEMENTS = 2**24  # of the rectangular Gram matrices that exist at one time


def insert_knots(coefficients: Tensor, knots: Tensor, new_knots: Tensor, order: int) -> Tensor:
    """Return the coefficients on knots that contain the old ones; the spline stays the same everywhere.

    The Oslo algorithm (Cohen, Lyche, Riesenfeld 1980; Piegl & Tiller, The NURBS Book, section 5.3): each new
    coefficient is the old spline's polar form at k consecutive new knots, a convex combination of k+1 old
    ones, found by the triangle of algorithm A2.2 with another argument at each step.

    Args:
        coefficients: (in, n, out) float64. knots: (in, n+k+1) float64. new_knots: (in, n'+k+1) float64.
        order: k.

    Returns:
        (in, n', out) float64.
    """
    n, new_n = coefficients.shape[1], new_knots.shape[1] - order - 1
    last = knots.shape[1] - 1
    cell = torch.searchsorted(knots.contiguous(), new_knots[:, :new_n].contiguous(), right=True) - 1
    cell = cell.clamp(0, last - 1)

    def knot(offset: int) -> Tensor:
        return knots.gather(1, (cell + offset).clamp(0, last))

    value = [torch.ones_like(new_knots[:, :new_n])]
    for p in range(1, order + 1):
        at = new_knots[:, p : p + new_n]
        saved = torch.zeros_like(at)
        for r in range(p):
            left, right = knot(1 - p + r), knot(r + 1)
            width = right - left
            scaled = torch.where(width > 0, value[r] / width, 0.0)
            value[r] = saved + (right - at) * scaled
            saved = (at - left) * scaled
        value.append(saved)
    result = coefficients.new_zeros(*coefficients.shape[:1], new_n, coefficients.shape[2])
    for j, share in enumerate(value):
        row = cell - order + j  # rows outside belong to functions that do not exist
        share = torch.where((row >= 0) & (row < n), share, 0.0)
        index = row.clamp(0, n - 1).unsqueeze(2).expand_as(result)
        result += share.unsqueeze(2) * coefficients.gather(1, index)
    return result


def refit(
    coefficients: Tensor, knots: Tensor, new_knots: Tensor, order: int, x: Tensor | None = None
) -> Tensor:
    """Return the coefficients on new knots of the spline that is closest to the old one.

    Minimises mean_b (new(x_b) - old(x_b))^2 + SPAN_WEIGHT mean_span (new - old)^2, where the second mean is
    the integral over the span of the new knots divided by its length; without x, the second mean alone. So
    where there is no data, in empty cells or with fewer rows than cells, the old function stays, as closely
    as the new knots allow. A function on cells without length has no effect and gets the coefficient 0.

    Args:
        coefficients: (in, n, out) float64. knots: (in, n+k+1) float64. new_knots: (in, n'+k+1) float64.
        order: k.
        x: (B, in) finite, any floating dtype, B >= 1.

    Returns:
        (in, n', out) float64.
    """
    points, weights = _quadrature(knots, new_knots, order)
    if x is not None:
        weights = torch.cat([torch.full_like(x, 1 / len(x), dtype=torch.float64), SPAN_WEIGHT * weights])
        points = torch.cat([x.double(), points])
    n, new_n = coefficients.shape[1], new_knots.shape[1] - order - 1
    features = max(1, _GRAM_ELEMENTS // (n * new_n))
    results = []
    for start in range(0, len(knots), features):
        i = slice(start, start + features)
        p, w = points[:, i], weights[:, i]
        band = basis_gram(p, new_knots[i], order, row_weight=w)
        across = basis_gram(p, new_knots[i], order, other_grid=knots[i], row_weight=w)
        results.append(solve_banded(band, torch.bmm(across, coefficients[i])))
    return torch.cat(results)


def _quadrature(knots: Tensor, new_knots: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return points and weights (P, in) of the mean over the new span, exact for products of splines."""
    both = torch.cat([knots.clamp(new_knots[:, :1], new_knots[:, -1:]), new_knots], 1).sort(1).values
    nodes, shares = (torch.from_numpy(a).to(knots) for a in _gauss_legendre(order + 1))
    left, width = both[:, :-1, None], both.diff(dim=1).unsqueeze(2)
    points = left + width * nodes
    span = (new_knots[:, -1] - new_knots[:, 0]).clamp_min(torch.finfo(torch.float64).tiny)
    weights = width * shares / span[:, None, None]
    return points.flatten(1).t(), weights.flatten(1).t()


@functools.cache
def _gauss_legendre(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes in (0, 1) and weights with sum 1."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


def solve_banded(band: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric, positive semidefinite banded systems, one for each feature.

    Scaled to a unit diagonal; banded L D L^T (Golub & Van Loan, Matrix Computations, section 4.3.6), and two
    steps of iterative refinement. A pivot that is only rounding leaves its unknown at 0.

    Args:
        band: (in, n, k+1) float64, the diagonal and the k diagonals above it, as `functional.basis_gram`
        gives them. right: (in, n, out) float64.

    Returns:
        (in, n, out) float64, finite wherever the arguments are.
    """
    n, width = band.shape[1], band.shape[2] - 1
    width = min(width, n - 1)
    diagonal = band[:, :, 0]
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    full = band.new_zeros(len(band), n + width, 2 * width + 1)  # row r: columns r-k .. r+k
    for d in range(width + 1):
        values = band[:, : n - d, d] * scale[:, : n - d] * scale[:, d:]
        full[:, : n - d, width + d] = values
        full[:, d:n, width - d] = values
    factors = _factor(full.clone(), n, width)
    right = right * scale.unsqueeze(2)
    solution = _substitute(factors, right, n, width)
    for _ in range(2):
        residual = right - full[:, :n, width, None] * solution
        for d in range(1, width + 1):
            side = full[:, : n - d, width + d, None]
            residual[:, : n - d] -= side * solution[:, d:]
            residual[:, d:] -= side * solution[:, : n - d]
        solution += _substitute(factors, residual, n, width)
    return solution * scale.unsqueeze(2)


def _factor(full: Tensor, n: int, width: int) -> tuple[Tensor, Tensor]:
    """Return 1 / pivots (in, n), and the rows of L^T behind the diagonal (in, n, k); overwrite `full`."""
    stride = 2 * width + 1
    block = (len(full), width, width)
    smallest = 16 * n * torch.finfo(torch.float64).eps
    inverse, rows = full.new_empty(len(full), n), full.new_empty(len(full), n, width)
    for j in range(n):
        pivot = full[:, j, width]
        inverse[:, j] = torch.where(pivot.abs() > smallest, 1 / pivot, torch.where(pivot.isnan(), pivot, 0.0))
        ahead = full[:, j, width + 1 :]
        rows[:, j] = ahead * inverse[:, j : j + 1]
        if width:
            # entry (r, c) lies at r (2k+1) + c - r + k: a square of the matrix has the strides (2k, 1)
            start = (j + 1) * stride + width
            square = full.as_strided(block, (full.stride(0), stride - 1, 1), start)
            square -= rows[:, j, :, None] * ahead.unsqueeze(1)
    return inverse, rows


def _substitute(factors: tuple[Tensor, Tensor], right: Tensor, n: int, width: int) -> Tensor:
    """Solve L D L^T x = right."""
    inverse, rows = factors
    x = torch.cat([right, right.new_zeros(len(right), width, right.shape[2])], 1)
    for j in range(n if width else 0):
        x[:, j + 1 : j + 1 + width] -= rows[:, j, :, None] * x[:, j : j + 1]
    x[:, :n] *= inverse.unsqueeze(2)
    for j in reversed(range(n if width else 0)):
        x[:, j] -= (rows[:, j, :, None] * x[:, j + 1 : j + 1 + width]).sum(1)
    return x[:, :n]
