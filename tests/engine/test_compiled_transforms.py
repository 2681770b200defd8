"""torch.func inside of a function under torch.compile: eager's numbers, and no silent zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

from kan_kernels import KAN, KANConv1d, KANLinear

F64 = torch.float64
torch.manual_seed(0)
NET = KAN([2, 5, 1], dtype=F64)
LAYER = KANLinear(2, 3, dtype=F64)
CONV = KANConv1d(2, 3, 2, dtype=F64)
PARAMETERS = {name: value.detach() for name, value in NET.named_parameters()}


def laplacian(x: Tensor) -> Tensor:
    return vmap(lambda v: torch.diagonal(jacrev(jacrev(lambda w: NET(w)[0]))(v)).sum())(x)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "grad": lambda x: grad(lambda v: NET(v).square().sum())(x),
    "grad of parameters": lambda x: grad(lambda p: functional_call(NET, p, (x,)).square().sum())(PARAMETERS),
    "vmap": lambda x: vmap(lambda v: NET(v))(x),
    "jacrev": lambda x: vmap(jacrev(NET))(x),
    "jvp": lambda x: jvp(NET, (x,), (torch.ones_like(x),))[1],
    "jvp of a layer": lambda x: jvp(LAYER, (x,), (x.cos(),))[1],
    "jvp of a convolution": lambda x: jvp(CONV, (x.T[None],), (x.T[None].cos(),))[1],
    "laplacian": laplacian,
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_eager(name: str) -> None:
    x = torch.randn(7, 2, dtype=F64)
    function = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


def test_jvp_is_not_zero() -> None:
    """The op in a graph has no tangent, so it must not be there."""
    x = torch.randn(4, 2, dtype=F64)
    compiled = torch.compile(FUNCTIONS["jvp of a layer"], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), FUNCTIONS["jvp of a layer"](x))
