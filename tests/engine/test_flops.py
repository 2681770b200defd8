"""torch.utils.flop_counter counts our ops, forward and backward, and those of accelerated peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import peer_efficient_kan
from benchmarks import basis_forms
from harness import FUSED, child
from kan_kernels import KAN, KANActivation, KANConv2d, KANLinear, use_backend
from kan_kernels import functional as F
from kan_kernels._engine import edges_autograd
from kan_kernels.integrations import accelerate, cheby_kan, efficient_kan, fast_kan, fourier_kan
from kan_kernels.nn.network import gather
from kan_kernels.training import direct, fit
from kan_kernels.training.lbfgs import LBFGS

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


# as their authors wrote them: (model, edges a row, coefficients that an edge meets)
ACCELERATED: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "efficient-kan": (lambda: peer_efficient_kan.KAN([5, 7, 3]), 35 + 21, 5),
    "FastKAN": (lambda: basis_forms.FastKANLayer(5, 7), 35, 9),
    "ChebyKAN": (lambda: basis_forms.ChebyKANLayer(5, 7, 4), 35, 5),
    "FourierKAN": (lambda: basis_forms.NaiveFourierKANLayer(5, 7, 4), 35, 8),
    "pykan": (lambda: pykan().KAN(width=[5, 7, 3], grid=5, k=3, auto_save=False), 35 + 21, 5),
}


def pykan() -> Any:
    return pytest.importorskip("kan", reason="pykan is a test extra")


@NATIVE
@pytest.mark.parametrize("name", ACCELERATED)
def test_count_of_accelerated_models(name: str) -> None:
    """Other codebases' models count what the same layers of ours do, forward and backward."""
    make, edges, active = ACCELERATED[name]
    model = make()
    accelerate(model)
    x = torch.randn(11, 5)
    forward = 2 * 11 * edges * active
    assert count(model, x, backward=False) == forward
    assert count(model, x.requires_grad_()) == 3 * forward


@NATIVE
def test_count_of_an_error() -> None:
    """Forward and backward without the gradient of x; with a penalty the sizes of the edges, and signs."""
    from torch.utils.flop_counter import FlopCounterMode

    first, second = 2 * 11 * 35 * 5, 2 * 11 * 21 * 5
    layers = gather(KAN([5, 7, 3]))
    assert not isinstance(layers, str)
    starts = [0]
    for t in layers.tensors[:-2]:
        starts.append(starts[-1] + t.numel())
    for lamb, expected in (
        (0.0, 2 * first + 3 * second),
        (0.1, 5 * first + 7 * second),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x, y = torch.randn(11, 5), torch.randn(11, 3)
            torch.ops.kan_kernels.kan_network_error(
                x, y, layers.tensors, *layers.numbers, starts[:-1], lamb, 1.0, 2.0
            )
        assert counter.get_total_flops() == expected


@NATIVE
def test_count_of_a_step_of_lbfgs() -> None:
    """As many as `fit` counts where each evaluation is a call."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.rand(60, 5)
    counts = []
    for native_steps in (True, False):
        torch.manual_seed(0)
        net = KAN([5, 4, 1])
        with pytest.MonkeyPatch.context() as patch:
            if not native_steps:
                patch.setattr(direct.SquaredError, "iterate", None)
            optimizer = LBFGS(net.parameters(), max_iter=4)
            with FlopCounterMode(display=False) as counter:
                fit(net, (x, x[:, :1].sin()), steps=1, optimizer=lambda _, o=optimizer: o, progress=False)
        evaluations = next(iter(optimizer.state.values()))["func_evals"]
        counts.append((evaluations, counter.get_total_flops()))
    assert counts[0] == counts[1] and counts[0][0] >= 5


@NATIVE
def test_count_of_statistics() -> None:
    """Sums over 11 rows of 5 inputs: 4 cubic functions of a cell and the base are 5 functions."""
    layer, x = KANLinear(5, 7), torch.randn(11, 5)
    grid, weights = layer.grid.double(), (layer.spline_weight.detach(), layer.base_weight.detach())

    def of(call: Callable[..., Any], *inputs: torch.Tensor) -> tuple[int, int]:
        from torch.utils.flop_counter import FlopCounterMode

        inputs = tuple(t.clone().requires_grad_() for t in inputs)
        with FlopCounterMode(display=False) as counter:
            made = call(*inputs)
            forward = int(counter.get_total_flops())
            sum(t.sum() for t in (made if isinstance(made, tuple) else (made,))).backward()
        return forward, int(counter.get_total_flops()) - forward

    # 15 pairs, and 5 beside the constant 1; of a derivative a 5 x 5 form and a linear one
    pairs, slopes = 2 * 11 * 5 * (15 + 5), 2 * 11 * 5 * (25 + 5)
    gram = of(lambda x: torch.ops.kan_kernels.edge_gram(x, None, grid, 3, 1), x)
    assert gram[0] == pairs
    assert of(lambda x: edges_autograd.Gram.run(x, None, grid, 3, 1), x) == (pairs, slopes)
    quadratic = grid[:, 1:-1].contiguous()
    cross = of(lambda x: x.sum() + torch.ops.kan_kernels.edge_cross_gram(x, None, grid, 3, quadratic, 2), x)
    assert cross[0] == 2 * 11 * 5 * 4 * 3
    # an edge: 9 means; 8 functions beside 7, less 12 at the ends; 17 with the base; 9 at last
    form = 2 * 35 * (9 + 8 * 7 - 12 + 17 + 9)
    # 2 a coefficient; for x two linear forms, 4 a function less 6 at the end, and the base's 9
    back = 2 * 35 * (2 * 9 + 2 * 9 + 8 * 4 - 6 + 9) + slopes
    moments = of(lambda x, w, b: F.edge_moments(x, w, layer.grid, spline_order=3, base_weight=b), x, *weights)
    assert moments == (pairs + form, back)
    # |phi| of every edge, then its sign anew, and the gradients of weights and x
    l1 = of(lambda x, w, b: F.edge_l1(x, w, layer.grid, spline_order=3, base_weight=b), x, *weights)
    assert l1 == (2 * 11 * 35 * 5, 3 * 2 * 11 * 35 * 5)


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
