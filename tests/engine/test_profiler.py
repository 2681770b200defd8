"""torch.profiler shows a training step's ops by their names, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from harness import FUSED
from kan_kernels import KAN, KANActivation, KANConv2d, KANLinear, MultiHeadKANLinear, use_backend
from kan_kernels.integrations import fast_kan

pytestmark = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
# model, shape of x, op, its gradients without x's and with it
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str, str]] = {
    "KANLinear": (lambda: KANLinear(3, 4), (3,), "kan_linear", "grad_weight", "backward"),
    "KAN": (lambda: KAN([3, 5, 2]), (3,), "kan_network", "backward", ""),
    "KANConv2d": (lambda: KANConv2d(2, 3, 3), (2, 6, 6), "kan_conv", "backward", "backward"),
    "KANActivation": (lambda: KANActivation(3), (3,), "kan_activation", "grad_weight", "backward"),
    "heads": (lambda: MultiHeadKANLinear(3, 4), (3,), "kan_activation", "grad_weight", "backward"),
    "FastKAN": (lambda: fast_kan.FastKANLayer(3, 2), (3,), "layer_norm_rbf", "backward", "backward"),
}


def ops_of(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Return how often each of our ops with a kernel of its own ran in a training step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x)  # the first of its sizes asks the library what it has
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        model(x).square().mean().backward()
        optimizer.step()
    every = {row.key: row.count for row in measured.key_averages() if row.key.startswith("kan_kernels::")}
    return {name.partition("::")[2]: count for name, count in every.items() if "cpu_" not in name}


@pytest.mark.parametrize("name", CASES)
def test_names(name: str) -> None:
    """One op each way, named after what it computes; with x's gradient the one that has all of them."""
    make, shape, op, weights, all_of_them = CASES[name]
    model, x = make(), torch.randn(8, *shape)
    assert ops_of(model, x) == {op: 1, f"{op}_{weights}": 1}
    want = {op: 1, f"{op}_{all_of_them}": 1} if all_of_them else {"kan_linear": 2, "kan_linear_backward": 2}
    assert ops_of(model, x.requires_grad_()) == want


def test_reference_has_none() -> None:
    """Plain torch shows none of them."""
    with use_backend("reference"):
        assert ops_of(KANLinear(3, 4), torch.randn(8, 3)) == {}
