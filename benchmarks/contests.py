"""Layers of other KAN codebases, as they are and on our kernels, for `python -m benchmarks.integrations`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .forms import BasisImageConv2d


@dataclass(frozen=True)
class Contest:
    """One module of a peer and the same module on our kernels.

    build() makes the peer's; fast(module) turns a copy of it into ours. same_names: whether parameters keep
    their names, so that their gradients can be compared one by one. compiled: also torch.compile the peer's.
    """

    key: str
    label: str
    shape: str
    x: Callable[[], torch.Tensor]
    build: Callable[[], nn.Module]
    fast: Callable[[nn.Module], nn.Module]
    unavailable: Callable[[], str | None] = lambda: None
    same_names: bool = True
    compiled: bool = True
    target: float | None = None  # training step, the peer's time over ours


def _rows(batch: int, features: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(batch, features) * 2 - 1


def _conv(module: nn.Module) -> nn.Module:
    from kan_kernels import KANConv2d

    channels, out = module.base_conv[0].in_channels, module.base_conv[0].out_channels  # type: ignore
    layer = KANConv2d(channels, out, 3, padding=1)
    layer.load_conv_kan(dict(module.state_dict()))
    return layer


CONTESTS = (
    Contest(
        "conv2d",
        "basis image + conv2d (torch-conv-kan)",
        "16 -> 32, 3x3, 32x32, B=64",
        lambda: torch.rand(64, 16, 32, 32) * 2 - 1,
        lambda: BasisImageConv2d(16, 32),
        _conv,
        same_names=False,
        target=4.0,
    ),
)
