"""The bases of full support, for the tests: grids, points, and an oracle on numpy's own functions.

The oracle shares neither code nor formula with the package: B^(m) of a Gaussian is a Hermite series, T_r^(m)
the derivative of a Chebyshev series, and so is that of every other polynomial, whose series numpy multiplies
out; waves are parts of (i g)^m exp(i g x) in long double.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev, hermite
from torch import Tensor

from kan_kernels._core.bases import BASES
from kan_kernels.functional.polynomials import orthogonal_polynomials

POLYNOMIALS = ("chebyshev", "orthogonal")
CODES = {name: basis.code for name, basis in BASES.items()}


def make_grid(basis: str, knots: str, in_features: int, functions: int, gen: torch.Generator) -> Tensor:
    """The grid in float64. "uniform": the same centres and width, or recurrence, for every feature."""
    if basis == "orthogonal":
        alike = knots == "uniform"
        rows = [_jacobi(functions, gen, alike) for _ in range(1 if alike else in_features)]
        return torch.cat(rows * (in_features if alike else 1))
    if basis != "rbf":
        return torch.empty(in_features, 0, dtype=torch.float64)
    rows = torch.linspace(-1.5, 1.5, functions, dtype=torch.float64).repeat(in_features, 1)
    widths = torch.full((in_features, 1), 3.0 / max(functions - 1, 1), dtype=torch.float64)
    if knots != "uniform":
        rows = rows + torch.randn(rows.shape, generator=gen, dtype=torch.float64)
        widths = widths * (0.3 + torch.rand(widths.shape, generator=gen, dtype=torch.float64))
    return torch.cat([rows, widths], 1)


def _jacobi(functions: int, gen: torch.Generator, legendre: bool) -> Tensor:
    """Legendre's recurrence, or Jacobi's with parameters drawn from (-0.9, 1.1)."""
    if legendre:
        return orthogonal_polynomials("legendre", functions, 1, dtype=torch.float64)
    alpha, beta = (2.0 * torch.rand(2, generator=gen, dtype=torch.float64) - 0.9).tolist()
    return orthogonal_polynomials("jacobi", functions, 1, alpha=alpha, beta=beta, dtype=torch.float64)


def points_grid(basis: str, grid: Tensor) -> Tensor:
    """Knots of order 0 from which `cases.make_points` draws x: the centres in order, [-1, 1], or periods."""
    if basis == "fourier":
        return torch.linspace(-8, 8, 9, dtype=grid.dtype).repeat(len(grid), 1)
    if basis in POLYNOMIALS:
        return torch.linspace(-1, 1, 5, dtype=grid.dtype).repeat(len(grid), 1)
    ends = torch.stack([grid[:, :-1].amin(1) - grid[:, -1], grid[:, :-1].amax(1) + grid[:, -1]], 1)
    return torch.cat([grid[:, :-1], ends], 1).sort(1).values


def within_reach(basis: str, x: Tensor) -> Tensor:
    """x; for polynomials not far beyond [-1, 1], where float16 overflows."""
    return torch.where(x.isinf(), x, x.clamp(-1.5, 1.5)) if basis in POLYNOMIALS else x


def values(code: int, x: Tensor, grid: Tensor, functions: int, m: int) -> Tensor:
    """B_r^(m)(x[b, i]) as (B, I, R) in float64; at +-inf Gaussians are 0, polynomials and waves NaN."""
    if code == CODES["fourier"]:
        return _waves(x, functions // 2, m)
    if code == CODES["rbf"]:
        t = (x.unsqueeze(-1) - grid[:, :-1]) / grid[:, -1:]
        series = np.eye(m + 1)[m]
        t_ = np.clip(t.numpy(), -40.0, 40.0)  # NaN stays NaN; beyond, the Gaussian is 0 in float64
        value = torch.from_numpy(hermite.hermval(t_, series) * np.exp(-t_ * t_))
        value = torch.where(t.abs() >= 40.0, 0.0, value)
        return value * (-1.0 / grid[:, -1:]) ** m
    if code == CODES["orthogonal"]:
        return _polynomials(x, grid, functions, m)
    columns = [chebyshev.chebval(x.numpy(), _derivative(r, m)) for r in range(functions)]
    value = torch.from_numpy(np.stack(columns, -1)) if x.numel() else x.new_empty(*x.shape, functions)
    return torch.where(x.isfinite().unsqueeze(-1), value, torch.nan)


def _polynomials(x: Tensor, grid: Tensor, functions: int, m: int) -> Tensor:
    """The m-th derivatives of P_r, as Chebyshev series that are multiplied out."""
    value = torch.empty(*x.shape, functions, dtype=torch.float64)
    for i, row in enumerate(grid.double().reshape(len(grid), 3, functions).numpy()):
        before, last = np.zeros(1), np.ones(1)
        for r, (a, b, c) in enumerate(row.T):
            grown = chebyshev.chebadd(a * chebyshev.chebmulx(last), b * last)
            before, last = last, chebyshev.chebsub(grown, c * before)
            derived = chebyshev.chebder(last, m) if m else last
            value[:, i, r] = torch.from_numpy(np.asarray(chebyshev.chebval(x[:, i].numpy(), derived)))
    return torch.where(x.isfinite().unsqueeze(-1), value, torch.nan)


def _waves(x: Tensor, frequencies: int, m: int) -> Tensor:
    """The real, then the imaginary parts of (i g)^m exp(i g x)."""
    if not x.numel():
        return x.new_empty(*x.shape, 2 * frequencies)
    g = np.arange(1, frequencies + 1, dtype=np.longdouble)
    finite = x.isfinite()
    angle = torch.where(finite, x, 0.0).numpy().astype(np.longdouble)[..., None] * g
    wave = np.cos(angle) + 1j * np.sin(angle)
    cosines = np.real(1j**m * wave) * g**m
    sines = np.imag(1j**m * wave) * g**m
    value = torch.from_numpy(np.concatenate([cosines, sines], -1).astype(np.float64))
    return torch.where(finite.unsqueeze(-1), value, torch.nan)


def _derivative(r: int, m: int) -> np.ndarray:
    return chebyshev.chebder(np.eye(r + 1)[r], m) if m else np.eye(r + 1)[r]


def magnitude(code: int, x: Tensor, grid: Tensor, functions: int, m: int) -> Tensor:
    """What rounding errors of B_r^(m)(x) scale with, (B, I, R).

    Gaussians: t has a relative rounding error of its own, which B^(m+1) t carries on, and the Hermite
    polynomials are sums, of terms as large as those of the polynomial with all signs positive. Below exp(-87)
    float32 may be flushed to zero: 8 eps times 2e-32. Polynomials: the recurrence on [-1, 1] adds up to
    r^2 / 2 roundings of terms that are at most T_r^(m)(1). Waves: g^m, whatever g and x.
    """
    if code == CODES["fourier"]:
        g = torch.arange(1, functions // 2 + 1, dtype=x.dtype).repeat(2)
        return (g**m).expand(*x.shape, -1)
    if code == CODES["rbf"]:
        t = ((x.unsqueeze(-1) - grid[:, :-1]) / grid[:, -1:]).abs()
        near = t.nan_to_num(nan=torch.inf).clamp_max(40.0)
        now, after = (_absolute_hermite(near.clamp_max(10.0), n) for n in (m, m + 1))
        far_now, far_after = (_absolute_hermite(near, n) for n in (m, m + 1))
        size = (far_now + near * far_after) * torch.exp(-near * near) + 2e-32 * (now + after)
        return torch.where(x.isfinite().unsqueeze(-1), size, 0.0) / grid[:, -1:] ** m
    reach = x.abs().nan_to_num(nan=0.0, posinf=0.0).clamp_min(1.0)
    if code == CODES["orthogonal"]:
        ends = torch.stack([values(code, side, grid, functions, m).abs() for side in (reach, -reach)])
        return ends.amax(0) * (1.0 + torch.arange(functions, dtype=x.dtype) ** 2 / 8) + 1.0
    orders = torch.arange(functions, dtype=x.dtype)
    return values(code, reach, grid, functions, m) * (1.0 + orders**2 / 16)


def _absolute_hermite(t: Tensor, m: int) -> Tensor:
    """The Hermite polynomial with every sign positive: sum_j m! (2t)^(m-2j) / (j! (m-2j)!)."""
    terms = [
        math.factorial(m) / (math.factorial(j) * math.factorial(m - 2 * j)) * (2.0 * t) ** (m - 2 * j)
        for j in range(m // 2 + 1)
    ]
    return torch.stack(terms).sum(0)
