"""DTensor over our ops, parallel styles, FSDP2 beside them, checkpoints: what one process computes.

All in one group of ranks a world size: `python test_sharding.py FOLDER SIZE`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import ranks
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels import functional as F
from kan_kernels._core import fakes
from kan_kernels._engine import sharding
from kan_kernels.distributed import ColwiseKAN, RowwiseKAN
from kan_kernels.grids import refine, update_grid
from kan_kernels.training import fit

F64 = torch.float64
CASES: list[ranks.Case] = []
FOLDER = Path(".")


def case(function: ranks.Case) -> ranks.Case:
    CASES.append(function)
    return function


def on_four(function: ranks.Case) -> ranks.Case:
    """A case for the long group."""

    def run(rank: int, size: int) -> None:
        if size == 4:
            function(rank, size)

    run.__name__ = function.__name__
    return case(run)


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


def knots(features: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.linspace(-2, 2, 12, dtype=dtype).repeat(features, 1) + draw(features, 1).to(dtype) / 10


def samples(b: int, i: int, o: int, base: int) -> dict[str, tuple[Any, ...]]:
    """The arguments of every op that has rules."""
    x, w, g = draw(b, i), draw(i, 8, o), draw(b, o)
    wb = draw(i, o) if base else None
    bias, s, heads, grid = draw(o), draw(b, i, seed=5), draw(b, i, o), knots(i)
    numbers = 8, 3, base, 0, 0
    image, filters = draw(b, i, 5, 4), draw(i, 8, 3, 2, o)
    base_filters = draw(i, 3, 2, o) if base else None
    conv = 3, base, [1, 1], [1, 1, 0, 0], [1, 1], 1, False
    rbf = (draw(i), draw(i), draw(o, 8 * i), draw(o, i) if base else None)
    centres = torch.cat([torch.linspace(-2, 2, 8, dtype=F64), torch.tensor([0.5], dtype=F64)]).repeat(i, 1)
    band, border = torch.ops.kan_kernels.edge_gram(x, None, grid, 3, base)
    found: dict[str, tuple[Any, ...]] = {
        "kan_linear": (x, s, w, wb, bias, grid, *numbers),
        "kan_linear_grad_input": (x, w, wb, g, grid, *numbers),
        "kan_linear_grad_weight": (x, s, g, grid, *numbers, w),
        "kan_linear_backward": (x, w, wb, g, grid, *numbers),
        "kan_activation": (x, s, w, wb, grid, *numbers),
        "kan_activation_grad_input": (x, w, wb, heads, grid, *numbers),
        "kan_activation_grad_weight": (x, s, heads, grid, *numbers),
        "kan_activation_backward": (x, w, wb, heads, grid, *numbers),
        "kan_conv": (image, filters, base_filters, bias, grid, *conv),
        "edge_gram": (x, s, grid, 3, base),
        "edge_gram_grad_input": (x, s, grid, 3, base, band, border),
        "edge_cross_gram": (x, s, grid, 3, knots(i) * 1.5, 3),
        "edge_moments": (x, w, wb, grid, 3, base, 1),
        "edge_l1": (x, w, wb, grid, 3, base),
        "layer_norm_rbf": (x, *rbf, bias, centres, 1e-5, base),
        "layer_norm_rbf_backward": (x, *rbf, g, centres, 1e-5, base, True),
    }
    pictures = torch.ops.kan_kernels.kan_conv(*found["kan_conv"])
    moments = torch.ops.kan_kernels.edge_moments(*found["edge_moments"])[1:]
    for need_x, need_weight in ((True, True), (False, True), (True, False)):
        name = f" {need_x} {need_weight}"
        found["kan_conv_backward" + name] = (
            image, filters, base_filters, pictures.sin(), grid, *conv, need_x, need_weight
        )  # fmt: skip
        found["edge_moments_backward" + name] = (
            *found["edge_moments"], draw(i, o), draw(i, o, seed=4), *moments, need_x, need_weight
        )  # fmt: skip
        found["edge_l1_backward" + name] = (x, w, wb, draw(i, o), grid, 3, base, need_x, need_weight)
    return found


def lying(value: Any, placement: Any, mesh: DeviceMesh) -> Any:
    """A tensor on a mesh as one of the rules wants it."""
    if placement is None:
        return value
    if isinstance(placement, Partial):
        part = value if mesh.get_local_rank() == 0 else torch.zeros_like(value)
        return DTensor.from_local(part, mesh, [placement])
    return distribute_tensor(value, mesh, [placement])


@case
def rules(rank: int, size: int) -> None:
    """Every op, in every way that its rule accepts, also of sizes that ranks do not divide: the results lie
    as the rule says and are those of one process.
    """
    mesh, tried = line(size), dict.fromkeys(sharding._LINEAR | sharding._OTHERS, 0)
    for sizes in ((8, 4, 4, 1), (9, 5, 7, 0)):
        for sample, args in samples(*sizes).items():
            name = sample.partition(" ")[0]
            op = getattr(torch.ops.kan_kernels, name).default
            rule = (sharding._LINEAR | sharding._OTHERS)[name]
            want = op(*args)
            for results, given in sharding.placements(op, rule, *args):
                arguments = [lying(arg, at, mesh) for arg, at in zip(args, given, strict=True)]
                got = op(*arguments)
                got, wanted = (t if isinstance(t, tuple) else (t,) for t in (got, want))
                for one, true, at in zip(got, wanted, results, strict=True):
                    assert one.placements == (at,), (sample, given, one.placements)
                    close(one, true, (sample, given))
                tried[name] += 1
    assert all(tried.values())
    # none, rows, inputs, outputs; of two sets of sizes
    assert tried["kan_linear"] == tried["kan_linear_backward"] == tried["kan_activation"] == 8
    assert tried["edge_l1"] == tried["edge_gram"] == 6 and tried["layer_norm_rbf"] == 4


@case
def grouped_images(rank: int, size: int) -> None:
    """Channels in groups stay together; what DTensor cannot keep as it is given is gathered."""
    image, filters, grid = draw(8, 4, 5), draw(4, 8, 3, 4), knots(4)
    numbers = 3, 0, [1], [0, 0], [1], 2, False
    op = torch.ops.kan_kernels.kan_conv.default
    want = op(image, filters, None, None, grid, *numbers)
    for at in (Shard(0), Shard(1), Shard(2), Replicate()):
        mesh = line(size)
        whole = [distribute_tensor(t, mesh, [Replicate()]) for t in (filters, grid)]
        close(op(distribute_tensor(image, mesh, [at]), whole[0], None, None, whole[1], *numbers), want)


LAYOUTS: dict[str, tuple[Any, ...]] = {  # of x, spline_weight, base_weight, bias, grid
    "rows": (Shard(0), *[Replicate()] * 4),
    "inputs": (Shard(1), Shard(0), Shard(0), Replicate(), Shard(0)),
    "outputs": (Replicate(), Shard(2), Shard(1), Shard(0), Replicate()),
    "replicated": (Replicate(),) * 5,
    "as nobody would": (Shard(1), Shard(2), Shard(0), Shard(0), Shard(1)),
}


def derivatives(x: Tensor, w: Tensor, wb: Tensor, bias: Tensor, grid: Tensor) -> list[Tensor]:
    """A layer, its gradients, and theirs."""
    given = (x, w, wb, bias)
    y = F.kan_linear(x, w, grid, spline_order=3, base_weight=wb, bias=bias)
    first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), given[:3])
    return [y, *first, *second]


@case
def gradients(rank: int, size: int) -> None:
    """Forward, gradients and second derivatives of a layer on DTensors, however they lie."""
    values = draw(8, 4), draw(4, 8, 8), draw(4, 8), draw(8)
    want = derivatives(*[v.clone().requires_grad_() for v in values], knots(4))
    for name, layouts in LAYOUTS.items():
        mesh = line(size)
        *given, grid = (
            distribute_tensor(v, mesh, [at]) for v, at in zip((*values, knots(4)), layouts, strict=True)
        )
        for n, (got, true) in enumerate(
            zip(derivatives(*[t.requires_grad_() for t in given], grid), want, strict=True)
        ):
            close(got, true, (name, n))


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


def masked(net: KAN) -> KAN:
    for n, layer in enumerate(net.layers):
        layer.set_edge_mask((draw(layer.in_features, layer.out_features, seed=n) > -1).to(F64))
    return net


def grads(net: nn.Module, y: Tensor, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))


@case
def styles(rank: int, size: int) -> None:
    """`parallelize_module`: y and all gradients; what each rank holds; training; repr and state dict."""
    for change in (lambda net: net, masked):
        for name, style in STYLES.items():
            whole = change(make())
            net = parallelize_module(change(make()), line(size), style())
            for shape in ((6, 4), (2, 3, 4), (4,)):
                xs = [draw(*shape).requires_grad_() for _ in range(2)]
                ys = whole(xs[0]), net(xs[1])
                close(ys[1], ys[0], name)
                for got, want in zip(grads(net, ys[1], xs[1]), grads(whole, ys[0], xs[0]), strict=True):
                    close(got, want, name)
            assert "grid_range=(-1.0, 1.0)" in repr(net)
    net = parallelize_module(make(), line(size), STYLES["outputs, inputs"]())
    first, second = net.layers[0], net.layers[1]
    assert first.spline_weight.to_local().shape == (4, 8, 8 // size) and first.grid.to_local().shape == (
        4,
        12,
    )
    assert second.spline_weight.to_local().shape == (8 // size, 8, 12) and second.bias.to_local().shape == (
        12,
    )
    assert second.grid.to_local().shape == (8 // size, 12)
    whole, x = make(), draw(6, 4)
    for model in (whole, net):
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
    for key, value in whole.state_dict().items():
        close(net.state_dict()[key], value, key)


@case
def sequences(rank: int, size: int) -> None:
    """Sequence parallel: outside of the layers each rank has a part of the positions, as in layer norms."""

    def block() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.LayerNorm(4, dtype=F64), KANLinear(4, 8, dtype=F64), KANLinear(8, 4, bias=True, dtype=F64)
        )

    whole, mesh = block(), line(size)
    net = parallelize_module(
        block(),
        mesh,
        {
            "0": SequenceParallel(use_local_output=True),
            "1": ColwiseKAN(input_layouts=Shard(1)),
            "2": RowwiseKAN(output_layouts=Shard(1)),
        },
    )
    x = draw(3, 8, 4)
    xs = x.clone().requires_grad_(), x.chunk(size, 1)[rank].clone().requires_grad_()
    want, got = whole(xs[0]), net(xs[1])
    close(got, want.chunk(size, 1)[rank])
    want.square().sum().backward()
    got.square().sum().backward()
    close(xs[1].grad, xs[0].grad.chunk(size, 1)[rank])  # type: ignore[union-attr]
    for (name, true), one in zip(whole.named_parameters(), net.parameters(), strict=True):
        close(one.grad, true.grad, name)
    with pytest.raises(
        ValueError, match=r"output_layouts: S.* of a result of shape \(3, 7, 4\) for \d ranks"
    ):
        net[2](draw(3, 7, 8 // size))
    # a layer whose weights are on all ranks
    alone = parallelize_module(nn.Sequential(make((4, 8)).layers[0]), mesh, {"0": SequenceParallel()})
    close(alone(x.chunk(size, 1)[rank]), make((4, 8))(x))


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
    with pytest.raises(ValueError, match="model: its parameters are sharded over ranks"):
        refine(net, 10)


@case
def made_on_meta(rank: int, size: int) -> None:
    """A model that no rank could hold: made without memory, sharded, then given memory and first weights."""
    with torch.device("meta"):
        net = KAN([4, 8, 4], grid_range=(-2, 3), bias=True)
    net = parallelize_module(net, line(size), STYLES["outputs, inputs"]())
    net.to_empty(device="cpu")
    net.reset_parameters()
    assert net.layers[1].spline_weight.to_local().shape == (8 // size, 8, 4)
    for layer, whole in zip(net.layers, KAN([4, 8, 4], grid_range=(-2, 3)).layers, strict=True):
        assert torch.equal(full(layer.grid), whole.grid)
        assert 0 < full(layer.spline_weight).abs().max() < 1
    assert net(torch.zeros(5, 4)).isfinite().all()


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


@case
def checkpoints(rank: int, size: int) -> None:
    """torch.distributed.checkpoint over world sizes 4 -> 2 -> 1 -> all, between styles; of another model, an
    error that names the tensor.
    """
    x, whole = draw(40, 4) * 2, make()
    update_grid(whole, x, group="local")
    net = parallelize_module(make(), line(size), STYLES["all"]())
    update_grid(net, x)
    saved(net, FOLDER / f"all{size}")
    half = dist.new_group(list(range(size // 2)))
    if rank < size // 2:
        # of the group that all ranks made: one that some make alone puts later groups out of step
        small = DeviceMesh.from_group(half, "cpu", mesh_dim_names=("model",))
        net = loaded(
            parallelize_module(other_values(make()), small, STYLES["outputs, inputs"]()),
            FOLDER / f"all{size}",
            half,
        )
        assert net.layers[0].grid_range == whole.layers[0].grid_range
        saved(net, FOLDER / f"half{size}", half)
    dist.barrier()
    if rank == 0:
        alone = loaded(other_values(make()), FOLDER / f"half{size}", alone=True)
        for key, value in whole.state_dict().items():
            assert torch.equal(alone.state_dict()[key], value), key
        saved(alone, FOLDER / f"one{size}", alone=True)
    dist.barrier()
    net = parallelize_module(other_values(make()), line(size), STYLES["outputs, outputs"]())
    for key, value in loaded(net, FOLDER / f"one{size}").state_dict().items():
        assert torch.equal(full(value), whole.state_dict()[key]), key
    for wrong in (make((4, 16, 12, 4)), make(grid_size=7)):
        net = parallelize_module(wrong, line(size), {"layers.0": ColwiseKAN()})
        before = full(net.layers[0].spline_weight).clone()
        with pytest.raises(
            CheckpointException, match=r"Size mismatch between saved .* for model\.layers\.0\."
        ):
            loaded(net, FOLDER / f"one{size}")
        assert torch.equal(full(net.layers[0].spline_weight), before)
    with pytest.raises(CheckpointException, match=r"Missing key.* model\.layers\.3\."):
        loaded(parallelize_module(make((4, 8, 12, 4, 4)), line(size), {}), FOLDER / f"one{size}")


@case
def refusals(rank: int, size: int) -> None:
    """What cannot be sharded says so, naming it, and stays as it was."""
    mesh = line(size)

    def refused(model: nn.Module, style: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            parallelize_module(model, mesh, style)
        assert not any(isinstance(value, DTensor) for value in model.state_dict().values())

    odd = make((4, 9, 5))
    refused(
        odd, {"layers.0": ColwiseKAN()}, ValueError, rf"KANLinear\(4, 9, .* has 9 outputs for {size} ranks"
    )
    refused(
        odd, {"layers.1": RowwiseKAN()}, ValueError, rf"KANLinear\(9, 5, .* has 9 inputs for {size} ranks"
    )
    refused(make(), RowwiseKAN(), TypeError, r"RowwiseKAN: got KAN, expected a KANLinear; name the layers")
    refused(nn.Linear(4, 4), ColwiseKAN(), TypeError, "ColwiseKAN: got Linear, expected a KANLinear")
    formula = make((4, 4)).layers[0]
    symbolic.fix(formula, 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    refused(formula, ColwiseKAN(), ValueError, "ColwiseKAN: KANLinear.* has symbolic edges")
    normed = make((4, 4)).layers[0]
    nn.utils.parametrizations.weight_norm(normed, "spline_weight")
    refused(normed, ColwiseKAN(), ValueError, "ColwiseKAN: spline_weight of .* is parametrized")
    with pytest.raises(TypeError, match="output_layouts: got 'rows', expected Replicate"):
        ColwiseKAN(output_layouts="rows")  # type: ignore[arg-type]
    net = parallelize_module(make(), mesh, STYLES["outputs, inputs"]())
    with pytest.raises(ValueError, match=r"x: got shape .*expected \(\.\.\., 8\)"):
        net.layers[1](draw(6, 8))  # whole rows, where parts belong
    products = KAN([4, (2, 3), 4], mult_arity=2, dtype=F64)
    parts = parallelize_module(products, mesh, {"layers.0": ColwiseKAN(), "layers.1": ColwiseKAN()})
    with pytest.raises(ValueError, match=rf"y: got shape \(6, {8 // size}\), expected \(\.\.\., 8\)"):
        parts(draw(6, 4))


@on_four
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
    saved(net, FOLDER / "two")
    if rank == 0:
        one = loaded(other_values(make()), FOLDER / "two", alone=True)
        for key, value in whole.state_dict().items():
            close(one.state_dict()[key], value, key, 1e-7)
    dist.barrier()


def counted() -> Any:
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend("aot_eager")


@on_four
def compiled(rank: int, size: int) -> None:
    """Compiled: no graph break and no recompilation over five batch sizes, under a style and under FSDP2.

    None has fewer rows than there are ranks, for which DTensor makes another graph, of nn.Linear too. The
    first is no width of the model: the compiler takes equal sizes for the same.
    """
    torch._dynamo.reset()
    whole, count = make(), counted()
    net = parallelize_module(make(), line(size), STYLES["outputs, inputs"]())
    step = torch.compile(net, backend=count, fullgraph=True, dynamic=True)
    for rows in (9, 5, 16, 6, 11):
        x = draw(rows, 4)
        close(step(x), whole(x))
        for got, want in zip(
            torch.autograd.grad(step(x).square().sum(), list(net.parameters())),
            torch.autograd.grad(whole(x).square().sum(), list(whole.parameters())),
            strict=True,
        ):
            close(got, want)
    assert count.frame_count == 1, count.frame_count
    torch._dynamo.reset()
    count, net = counted(), make()
    for layer in net.layers:
        layer.compile(
            backend=count, fullgraph=True, dynamic=True
        )  # as FSDP2 wants it: its hooks stay outside
        fully_shard(layer)
    fully_shard(net)
    for rows in (9, 5, 16, 6, 11):
        x = draw(rows, 4)
        close(net(x), whole(x))
        net(x).square().sum().backward()
    assert count.frame_count <= len(net.layers), count.frame_count


def test_every_op_has_a_rule() -> None:
    """All that return tensors, but for networks, which are called layer by layer."""
    ruled = set(sharding._LINEAR) | set(sharding._OTHERS)
    assert ruled | {"kan_network", "kan_network_backward"} == {
        *fakes.LINEAR,
        *fakes.ACTIVATION,
        *fakes.OTHERS,
    }


@pytest.mark.parametrize("size", (2, pytest.param(4, marks=pytest.mark.long)))
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, on as many ranks."""
    ranks.start(__file__, tmp_path, size)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    chosen = [one for one in CASES if not sys.argv[3:] or one.__name__ in sys.argv[3:]]
    ranks.serve(sys.argv[1], int(sys.argv[2]), chosen)
