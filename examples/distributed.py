"""A KAN on several ranks: layers over some, rows and optimizer over the others, one checkpoint for all.

    torchrun --nproc-per-node 4 -m examples.distributed --model 2 [--steps 200] [--checkpoint FOLDER]

The ranks form a mesh (data, model). Along "model" they share the layers: the first by its outputs, the second
by its inputs. Along "data" they share rows, weights and optimizer state (FSDP2). Every number is that of one
process with all rows, to rounding; `--checkpoint` is read by any number of ranks and written at the end. CPUs
and gloo, or GPUs and nccl where there are any. Without torchrun it is one rank.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from kan_kernels import KAN
from kan_kernels.distributed import ColwiseKAN, RowwiseKAN
from kan_kernels.grids import update_grid

ROWS = 512


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A KAN on several ranks.")
    parser.add_argument("--model", type=int, default=1, help="ranks that share the layers")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder, read where it is there and written at the end"
    )
    return parser.parse_args()


def mesh_of(model_ranks: int) -> DeviceMesh:
    """The ranks of torchrun as (data, model)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:
        dist.init_process_group()
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    size = dist.get_world_size()
    if size % model_ranks:
        raise SystemExit(f"--model {model_ranks} does not divide {size} ranks")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return init_device_mesh(device, (size // model_ranks, model_ranks), mesh_dim_names=("data", "model"))


def sharded(model: KAN, mesh: DeviceMesh) -> nn.Module:
    """Split along "model" first, then along "data", layer by layer."""
    parallelize_module(model, mesh["model"], {"layers.0": ColwiseKAN(), "layers.1": RowwiseKAN()})
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def data(device: str) -> tuple[Tensor, Tensor]:
    """All rows; a data set that does not fit one rank would be read in parts."""
    x = torch.rand(ROWS, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    y = torch.stack([(x[:, 0] * x[:, 1]).sin(), x[:, 2:].square().mean(1)], 1)
    return x.to(device), y.to(device)


def main() -> float:
    """Train, and return the loss over all rows."""
    given = arguments()
    mesh = mesh_of(given.model)
    torch.manual_seed(0)  # the same first weights on every rank
    model = sharded(KAN([8, 64, 2], bias=True), mesh)
    x, y = data(mesh.device_type)
    parts, part = mesh["data"].size(), mesh["data"].get_local_rank()
    x, y = x.chunk(parts)[part], y.chunk(parts)[part]  # alike on the ranks that share layers
    if given.checkpoint is not None and given.checkpoint.exists():
        state = {"model": get_model_state_dict(model)}
        dcp.load(state, checkpoint_id=given.checkpoint)
        set_model_state_dict(model, state["model"])
    else:
        update_grid(model, x, group=mesh["data"].get_group())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(given.steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    total = (model(x) - y).square().mean().detach()
    dist.all_reduce(total, group=mesh["data"].get_group())
    result = float(total) / parts
    if given.checkpoint is not None:
        dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=given.checkpoint)
    if dist.get_rank() == 0:
        print(f"{parts} x {given.model} ranks, loss {result:.6f}")
    dist.destroy_process_group()
    return result


if __name__ == "__main__":
    main()
