"""Layers of other KAN codebases, as they are and on our kernels, for `python -m benchmarks.integrations`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .basis_forms import BasisImageConv2d, ChebyKANLayer, FastKANLayer, NaiveFourierKANLayer
from .providers.base import import_or_reason
from .workloads import find_workload


@dataclass(frozen=True)
class Contest:
    """One module of a peer and the same module on our kernels.

    build() makes the peer's; fast(module) turns a copy of it into ours. penalty(module) is added to the loss
    behind each forward. same_names: whether parameters keep their names, so that their gradients can be
    compared one by one. compiled: also torch.compile the peer's, and ours.
    """

    key: str
    label: str
    shape: str
    x: Callable[[], torch.Tensor]
    build: Callable[[], nn.Module]
    fast: Callable[[nn.Module], nn.Module]
    unavailable: Callable[[], str | None] = lambda: None
    penalty: Callable[[Any], torch.Tensor] | None = None
    same_names: bool = True
    compiled: bool = True
    target: float | None = None  # training step, the peer's time over ours


def _rows(batch: int, features: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(batch, features) * 2 - 1


def accelerated(module: nn.Module) -> nn.Module:
    """The module with its layers on the kernels; RuntimeError if one was left as it is."""
    from kan_kernels.integrations import accelerate

    report = accelerate(module)
    if report.left or not report.taken:  # a figure of something else must not appear under this name
        raise RuntimeError(str(report))
    return module


def _conv(module: nn.Module) -> nn.Module:
    from kan_kernels import KANConv2d

    channels, out = module.base_conv[0].in_channels, module.base_conv[0].out_channels  # type: ignore
    layer = KANConv2d(channels, out, 3, padding=1)
    layer.load_conv_kan(dict(module.state_dict()))
    return layer


def _pykan(
    name: str, widths: tuple[int, ...], target: float | None = None, penalised: bool = False
) -> Contest:
    """pykan with its own settings: grid 3, k = 3, statistics kept, the symbolic half evaluated."""
    return Contest(
        f"pykan-{name}" + ("-penalty" if penalised else ""),
        "pykan 0.2.8" + (", with its penalty" if penalised else ""),
        f"[{','.join(map(str, widths))}] B=1000 G=3",
        _rows(1000, widths[0]),
        lambda: importlib.import_module("kan").KAN(width=list(widths), auto_save=False),
        accelerated,
        unavailable=lambda: import_or_reason("kan", "pip install '.[pykan]'"),
        penalty=(lambda model: 1e-3 * model.get_reg(*_PENALTY)) if penalised else None,
        compiled=False,  # its forward keeps lists and calls a function for each edge
        target=target,
    )


# reg_metric and the weights of its parts, those of pykan's `fit`
_PENALTY = ("edge_forward_spline_n", 1.0, 2.0, 0.0, 0.0)


def _efficient_kan() -> Any:
    """efficient-kan if it is on the path, else its form."""
    real = importlib.util.find_spec("efficient_kan") is not None
    return importlib.import_module("efficient_kan" if real else "benchmarks.efficient_kan_form")


def _bases(peer: str, label: str, layer: Callable[[int, int, int], nn.Module], name: str) -> Contest:
    """A stack of a peer's layers on a workload, with as many functions as that has B-splines."""
    workload = find_workload(name)
    return Contest(
        f"{peer}-{name}",
        label,
        workload.shape.rsplit(" ", 1)[0] + f" {workload.bases} functions",
        _rows(workload.batch, workload.widths[0]),
        lambda: nn.Sequential(*(layer(i, o, workload.bases) for i, o in pairwise(workload.widths))),
        accelerated,
        target=1.0,
    )


_WORKLOADS = ("wide-g5", "wide-g20", "protocol", "medium", "mnist", "toy", "memory")

CONTESTS = (
    _pykan("64", (64, 64, 64), 50.0),
    _pykan("64", (64, 64, 64), penalised=True),
    _pykan("toy", (2, 5, 1), 5.0),
    _pykan("toy", (2, 5, 1), penalised=True),
    Contest(
        "efficient-kan",
        "efficient-kan",
        "[256,256,256] B=4096 G=5",
        _rows(4096, 256),
        lambda: _efficient_kan().KAN([256, 256, 256]),
        accelerated,
        target=8.0,
    ),
    *(_bases("fastkan", "FastKAN", lambda i, o, n: FastKANLayer(i, o, num_grids=n), w) for w in _WORKLOADS),
    *(_bases("chebykan", "ChebyKAN", lambda i, o, n: ChebyKANLayer(i, o, n - 1), w) for w in _WORKLOADS),
    # not the widest: its own code makes tensors of batch x out x in x frequencies
    *(
        _bases("fourierkan", "FourierKAN", lambda i, o, n: NaiveFourierKANLayer(i, o, n // 2), w)
        for w in ("medium", "mnist", "toy")
    ),
    Contest(
        "fourierkan-300",
        "FourierKAN",
        "[50,200] B=10 600 functions",
        _rows(10, 50),
        lambda: NaiveFourierKANLayer(50, 200),
        accelerated,
        target=1.0,
    ),
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
