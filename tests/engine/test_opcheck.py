"""torch.library.opcheck in full, of every op: schema, fake kernel, autograd, AOT with dynamic shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import FUSED
from kan_kernels._core import fakes
from op_samples import samples

pytestmark = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
SAMPLES: dict[str, tuple[Any, ...]] = {}
if "native" in FUSED:
    SAMPLES = samples(5, 3, 4, 1)
    SAMPLES |= {f"{name} without base": args for name, args in samples(6, 2, 3, 0).items()}


def test_every_op_is_here() -> None:
    """But for networks, which tests/nn/test_network_ops.py checks."""
    ops = {name.partition(" ")[0] for name in SAMPLES}
    networks = {"kan_network", "kan_network_backward", "kan_network_error"}
    assert ops | networks == {*fakes.LINEAR, *fakes.ACTIVATION, *fakes.OTHERS}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n.endswith("without base") else ()) for n in SAMPLES]
)
@pytest.mark.parametrize("grad", [pytest.param(False, marks=pytest.mark.long), True])
def test_opcheck(name: str, grad: bool) -> None:
    """Of plain tensors, and of an x that needs a gradient where the op has one."""
    op = getattr(torch.ops.kan_kernels, name.partition(" ")[0]).default
    args: list[Any] = [a.clone() if isinstance(a, Tensor) else a for a in SAMPLES[name]]
    if grad:
        args[0].requires_grad_()
    torch.library.opcheck(op, tuple(args))
