"""DTensor over Triton's ops, in Triton's interpreter: every way of the rules gives what the op gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from harness import FUSED, INTERPRETED
from kan_kernels._core import fakes
from kan_kernels._engine import sharding
from op_samples import samples
from sharded import line

pytestmark = pytest.mark.skipif(
    not (INTERPRETED and "triton" in FUSED),
    reason="needs TRITON_INTERPRET=1 and triton in KAN_TEST_BACKENDS: `make interpret` runs it",
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """One rank: the kernels of more are those of the library's tests, which know how to start them."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield line(1)
    dist.destroy_process_group()


@pytest.mark.parametrize("name", [*fakes.LINEAR, *fakes.ACTIVATION])
def test_rules(name: str, mesh: DeviceMesh) -> None:
    """Results lie as the rule says, and are those of plain tensors."""
    args = samples(4, 3, 2, 1)[name]
    op = getattr(torch.ops.kan_kernels_triton, name).default
    want = op(*args)
    ways = sharding.placements(op, sharding.RULES[name], *args)
    assert len(ways) == 4  # none, rows, inputs, outputs
    for results, given in ways:
        arguments = [
            DTensor.from_local(arg, mesh, [at]) if isinstance(arg, Tensor) else arg
            for arg, at in zip(args, given, strict=True)
        ]
        got = op(*arguments)
        got, wanted = (t if isinstance(t, tuple) else (t,) for t in (got, want))
        for one, true, at in zip(got, wanted, results, strict=True):
            assert one.placements == (at,), (given, one.placements)
            torch.testing.assert_close(one.full_tensor(), true, rtol=0, atol=0)
