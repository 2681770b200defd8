"""Orthogonal polynomials in plain torch, by the three-term recurrence that makes them (DLMF 18.9)."""

import torch
from torch import Tensor


def values(x: Tensor, grid: Tensor, functions: int, order: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of P_r(x), r = 0 .. R-1: P_r = (a_r x + b_r) P_{r-1} - c_r P_{r-2}.

    Args:
        x: (..., in), the dtype to compute in (float32 or float64).
        grid: (in, 3 R) of the same dtype: a, then b, then c; P_{-1} = 1 and P_{-2} = 0, so that a_0 = 0 and
            b_0 = 1 make P_0 = 1.
        functions, order: R, and not looked at.
        derivative: m >= 0.

    Returns:
        (..., in, R) in x's dtype; NaN where x is not finite. The recurrence, derived m times, runs for all
        orders up to m together; differentiable to any order.
    """
    finite = torch.isfinite(x)
    # sin is NaN at NaN and +-inf together with all its derivatives: gradients of any order see the NaN too.
    nan = torch.sin(torch.where(finite, 0.0, x))
    x = torch.where(finite, x, 0.0)
    zero = torch.zeros_like(x)
    last, before = [zero + 1.0] + [zero] * derivative, [zero] * (derivative + 1)
    rows = []
    for r in range(functions):
        a, b, c = (grid[:, r + part * functions] for part in range(3))
        row = [(a * x + b) * p - c * q for p, q in zip(last, before, strict=True)]
        for j in range(1, derivative + 1):
            row[j] = row[j] + j * a * last[j - 1]
        last, before = row, last
        rows.append(row[derivative])
    return torch.where(finite, torch.stack(rows), nan).movedim(0, -1)
