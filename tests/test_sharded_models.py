"""Sharded models in use: knots, refinement, training, checkpoints, FSDP2; all as one process has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import parallelize_module

import ranks
from kan_kernels import KANActivation, deploy
from kan_kernels.distributed import ColwiseKAN, RowwiseKAN
from kan_kernels.grids import refine, update_grid
from kan_kernels.training import fit
from sharded import F64, STYLES, close, draw, full, line, loaded, make, other_values, saved

case = ranks.Cases()


@case
def knots_under_styles(rank: int, size: int) -> None:
    """update_grid and fit: the bits that one process gets, and no guess where the rows differ."""
    x = draw(40, 4) * 2
    whole, net = make(), parallelize_module(make(), line(size), STYLES["all"]())
    update_grid(whole, x, group="local")
    update_grid(net, x)
    for key, value in whole.state_dict().items():
        assert torch.equal(full(net.state_dict()[key]), value), key
    ranges = [layer.grid_range for layer in net.layers]
    assert ranges[0] == whole.layers[0].grid_range and ranges[1] != (-1.0, 1.0)
    before = {key: full(value).clone() for key, value in net.state_dict().items()}
    with pytest.raises(
        ValueError, match="x: another rank, which holds parts of the same layers, found other"
    ):
        update_grid(net, x + rank)
    bad = x.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite" if rank == 0 else "x: another rank.* found an error, x: "):
        update_grid(net, bad if rank == 0 else x)
    for key, value in net.state_dict().items():
        assert torch.equal(full(value), before[key]), key
    options: dict[str, Any] = {"steps": 4, "update_grid_at": [2], "batch_size": 16, "lr": 0.01}
    data = x, x.sin()
    trained = fit(net, data, optimizer="adam", **options).train_loss
    alone = fit(whole, data, optimizer="adam", group="local", **options).train_loss
    torch.testing.assert_close(torch.tensor(trained), torch.tensor(alone), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="optimizer: LBFGS follows"):
        fit(net, data, **options)
    with pytest.raises(ValueError, match="checkpoint: holds whole models"):
        fit(net, data, optimizer="adam", checkpoint="never.pt", **options)


@case
def written_from_whole_models(rank: int, size: int) -> None:
    """The NumPy model and the C header take whole models, and say so."""
    net = parallelize_module(make(), line(size), STYLES["all"]())
    for write in (deploy.to_numpy_model, deploy.to_c):
        with pytest.raises(
            ValueError, match=r"its parameters are sharded over ranks .*, expected whole ones"
        ):
            write(net)


def same_state(net: nn.Module, whole: nn.Module, error: float = 1e-11) -> None:
    state = net.state_dict()
    for key, value in whole.state_dict().items():
        close(state[key], value, key, error)


@case
def refinement(rank: int, size: int) -> None:
    """Knots inserted, fitted over the span, fitted on data: what one process gets, sharded as before."""
    x = draw(40, 4) * 2
    for name in STYLES if size == 4 else ("all", "outputs, outputs"):
        for new_size, data in ((10, None), (7, None), (7, x)):
            whole, net = make(), parallelize_module(make(), line(size), STYLES[name]())
            net.layers[1].spline_weight.requires_grad_(False)
            for model in (whole, net):
                update_grid(model, x, group="local" if model is whole else None)
            layouts = {key: getattr(value, "placements", None) for key, value in net.state_dict().items()}
            refine(whole, new_size, data, group="local")
            refine(net, new_size, data)
            same_state(net, whole)
            if data is not None:
                assert all(torch.equal(full(net.state_dict()[k]), v) for k, v in whole.state_dict().items())
            for key, value in net.state_dict().items():
                assert getattr(value, "placements", None) == layouts[key], key
            for got, true in zip(net.layers, whole.layers, strict=True):
                assert got.grid_size == new_size and isinstance(got.spline_weight, nn.Parameter)
                assert got.grid.shape == true.grid.shape
            assert [p.requires_grad for p in net.layers[1].parameters()] == [False, True, True]
            close(net(x), whole(x))
    net = parallelize_module(make(), line(size), STYLES["outputs, inputs"]())
    refine(net, 10)
    assert net.layers[0].spline_weight.to_local().shape == (4, 13, 8 // size)
    assert net.layers[1].spline_weight.to_local().shape == (8 // size, 13, 12)
    before = {key: full(value).clone() for key, value in net.state_dict().items()}
    with pytest.raises(
        ValueError, match="x: another rank, which holds parts of the same layers, found other"
    ):
        refine(net, 13, x + rank)
    with pytest.raises(ValueError, match="finite" if rank == 0 else "x: another rank.* found an error, x: "):
        refine(net, 13, torch.full_like(x, torch.nan) if rank == 0 else x)
    for key, value in net.state_dict().items():
        assert torch.equal(full(value), before[key]), key


@case
def refinement_sends_no_weights(rank: int, size: int) -> None:
    """Without data each rank computes its own edges: sharded outputs send nothing, sharded inputs knots."""
    net = parallelize_module(make(), line(size), {"layers.0": ColwiseKAN(), "layers.1": ColwiseKAN()})
    for new_size in (10, 13):
        with CommDebugMode() as sent:
            refine(net, new_size)
        assert sent.get_total_counts() == 0
    net = parallelize_module(make(), line(size), {"layers.1": RowwiseKAN()})
    with CommDebugMode() as sent:
        refine(net, 10)
    assert sent.get_total_counts() == 1


@case
def refinement_of_any_layout(rank: int, size: int) -> None:
    """Layers of DTensors that no style made, of sizes that ranks do not divide: of some, ranks have none."""
    meshes = [line(size)]
    if size == 4:
        meshes.append(init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model")))
    for mesh in meshes:
        pairs = [(at,) * mesh.ndim for at in (Shard(0), Shard(1), Shard(2), Replicate())]
        if mesh.ndim == 2:
            pairs += [(Shard(0), Shard(2)), (Shard(2), Shard(0)), (Replicate(), Shard(0))]
        for layout in pairs:
            for whole in (make((5, 7)).layers[0], make((2, 3)).layers[0], KANActivation(3, 2, dtype=F64)):
                moved = whole.grid + draw(*whole.grid.shape) / 20  # no two inputs have alike knots
                whole.place_grid(moved.sort(1).values)
                net = copy.deepcopy(whole)
                weight = distribute_tensor(net.spline_weight.detach(), mesh, layout)
                net.spline_weight = nn.Parameter(weight)
                for new_size in (10, 13):
                    refine(whole, new_size)
                    refine(net, new_size)
                    assert net.spline_weight.placements == layout
                    same_state(net, whole)


@case
def refinement_while_fitting(rank: int, size: int) -> None:
    """fit refines between its steps, and falls back to a state of fewer cells."""
    x = draw(40, 4)
    data, options = (x, x.sin()), {"optimizer": "adam", "lr": 0.01, "steps": 5}
    whole, net = make(), parallelize_module(make(), line(size), STYLES["all"]())
    changes: dict[str, Any] = {"refine_at": {2: 7, 4: 14}, "update_grid_at": [1]}
    trained = fit(net, data, **options, **changes)
    alone = fit(whole, data, group="local", **options, **changes)
    torch.testing.assert_close(
        torch.tensor(trained.train_loss), torch.tensor(alone.train_loss), rtol=1e-9, atol=0
    )
    assert [layer.grid_size for layer in net.layers] == [14] * 3 and trained.events == alone.events
    same_state(net, whole, 1e-7)

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).square().mean() * (torch.nan if net.layers[0].grid_size > 14 else 1.0)

    before = {key: full(value).clone() for key, value in net.state_dict().items()}
    with pytest.warns(RuntimeWarning, match="training diverged"):
        fit(net, data, loss=loss, **options, refine_at={0: 28})
    assert [layer.grid_size for layer in net.layers] == [14] * 3
    for key, value in net.state_dict().items():
        assert torch.equal(full(value), before[key]), key


@case
def refinement_beside_fsdp(rank: int, size: int) -> None:
    """FSDP2 keeps the shapes it saw: an error that says what to do, which works."""
    whole, net = make(), make()
    for layer in net.layers:
        fully_shard(layer)
    fully_shard(net)
    for model in (net, net.layers[0]):
        with pytest.raises(ValueError, match=r"model: fully_shard holds .*full_state_dict=True"):
            refine(model, 10)
    with pytest.raises(ValueError, match="refine_at: replaces parameters"):
        fit(net, (draw(8, 4), draw(8, 4)), optimizer="adam", steps=2, refine_at={1: 10})
    plain = other_values(make())
    plain.load_state_dict(get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)))
    refine(plain, 10)
    for layer in plain.layers:
        fully_shard(layer)
    fully_shard(plain)
    refine(whole, 10)
    same_state(plain, whole)
    close(plain(draw(8, 4)), whole(draw(8, 4)))


@case
def checkpoints(rank: int, size: int) -> None:
    """torch.distributed.checkpoint over world sizes 4 -> 2 -> 1 -> all, between styles; of another model, an
    error that names the tensor.
    """
    x, whole = draw(40, 4) * 2, make()
    update_grid(whole, x, group="local")
    net = parallelize_module(make(), line(size), STYLES["all"]())
    update_grid(net, x)
    saved(net, case.folder / f"all{size}")
    half = dist.new_group(list(range(size // 2)))
    if rank < size // 2:
        # of the group that all ranks made: one that some make alone puts later groups out of step
        small = DeviceMesh.from_group(half, "cpu", mesh_dim_names=("model",))
        net = loaded(
            parallelize_module(other_values(make()), small, STYLES["outputs, inputs"]()),
            case.folder / f"all{size}",
            half,
        )
        assert net.layers[0].grid_range == whole.layers[0].grid_range
        saved(net, case.folder / f"half{size}", half)
    dist.barrier()
    if rank == 0:
        alone = loaded(other_values(make()), case.folder / f"half{size}", alone=True)
        for key, value in whole.state_dict().items():
            assert torch.equal(alone.state_dict()[key], value), key
        saved(alone, case.folder / f"one{size}", alone=True)
    dist.barrier()
    net = parallelize_module(other_values(make()), line(size), STYLES["outputs, outputs"]())
    for key, value in loaded(net, case.folder / f"one{size}").state_dict().items():
        assert torch.equal(full(value), whole.state_dict()[key]), key
    for wrong in (make((4, 16, 12, 4)), make(grid_size=7)):
        net = parallelize_module(wrong, line(size), {"layers.0": ColwiseKAN()})
        before = full(net.layers[0].spline_weight).clone()
        with pytest.raises(
            CheckpointException, match=r"Size mismatch between saved .* for model\.layers\.0\."
        ):
            loaded(net, case.folder / f"one{size}")
        assert torch.equal(full(net.layers[0].spline_weight), before)
    with pytest.raises(CheckpointException, match=r"Missing key.* model\.layers\.3\."):
        loaded(parallelize_module(make((4, 8, 12, 4, 4)), line(size), {}), case.folder / f"one{size}")


@case.on(4)
def two_dimensions(rank: int, size: int) -> None:
    """FSDP2 along one dimension of a mesh, parallel styles along the other: training, knots, a checkpoint."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    data = mesh["data"]
    whole, net = make(), parallelize_module(make(), mesh["model"], STYLES["all"]())
    for layer in net.layers:
        fully_shard(layer, mesh=data)
    fully_shard(net, mesh=data)
    x, mine = draw(12, 4) * 2, slice(data.get_local_rank() * 6, data.get_local_rank() * 6 + 6)
    optimizers = [torch.optim.Adam(model.parameters(), 0.05) for model in (whole, net)]

    def step() -> None:
        for model, rows, optimizer in zip((whole, net), (x, x[mine]), optimizers, strict=True):
            optimizer.zero_grad()
            (model(rows) - rows).square().mean().backward()
            optimizer.step()

    def same(error: float = 1e-11) -> None:
        state = net.state_dict()
        for key, value in whole.state_dict().items():
            close(state[key], value, key, error)

    step()
    same()
    with pytest.raises(ValueError, match=r"group: got None for parameters on a mesh of several dimensions"):
        update_grid(net, x[mine])
    update_grid(whole, x, group="local")
    update_grid(net, x[mine], group=data.get_group())
    same()
    step()
    same()
    options: dict[str, Any] = {"optimizer": "adam", "steps": 3, "update_grid_at": [1], "lr": 0.01}
    trained = fit(net, (x[mine], x[mine].sin()), group=data.get_group(), **options).train_loss
    alone = fit(whole, (x, x.sin()), group="local", **options).train_loss
    torch.testing.assert_close(torch.tensor(trained), torch.tensor(alone), rtol=1e-9, atol=0)
    same(
        1e-7
    )  # Adam divides by the root of gradients that are next to nothing, whose rounding is then a step
    saved(net, case.folder / "two")
    if rank == 0:
        one = loaded(other_values(make()), case.folder / "two", alone=True)
        for key, value in whole.state_dict().items():
            close(one.state_dict()[key], value, key, 1e-7)
    dist.barrier()


@pytest.mark.long
@pytest.mark.parametrize("size", (2, 4))
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, on as many ranks."""
    ranks.start(__file__, tmp_path, size)


if __name__ == "__main__":
    case.serve()
