"""Sines and cosines in plain torch, the basis of FourierKAN (github.com/GistNoesis/FourierKAN)."""

import torch
from torch import Tensor


def values(x: Tensor, grid: Tensor, functions: int, order: int, derivative: int = 0) -> Tensor:
    """Return the m-th derivative of cos(g x) for g = 1 .. R/2, then of sin(g x).

    Args:
        x: (..., in), the dtype to compute in (float32 or float64).
        grid, order: not looked at.
        functions: R, an even number.
        derivative: m >= 0.

    Returns:
        (..., in, R) in x's dtype; NaN where x or g x is not finite. The m-th derivative is g^m times m
        quarter turns; differentiable to any order. x is split, since g x would be rounded, by far more than
        its cosine: g times the first part is exact, and the second is small.
    """
    g = torch.arange(1, functions // 2 + 1, dtype=x.dtype, device=x.device)
    short = torch.float32 if x.dtype == torch.float64 else torch.bfloat16
    coarse = x.detach().to(short).to(x.dtype)
    large, small = coarse.unsqueeze(-1) * g, (x - coarse).unsqueeze(-1) * g
    c = torch.cos(large) * torch.cos(small) - torch.sin(large) * torch.sin(small)
    s = torch.sin(large) * torch.cos(small) + torch.cos(large) * torch.sin(small)
    turns = ((c, s), (-s, c), (-c, -s), (s, -c))[derivative % 4]
    return torch.cat([g**derivative * turned for turned in turns], -1)
