"""Grids, pruning and formulas where several ranks of a process group hold replicas of a model.

Real gloo processes, which this file starts: `python test_replicas.py FOLDER`.
"""

from __future__ import annotations

import copy
import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness import ROOT
from kan_kernels import KAN, KANFeedForward
from kan_kernels.grids import refine, update_grid

F64 = torch.float64
CASES: dict[str, Callable[[int, int], None]] = {}
SPLITS = {"even": (10, 30), "uneven": (3, 37), "one has none": (0, 40), "the last has none": (40, 0)}


def case(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    CASES[function.__name__] = function
    return function


def model() -> KAN:
    torch.manual_seed(0)
    net = KAN([3, 4, 2], dtype=F64, bias=True)
    for layer in net.layers:
        nn.init.normal_(layer.spline_weight)
    return net


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(40, 3, generator=generator, dtype=F64)
    return torch.cat([x[:10] * 0.3, x[10:] + 1])  # the ranks see other distributions


def part(x: Tensor, rank: int, split: str = "even", size: int = 2) -> Tensor:
    return x if size == 1 else x.split(SPLITS[split])[rank]


def states(net: nn.Module) -> list[dict[str, Tensor]]:
    """The state dict of every rank."""
    own = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in net.state_dict().items()}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return every


def equal(net: nn.Module, want: nn.Module) -> None:
    """Every rank has the values of `want`, to the last bit."""
    for state in states(net):
        assert state.keys() == want.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in want.state_dict().items())


@case
def grids(rank: int, size: int) -> None:
    """One process with all rows, and ranks with a part each, even none: the same bits."""
    for split in SPLITS:
        for change in (
            lambda net, x, **o: update_grid(net, x, grid_eps=0.3, **o),
            lambda net, x, **o: refine(net, 7, x, **o),
            lambda net, x, **o: refine(net, 10, x, **o),
        ):
            whole, net = model(), model()
            change(whole, rows(), group="local")
            change(net, part(rows(), rank, split, size), group=dist.group.WORLD)
            equal(net, whole)


@case
def any_module(rank: int, size: int) -> None:
    """Layers anywhere in a module: replicas with the same bits, and what one process with all rows finds."""

    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 6, dtype=F64), KANFeedForward(6, 8, 2, dtype=F64))

    for split in SPLITS:
        whole, net = make(), make()
        update_grid(whole, rows(), group="local")
        update_grid(net, part(rows(), rank, split, size), group=dist.group.WORLD)
        for state in states(net):
            for name, value in whole.state_dict().items():
                assert torch.equal(state[name], net.state_dict()[name])
                # products of fewer rows may be rounded otherwise
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)


@case
def parallel(rank: int, size: int) -> None:
    """DistributedDataParallel brings its group; replicas stay equal through training after the update."""
    whole = model()
    update_grid(whole, rows(), group="local")
    net = DistributedDataParallel(model())
    net(part(rows(), rank, size=size)).square().mean().backward()
    net.zero_grad()
    update_grid(net, part(rows(), rank, size=size))
    equal(net.module, whole)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(part(rows(), rank, size=size)).square().mean().backward()
        optimizer.step()
    first = states(net.module)[0]
    assert all(torch.equal(first[k], v) for state in states(net.module) for k, v in state.items())
    if size > 1:
        with pytest.raises(ValueError, match="group: got 'local' for a model that is spread"):
            update_grid(net, part(rows(), rank), group="local")
    with pytest.raises(TypeError, match="model: got DistributedDataParallel"):
        refine(net, 7, rows())


