"""Training of several ranks against one process that has all rows: fit under DDP, FSDP2 in one dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ranks
from kan_kernels import KAN
from kan_kernels.grids import refine, update_grid
from kan_kernels.training import fit
from sharded import close, draw, make

case = ranks.Cases()
# Adam divides gradients by their size, so that rounding in their means grows: to 1e-9 after some steps
GROWN = 1e-9
# and a fit of coefficients to rows divides by the smallest part of them that tells two apart
FITTED = 1e-7


def data(rank: int, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return all rows, and those of a rank: equal shares, whose mean gradient is the whole's."""
    x = draw(400, 4)
    y = x.sin() * x.flip(1)
    own = slice(rank * 400 // size, (rank + 1) * 400 // size)
    return (x, y), (x[own], y[own])


def same(net: nn.Module, whole: nn.Module, error: float = GROWN) -> None:
    """The state of one process, and the same bits on every rank."""
    state = net.state_dict()
    for key, value in whole.state_dict().items():
        close(state[key], value, key, error)
        first = [state[key].clone() if dist.get_rank() == 0 else torch.empty_like(state[key])]
        if not hasattr(state[key], "full_tensor"):
            dist.broadcast(first[0], 0)
            assert torch.equal(first[0], state[key]), key


@case
def fit_in_parallel(rank: int, size: int) -> None:
    """The losses and the model of one process, with knots that move on the way, by Adam and by SGD."""
    every, own = data(rank, size)
    for optimizer in ("adam", lambda parameters: torch.optim.SGD(parameters, 0.01)):
        for changes in ({}, {"update_grid_at": [2, 4]}):
            whole, net = make(), make()
            options: dict[str, Any] = {"optimizer": optimizer, "steps": 6, "evaluate_every": 1, **changes}
            alone = fit(whole, every, group="local", **options)
            together = fit(DistributedDataParallel(net), own, **options)
            got, want = (torch.tensor(history.train_loss) for history in (together, alone))
            torch.testing.assert_close(got, want, rtol=GROWN, atol=0)
            assert together.evaluated == alone.evaluated
            assert want[-1] < want[0], (changes, want)
            same(net, whole)


@case
def compiled_in_parallel(rank: int, size: int) -> None:
    """A compiled DistributedDataParallel, and a module around one, are no models of one rank alone."""
    _, own = data(rank, size)
    own = own[0] + rank, own[1]  # whose losses differ
    options: dict[str, Any] = {"optimizer": "adam", "lr": 0.1, "steps": 8, "evaluate_every": 1}
    wrapped = DistributedDataParallel(make())
    net = torch.compile(wrapped, backend="eager")
    history = fit(net, own, patience=5, **options)
    every: list[Any] = [None] * size
    dist.all_gather_object(every, history.train_loss)
    assert all(losses == every[0] for losses in every)
    same(wrapped.module, wrapped.module, 0.0)
    around = nn.Sequential(DistributedDataParallel(make()))
    if size > 1:
        with pytest.raises(ValueError, match="LBFGS"):
            fit(net, own, steps=1)
        with pytest.raises(ValueError, match="group: got None"):
            fit(around, own, **options)
        with pytest.raises(ValueError, match="LBFGS"):
            fit(around, own, steps=1, group=dist.group.WORLD)
        fit(around, own, group=dist.group.WORLD, **options)
        same(around[0].module, around[0].module, 0.0)


@case
def refine_between(rank: int, size: int) -> None:
    """A model leaves its DistributedDataParallel, is refined on all rows, and is wrapped anew."""
    every, own = data(rank, size)
    whole, model = make(), make()
    options: dict[str, Any] = {"optimizer": "adam", "steps": 3, "evaluate_every": 1}
    fit(whole, every, group="local", **options)
    first = DistributedDataParallel(model)
    fit(first, own, **options)
    before = model.layers[0].spline_weight
    for new_size, new, old in ((10, own[0], every[0]), (13, own[0], every[0])):
        refine(first.module, new_size, new, group=dist.group.WORLD)
        refine(whole, new_size, old, group="local")
    assert first.module.layers[0].spline_weight is not before  # what `first` sends no longer is the model's
    for key, value in whole.state_dict().items():
        close(model.state_dict()[key], value, key, FITTED)
    again = DistributedDataParallel(first.module)
    got = fit(again, own, **options).train_loss
    want = fit(whole, every, group="local", **options).train_loss
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=FITTED, atol=0)
    same(model, whole, FITTED)


@case
def fully_sharded(rank: int, size: int) -> None:
    """FSDP2 along one dimension: gradients of every parameter, then steps of two optimizers."""
    every, own = data(rank, size)
    for each_layer in (False, True):
        for optimizer in (torch.optim.SGD, torch.optim.Adam):
            whole, net = make(), make()
            for layer in net.layers if each_layer else ():
                fully_shard(layer)
            fully_shard(net)
            steps = [optimizer(m.parameters(), 0.05) for m in (whole, net)]
            for _ in range(3):
                for model, (x, y), step in ((whole, every, steps[0]), (net, own, steps[1])):
                    step.zero_grad()
                    (model(x) - y).square().mean().backward()
                for (name, got), want in zip(net.named_parameters(), whole.parameters(), strict=True):
                    close(got.grad, want.grad, name, GROWN)
                for step in steps:
                    step.step()
            same(net, whole)
    with pytest.raises(ValueError, match="lamb: the penalty is of whole weights"):
        fit(net, own, optimizer="adam", steps=1, lamb=0.1)
    with pytest.raises(ValueError, match="mask: the layer is sharded over ranks"):
        net.layers[0].set_edge_mask(torch.ones(4, net.layers[0].out_features))


@case
def twice_in_a_sharded_model(rank: int, size: int) -> None:
    """A layer that is there twice is fitted to all that it gets; hooks are not passed over."""
    nets = [KAN([3, 3, 3], dtype=torch.float64) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        net.layers[1] = net.layers[0]
    x = draw(200, 3)
    dist.broadcast(nets[0].layers[0].spline_weight.detach(), 0)
    nets[1].layers[0].load_state_dict(nets[0].layers[0].state_dict())
    fully_shard(nets[1])
    update_grid(nets[0], x, group="local")
    update_grid(nets[1], x[rank * 200 // size : (rank + 1) * 200 // size])
    for key, value in nets[0].layers[0].state_dict().items():
        close(nets[1].layers[0].state_dict()[key], value, key, FITTED)
    nets[1].register_forward_pre_hook(lambda _, x: (x[0] / 10,))
    with pytest.raises(ValueError, match="it has hooks"):
        update_grid(nets[1], x)


@pytest.mark.long
@pytest.mark.parametrize("size", (1, 2, 4))
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, on as many ranks."""
    ranks.start(__file__, tmp_path, size)


if __name__ == "__main__":
    case.serve()
