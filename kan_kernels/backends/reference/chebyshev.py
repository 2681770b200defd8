"""Chebyshev polynomials of the first kind in plain torch, the basis of ChebyKAN (arXiv 2405.07200)."""

import math

import torch
from torch import Tensor


def values(x: Tensor, grid: Tensor, functions: int, order: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of T_r(x), r = 0 .. R-1, finite and exact at x = +-1 too: T_r'(1) = r^2.

    Args:
        x: (..., in), the dtype to compute in (float32 or float64).
        grid, order: not looked at.
        functions: R >= 1.
        derivative: m >= 0.

    Returns:
        (..., in, R) in x's dtype; NaN where x is not finite. By
        T_n^(m) = 2^(m-1) (m-1)! n C_{n-m}^(m) and the recurrence of the Gegenbauer polynomials C
        (DLMF 18.9.1), stable on [-1, 1]; differentiable to any order.
    """
    m, degree = derivative, functions - 1
    finite = torch.isfinite(x)
    # sin is NaN at NaN and +-inf together with all its derivatives: gradients of any order see the NaN too.
    nan = torch.sin(torch.where(finite, 0.0, x))
    x = torch.where(finite, x, 0.0)
    zero = torch.zeros_like(x)
    rows = [zero] * min(m, degree + 1)
    if m <= degree:
        rows.append(zero + (2.0 ** (m - 1) * math.factorial(m) if m else 1.0))
    for n in range(m + 1, degree + 1):
        if m == 0:
            step = x if n == 1 else 2.0 * x * rows[-1] - rows[-2]
        else:
            step = 2.0 * n / (n - m) * x * rows[-1]
            if n - 2 >= m:
                step = step - n * (n + m - 2) / ((n - 2) * (n - m)) * rows[-2]
        rows.append(step)
    return torch.where(finite, torch.stack(rows), nan).movedim(0, -1)