@case
def sharded(rank: int, size: int) -> None:
    """fully_shard: every rank's part is that of the whole; what needs whole parameters says so."""
    from torch.distributed.fsdp import fully_shard

    from kan_kernels import symbolic
    from kan_kernels.pruning import prune
    from kan_kernels.training import fit

    whole, x = model(), part(rows(), rank, size=size)
    update_grid(whole, rows(), group="local")
    for each_layer in (False, True):
        net = model()
        for layer in net.layers if each_layer else ():
            fully_shard(layer)
        fully_shard(net)
        net(x)  # leaves whole parameters behind, whose values are lost
        update_grid(net, x)
        equal(net, whole)
        torch.testing.assert_close(net(x), whole(x), rtol=0, atol=0)
        net(x).square().sum().backward()
        options: dict[str, Any] = {"steps": 3, "update_grid_at": [1], "evaluate_every": 1}
        history = fit(net, (x, x[:, :2].sin()), optimizer="adam", **options)
        every: list[Any] = [None] * size
        dist.all_gather_object(every, history.train_loss)
        assert all(one == every[0] for one in every) and history.train_loss[-1] < history.train_loss[0]
        if size > 1:
            with pytest.raises(ValueError, match="optimizer: LBFGS follows"):
                fit(net, (x, x[:, :2].sin()), **options)
            with pytest.raises(ValueError, match="checkpoint: holds whole models"):
                fit(net, (x, x[:, :2].sin()), optimizer="adam", checkpoint="never.pt", **options)
        if size > 1:
            with pytest.raises(ValueError, match="group: got 'local' for a model that is spread"):
                update_grid(net, x, group="local")
        with pytest.raises(ValueError, match="model: fully_shard holds its parameters"):
            refine(net, 10)
        for call in (
            lambda net=net: prune(net, x),
            lambda net=net: symbolic.auto(net, x),
        ):
            with pytest.raises(
                ValueError,
                match=r"model: its parameters are sharded over ranks \(fully_shard, parallelize_module\)",
            ):
                call()


