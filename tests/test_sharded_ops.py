"""DTensor over our ops: however their tensors lie on the ranks, the results are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import ranks
from kan_kernels import functional as F
from kan_kernels._core import fakes
from kan_kernels._engine import sharding
from kan_kernels.backends import BACKENDS
from op_samples import knots, samples
from sharded import close, draw, line

case = ranks.Cases()


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
    mesh, tried = line(size), dict.fromkeys(sharding.RULES, 0)
    for sizes in ((8, 4, 4, 1), (9, 5, 7, 0)):
        for sample, args in samples(*sizes).items():
            name = sample.partition(" ")[0]
            op = getattr(torch.ops.kan_kernels, name).default
            rule = sharding.RULES[name]
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


def tensor_ops(namespace: str) -> set[str]:
    """The ops of a namespace that return tensors."""
    every = [name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()]
    ops = {name.partition("::")[2] for name in every if name.startswith(f"{namespace}::")}
    overloads = {name: getattr(getattr(torch.ops, namespace), name).default for name in ops}
    return {n for n, op in overloads.items() if any("Tensor" in str(r.type) for r in op._schema.returns)}


@pytest.mark.parametrize("name", [name for name, module in BACKENDS.items() if module.NAMESPACE is not None])
def test_every_op_has_a_rule(name: str) -> None:
    """DTensor knows all that return tensors, in every namespace, but for networks, called layer by layer, and
    for what LBFGS does with plain vectors.
    """
    namespace = BACKENDS[name].NAMESPACE
    ops, known = tensor_ops(namespace), DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
    assert {*fakes.LINEAR, *fakes.ACTIVATION} <= ops
    without = {op for op in ops if getattr(getattr(torch.ops, namespace), op).default not in known}
    of_networks = {"kan_network", "kan_network_backward", "kan_network_error", "kan_network_lbfgs"}
    assert without == ({*of_networks, "lbfgs_direction"} if name == "native" else set())


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.long) for n in (2, 4)])
def test_ranks(size: int, tmp_path: Path) -> None:
    """All cases, on as many ranks."""
    ranks.start(__file__, tmp_path, size)


if __name__ == "__main__":
    case.serve()
