"""What the tests of training share: a small network, data, and what is compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from harness import DEVICE
from kan_kernels import KAN

F64 = torch.float64


def make(widths: list[int] | None = None, seed: int = 0, **options: Any) -> KAN:
    torch.manual_seed(seed)
    return KAN(widths or [2, 4, 1], **{"dtype": F64, "device": DEVICE, **options})


def data(samples: int = 200, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(samples, 2, dtype=F64, generator=generator) * 2 - 1
    y = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).square().mean()


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
