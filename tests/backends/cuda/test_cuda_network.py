"""Small networks in one CUDA launch, on the CPU: against the layers, and what a launch does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cuda_host
from cuda_host import networks, sanitize
from cuda_host.networks import (
    CASES,
    PRODUCTS,
    check,
    check_products,
    check_special,
    emulated,
    make,
    names,
    products_of,
    tensors_of,
)
from harness import threads
from kan_kernels._core import library
from kan_kernels._engine import cost_model

SPECIAL = [*CASES[:4], *PRODUCTS[:4]]
pytestmark = pytest.mark.skipif(cuda_host.why_not() is not None, reason=str(cuda_host.why_not()))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_numbers(case: dict[str, Any]) -> None:
    """y and all gradients, in one launch each, whatever the order of the threads: the same bits."""
    net, x, g = make(case)
    before = cuda_host.library().kan_cuda_host_launches()
    rising = emulated(net, x, g)
    assert cuda_host.library().kan_cuda_host_launches() == before + 2
    check(net, x, g, rising)
    with cuda_host.options(mode="falling"):
        falling = emulated(net, x, g)
    for a, b in zip(rising, falling, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", SPECIAL, ids=names(SPECIAL))
def test_nan_and_infinities(case: dict[str, Any]) -> None:
    """They reach what they reach layer by layer."""
    check_special(case)


@pytest.mark.parametrize("case", PRODUCTS, ids=names(PRODUCTS))
def test_products_layer_by_layer(case: dict[str, Any]) -> None:
    """The kernels that multiply between two launches are torch's products to the bit, and their gradients."""
    check_products(case)


def test_many_rows() -> None:
    """More tiles than blocks that the last one adds up: a block takes several."""
    example = make({"widths": [1, 1], "batch": 16 * 512 + 100})
    check(*example, emulated(*example))


def test_only_what_is_asked_for() -> None:
    """dx alone, and the weights' gradients alone, are those of both."""
    net, x, g = make(CASES[1])
    layers, products = tensors_of(net), products_of(net)
    _, hidden = networks.forward(layers, 3, 1, x, products)
    dx, made = networks.backward(layers, 3, 1, x, hidden, g, products)
    alone, nothing = networks.backward(layers, 3, 1, x, hidden, g, products, need_weight=False)
    none, weights = networks.backward(layers, 3, 1, x, hidden, g, products, need_x=False)
    assert none is None and not nothing and torch.equal(alone, dx)
    for a, b in zip(made, weights, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"widths": [1] * 10, "batch": 5}, "more than 8 layers"),
        ({"widths": [2, 65, 1], "batch": 5}, "wider than 64"),
        ({"widths": [64, 64, 64], "batch": 5}, "do not fit"),
        ({"widths": [60, 60, 2], "batch": 9000}, "matrix units"),
        ({"widths": [2, 5, 1], "batch": 0}, "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_launch_does_not_serve(case: dict[str, Any], reason: str) -> None:
    """A reason, and nothing is launched."""
    net, x, _ = make(case)
    before = cuda_host.library().kan_cuda_host_launches()
    with pytest.raises(RuntimeError, match=reason):
        networks.forward(tensors_of(net), 3, 1, x, products_of(net))
    with cuda_host.options(path="gather"), pytest.raises(RuntimeError, match="another path"):
        networks.forward(tensors_of(net), 3, 1, x, products_of(net))
    assert cuda_host.library().kan_cuda_host_launches() == before


@pytest.mark.long
@pytest.mark.parametrize("kind", ("address", "thread"))
def test_sanitizers(kind: str) -> None:
    """With operating-system threads for its own, under ASan and UBSan, and under TSan."""
    made = [make(case) for case in CASES[1:] if case["batch"] <= 400]
    got = sanitize.replayed(kind, lambda: [emulated(*example) for example in made])
    for example, results in zip(made, got, strict=True):
        check(*example, results)


@pytest.mark.skipif("cuda" not in library.DEVICES, reason="the library was built without CUDA kernels")
def test_what_explain_says() -> None:
    """How many launches a network takes, forward and backward, in the words of the kernels' own choice."""
    facts = 3, "silu", torch.float32, False, 9
    small = cost_model.network_launches(1024, [(2, 8, 5), (5, 8, 1)], *facts)
    assert small == "one launch forward; one launch backward"
    wide = cost_model.network_launches(1024, [(64, 8, 16), (16, 8, 16)], *facts)
    assert wide.startswith("one launch forward; a launch or more a layer backward, since the parameters")
    with pytest.raises(RuntimeError, match="for each layer, got 2, 1 and 2"):
        torch.ops.kan_kernels.cuda_network_reason(5, [2, 5], [5], [8, 8], 3, 1, 0, False, 9)
