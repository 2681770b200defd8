"""ColwiseKAN and RowwiseKAN: layers over ranks, sequence parallel, compiled, made without memory, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import ranks
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.distributed import ColwiseKAN, RowwiseKAN
from sharded import F64, STYLES, close, draw, full, line, make

case = ranks.Cases()


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


def counted() -> Any:
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend("aot_eager")


@case.on(4)
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


@pytest.mark.parametrize("size", (2, pytest.param(4, marks=pytest.mark.long)))
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, on as many ranks."""
    ranks.start(__file__, tmp_path, size)


if __name__ == "__main__":
    case.serve()