@case
def refusals(rank: int, size: int) -> None:
    """Nobody said which ranks hold replicas, or they are none, or one has bad rows: all raise, none hangs,
    and models stay as they were.
    """
    net, x = model(), part(rows(), rank, size=size)
    if size == 1:
        update_grid(net, x)
        refine(net, 7, x)
        return
    before = copy.deepcopy(net)
    for call in (lambda: update_grid(net, x), lambda: refine(net, 7, x)):
        with pytest.raises(
            ValueError, match="group: got None beside 2 running ranks, expected the process group"
        ):
            call()
    refine(copy.deepcopy(net), 10, x)  # knot insertion looks at no data
    bad = x.clone()
    bad[0, 0] = torch.nan if rank == 1 else bad[0, 0]
    with pytest.raises(ValueError, match="x: sample 10 of feature 0 is not finite"):
        update_grid(net, bad, group=dist.group.WORLD)
    with pytest.raises((TypeError, ValueError), match="on rank 1"):
        update_grid(net, x if rank == 0 else x[:, :2], group=dist.group.WORLD)
    with pytest.raises(TypeError, match="x: got list on rank 1"):
        update_grid(net, x if rank == 0 else [1.0], group=dist.group.WORLD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank 1 of the group asks for"):
        update_grid(net, x, margin=0.1 * rank, group=dist.group.WORLD)
    with pytest.raises(ValueError, match="x: got no samples"):
        update_grid(net, x[:0], group=dist.group.WORLD)
    equal(net, before)
    other = model()
    with torch.no_grad():
        other.layers[1].bias += rank
    with pytest.raises(ValueError, match="model: rank 1 of the group has other values than rank 0"):
        update_grid(other, x, group=dist.group.WORLD)
    alone = model()
    update_grid(other if rank else alone, x, group="local")  # a search over ranks goes its own ways
    mine = dist.new_group([0]), dist.new_group([1])
    single = model()
    update_grid(single, part(rows(), 0), group=mine[0]) if rank == 0 else None
    with pytest.raises((TypeError, ValueError), match="group: "):
        update_grid(net, x, group=mine[1 - rank])


@case
def smaller_and_symbolic(rank: int, size: int) -> None:
    """prune, auto, fix and polish with a group: the model that one process with all rows gets, on every rank;
    without one, nobody guesses.
    """
    from kan_kernels import symbolic
    from kan_kernels.pruning import prune, prune_inputs

    x, world = part(rows(), rank, size=size), dist.group.WORLD
    y = rows()[:, :2].sin()

    def fixed(net: KAN) -> KAN:
        symbolic.fix(net.layers[1], 0, 0, "sin", params=(1.0, 0.1, 0.5, 0.0))
        return net

    actions: list[Any] = [
        lambda net, x, y, **o: prune(net, x, edge_threshold=0.3, **o)[0],
        lambda net, x, y, **o: prune_inputs(net, x, threshold=0.6, kind="l1", **o)[0],
        lambda net, x, y, **o: symbolic.fix(net.layers[0], 0, 0, "sin", x, **o),
        lambda net, x, y, **o: symbolic.auto(net, x, library=["x", "sin"], r2_threshold=0.0, **o),
        lambda net, x, y, **o: symbolic.polish(fixed(net), x, y, steps=2, **o),
    ]
    for action in actions:
        whole, net = model(), model()
        want = action(whole, rows(), y, group="local")
        got = action(net, x, part(y, rank, size=size), group=world)
        equal(got if isinstance(got, nn.Module) else net, want if isinstance(want, nn.Module) else whole)
        if not isinstance(want, nn.Module):
            assert str(got) == str(want)
        if size > 1:
            with pytest.raises(ValueError, match="group: got None beside 2 running ranks"):
                action(model(), x, part(y, rank))


@case
def classes(rank: int, size: int) -> None:
    """polish and auto with a loss of classes, a number for each row, and with no rows on a rank."""
    from kan_kernels import symbolic

    label = (rows()[:, 0] > 0.5).long()
    options: dict[str, Any] = {"loss": nn.functional.cross_entropy}

    def polished(net: KAN, x: Tensor, y: Tensor, **more: Any) -> Any:
        symbolic.fix(net.layers[1], 0, 0, "sin", params=(1.0, 0.1, 0.5, 0.0))
        return symbolic.polish(net, x, y, steps=2, **options, **more)

    def automatic(net: KAN, x: Tensor, y: Tensor, **more: Any) -> Any:
        return symbolic.auto(net, x, y, library=["x", "sin"], r2_threshold=0.0, **options, **more)

    for action in (polished, automatic):
        whole = model()
        want = action(whole, rows(), label, group="local")
        for split in SPLITS if size > 1 else ("even",):
            net = model()
            own = part(rows(), rank, split, size), part(label, rank, split, size)
            got = action(net, *own, group=dist.group.WORLD)
            equal(net, whole)
            assert str(got) == str(want)


@case
def training(rank: int, size: int) -> None:
    """fit in a DistributedDataParallel: grid updates on all rows, the same history on every rank, and all
    stop together where one rank's loss is NaN. What ranks cannot do alike is refused.
    """
    from kan_kernels.training import fit

    x = part(rows(), rank, size=size)
    data = x, x[:, :2].sin()
    options: dict[str, Any] = {"optimizer": "adam", "steps": 6, "update_grid_at": [2], "evaluate_every": 2}
    net = DistributedDataParallel(model())
    history = fit(net, data, patience=9, **options)
    every: list[Any] = [None] * size
    dist.all_gather_object(every, (history.train_loss, history.events))
    assert all(one == every[0] for one in every) and history.events == [{"step": 2, "kind": "grid_update"}]
    first = states(net)[0]
    assert all(torch.equal(first[k], v) for state in states(net) for k, v in state.items())
    assert not torch.equal(net.module.layers[0].grid, model().layers[0].grid)
    calls = 0

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        value = (prediction - y).square().mean()
        return value * torch.nan if calls > 3 and rank == size - 1 else value

    with pytest.warns(RuntimeWarning, match="training diverged"):
        history = fit(DistributedDataParallel(model()), data, loss=loss, **options)
    assert history.stopped == "diverged" and history.events[-1]["restored"] == 2
    with pytest.raises(ValueError, match="refine_at: replaces parameters"):
        fit(net, data, **{**options, "refine_at": {1: 10}})
    if size == 1:
        return
    with pytest.raises(ValueError, match="optimizer: LBFGS follows the loss of each rank"):
        fit(net, data, **{**options, "optimizer": "lbfgs"})
    with pytest.raises(ValueError, match="group: got None beside 2 running ranks"):
        fit(model(), data, **options)
    fit(model(), data, group="local", **options)
    fit(model(), data, **{**options, "update_grid_at": []})  # a model of this rank, which nobody else sees


def run(name: str, folder: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=size, timeout=wait
    )
    CASES[name](rank, size)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", (pytest.param(1, marks=pytest.mark.long), 2))
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, each with a process group of its own, in as many processes."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent / "support")])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path, "RANK": str(rank), "WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output


if __name__ == "__main__":
    for name in CASES:
        print(name, flush=True)
        run(name, sys.argv[1])
