"""Gaussians around centres in plain torch, the basis of FastKAN (arXiv 2405.06721, eq. 5)."""

import torch
from torch import Tensor


def values(x: Tensor, grid: Tensor, functions: int, order: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of B_r(x) = exp(-t^2), t = (x - c_r) / h, for every r.

    Args:
        x: (..., in), the dtype to compute in (float32 or float64).
        grid: (in, R + 1) of the same dtype: R centres c, then the width h.
        functions, order: R, and not looked at.
        derivative: m >= 0.

    Returns:
        (..., in, R) in x's dtype, 0 at +-inf, NaN at NaN. By the recurrence of the Hermite polynomials,
        B^(n+1) = -2/h (t B^(n) + n/h B^(n-1)); differentiable to any order.
    """
    finite = torch.isfinite(x).unsqueeze(-1)
    inverse = 1.0 / grid[:, -1:]
    t = (torch.where(finite, x.unsqueeze(-1), 0.0) - grid[:, :-1]) * inverse
    value = torch.exp(-t * t)
    previous = torch.zeros_like(value)
    for n in range(derivative):
        value, previous = -2.0 * inverse * (t * value + (n * inverse) * previous), value
    # exp is NaN at NaN together with all its derivatives, so gradients of any order see the NaN too.
    is_nan = torch.isnan(x)
    nan = torch.exp(torch.where(is_nan, x, 0.0)).unsqueeze(-1)
    return torch.where(finite, value, torch.where(is_nan.unsqueeze(-1), nan, 0.0))
