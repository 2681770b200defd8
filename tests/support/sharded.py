"""Models, styles and comparisons for the tests of sharded ops, layers and models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from kan_kernels import KAN
from kan_kernels.distributed import ColwiseKAN, RowwiseKAN

F64 = torch.float64


def line(size: int) -> DeviceMesh:
    return init_device_mesh("cpu", (size,), mesh_dim_names=("model",))


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def make(widths: Any = (4, 8, 12, 4), **options: Any) -> KAN:
    torch.manual_seed(0)
    net = KAN(widths, dtype=F64, **{"bias": True, **options})
    for layer in net.layers:
        nn.init.normal_(layer.spline_weight)
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return net


def full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def close(got: Tensor | None, want: Tensor | None, what: Any = "", error: float = 1e-11) -> None:
    """To rounding: float64 sums of a few hundred terms in another order."""
    assert (got is None) == (want is None), what
    if got is not None and want is not None:
        torch.testing.assert_close(
            full(got), full(want), rtol=error, atol=error, msg=lambda m: f"{what}: {m}"
        )


STYLES: dict[str, Callable[[], dict[str, Any]]] = {
    "outputs, inputs": lambda: {"layers.0": ColwiseKAN(), "layers.1": RowwiseKAN()},
    "all": lambda: {
        "layers.0": ColwiseKAN(),
        "layers.1": RowwiseKAN(output_layouts=Shard(-1)),
        "layers.2": RowwiseKAN(),
    },
    "outputs, outputs": lambda: {
        "layers.0": ColwiseKAN(use_local_output=False),
        "layers.1": ColwiseKAN(use_local_output=False),
        "layers.2": ColwiseKAN(output_layouts=Replicate()),
    },
    "inputs of whole rows": lambda: {"layers.0": RowwiseKAN(input_layouts=Replicate())},
}


def saved(net: nn.Module, folder: Path, group: Any = None, alone: bool = False) -> None:
    dcp.save({"model": get_model_state_dict(net)}, checkpoint_id=folder, process_group=group, no_dist=alone)


def loaded(net: nn.Module, folder: Path, group: Any = None, alone: bool = False) -> nn.Module:
    state = {"model": get_model_state_dict(net)}
    dcp.load(state, checkpoint_id=folder, process_group=group, no_dist=alone)
    set_model_state_dict(net, state["model"])
    return net


def other_values(net: KAN) -> KAN:
    for value in net.parameters():
        nn.init.zeros_(value)
    return net
