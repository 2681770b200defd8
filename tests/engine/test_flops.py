"""torch.utils.flop_counter counts our ops, forward and backward, and those of accelerated peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from harness import FUSED, child
from kan_kernels import KAN, KANActivation, KANConv2d, KANLinear, use_backend
from kan_kernels.integrations import cheby_kan, efficient_kan, fast_kan, fourier_kan

NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")


def count(model: nn.Module, x: torch.Tensor, backward: bool = True) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        y = model(x)
        if backward:
            y.sum().backward()
    return int(counter.get_total_flops())


# (model, shape of x, edges a row, coefficients that an edge meets)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "KANLinear": (lambda: KANLinear(5, 7), (11, 5), 35, 5),
    "no base, order 2": (lambda: KANLinear(5, 7, 30, 2, base=None), (11, 5), 35, 3),
    "float64": (lambda: KANLinear(5, 7, dtype=torch.float64), (11, 5), 35, 5),
    "leading dimensions": (lambda: KANLinear(5, 7), (11, 3, 5), 3 * 35, 5),
    "KAN": (lambda: KAN([5, 7, 3]), (11, 5), 35 + 21, 5),
    "KANConv2d": (lambda: KANConv2d(4, 6, 3, groups=2), (11, 4, 5, 6), 3 * 4 * 6 * 2 * 9, 5),
    "KANActivation": (lambda: KANActivation(5, heads=2), (11, 5), 10, 5),
    "efficient-kan": (lambda: efficient_kan.KANLinear(5, 7), (11, 5), 35, 5),
    "FastKAN": (lambda: fast_kan.FastKANLayer(5, 7), (11, 5), 35, 9),
    "FourierKAN": (lambda: fourier_kan.NaiveFourierKANLayer(5, 7, 4), (11, 5), 35, 8),
    "ChebyKAN": (lambda: cheby_kan.ChebyKANLayer(5, 7, 4), (11, 5), 35, 5),
}


@NATIVE
@pytest.mark.parametrize("name", CASES)
def test_count(name: str) -> None:
    """Two for each multiply-add: once forward, twice for gradients of weights and x, once without x's."""
    make, shape, edges, active = CASES[name]
    model = make()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    forward = 2 * 11 * edges * active
    assert count(model, x, backward=False) == forward
    with torch.no_grad():
        assert count(model, x, backward=False) == forward
    assert count(model, x.clone().requires_grad_()) == 3 * forward
    first = 2 * 11 * 35 * 5 if name == "KAN" else forward
    if name not in ("ChebyKAN", "FastKAN"):  # tanh and layer norm: the gradient of what is behind them
        assert count(model, x) == 3 * forward - first


def test_count_of_the_reference() -> None:
    """Plain torch counts its dense GEMMs, as it did."""
    with use_backend("reference"):
        assert count(KANLinear(5, 7), torch.randn(11, 5), backward=False) == 2 * 11 * 35 * 9


@NATIVE
@pytest.mark.parametrize(
    "first", ["import kan_kernels", pytest.param("import torch.utils.flop_counter", marks=pytest.mark.long)]
)
def test_whoever_is_imported_first(first: str) -> None:
    """The counter knows the ops, and nobody imports it (and Triton with it) for that."""
    child(f"""
import importlib.util, sys
{first}
import kan_kernels
if {first!r} == "import kan_kernels":
    assert "torch.utils.flop_counter" not in sys.modules
    importlib.util.find_spec("torch.utils.flop_counter")  # looks, and does not import
import torch
from torch.utils.flop_counter import flop_registry
assert torch.ops.kan_kernels.kan_linear in flop_registry
assert torch.ops.kan_kernels.kan_network_backward in flop_registry
""")


@pytest.mark.parametrize("kind", ["eager", "conv"])
def test_torchinfo(kind: str) -> None:
    """Layers, shapes and parameters. Its multiply-adds go by names: it takes ours for those of an RNN."""
    torchinfo: Any = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    model = KAN([5, 7, 3], bias=True) if kind == "eager" else KANConv2d(4, 6, 3)
    shape = (11, 5) if kind == "eager" else (2, 4, 5, 6)
    found = torchinfo.summary(model, input_size=shape, verbose=0)
    assert found.total_params == sum(p.numel() for p in model.parameters())
    if kind == "eager":
        layers = [info for info in found.summary_list if info.class_name == "KANLinear"]
        assert [info.output_size for info in layers] == [[11, 7], [11, 3]]
