"""torch.jit.trace, which TensorBoard's add_graph uses, and torch.fx.symbolic_trace of trainable layers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kan_kernels import KAN, KANConv1d, KANConv2d, KANConv3d, KANLinear, use_backend
from kan_kernels import functional as F
from kan_kernels._core import checks
from kan_kernels.integrations import cheby_kan, efficient_kan, fast_kan, fourier_kan
from kan_kernels.symbolic import fix

F64 = torch.float64


def masked() -> KANLinear:
    layer = KANLinear(3, 4, dtype=F64, bias=True)
    layer.set_edge_mask(torch.ones(3, 4).tril())
    fix(layer, 1, 0, "sin", params=(1.0, 0.5, 2.0, 0.0))
    return layer


LINEAR: dict[str, Callable[[], nn.Module]] = {
    "KANLinear": lambda: KANLinear(3, 4, dtype=F64),
    "many knots": lambda: KANLinear(3, 4, 200, dtype=F64),
    "KAN": lambda: KAN([3, 5, 2], bias=True, base="identity", dtype=F64),
    "mask and formula": masked,
    "Sequential": lambda: nn.Sequential(nn.Linear(3, 3, dtype=F64), KANLinear(3, 2, dtype=F64)),
}
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: KANConv1d(4, 6, 3, stride=2, bias=True, dtype=F64), (4, 9)),
    "2d": (lambda: KANConv2d(4, 6, 3, padding="same", groups=2, dtype=F64), (4, 6, 7)),
    "2d, padding alone": (lambda: KANConv2d(4, 2, 1, padding=2, stride=9, dtype=F64), (4, 3, 3)),
    "3d": (lambda: KANConv3d(4, 2, 2, dilation=2, dtype=F64), (4, 4, 5, 4)),
}
COMPAT: dict[str, Callable[[], nn.Module]] = {
    "efficient-kan": lambda: efficient_kan.KAN([3, 4, 2]).to(F64),
    "FastKAN": lambda: fast_kan.FastKAN([3, 4, 2]).to(F64),
    "FastKAN without layernorm": lambda: fast_kan.FastKANLayer(3, 2, use_layernorm=False).to(F64),
    "ChebyKAN": lambda: cheby_kan.ChebyKANLayer(3, 2, 4).to(F64),
    "FourierKAN": lambda: fourier_kan.NaiveFourierKANLayer(3, 2, 4).to(F64),
}


def traced(module: nn.Module, x: Tensor) -> Any:
    """Without a warning: none of what is recorded could be wrong for other values."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(module, (x,))


def gradients(module: nn.Module, y: Tensor, x: Tensor) -> list[Tensor]:
    return list(
        torch.autograd.grad(y.square().sum(), [x, *(p for p in module.parameters() if p.requires_grad)])
    )


def agree(made: Callable[..., Tensor], module: nn.Module, x: Tensor) -> None:
    """The same numbers and gradients as the module's own."""
    x = x.clone().requires_grad_()
    got, want = made(x), module(x)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradients(module, got, x), gradients(module, want, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_trace(backend: str, make: Callable[[], nn.Module]) -> None:
    """A trace has the numbers and the gradients for other batch sizes too, and after a save."""
    with use_backend(backend):
        module = make()
        trace = traced(module, torch.randn(5, 3, dtype=F64))
        for batch in (5, 1, 12, 0):
            agree(trace, module, torch.randn(batch, 3, dtype=F64))
        buffer = io.BytesIO()
        torch.jit.save(trace, buffer)
        buffer.seek(0)
        x = torch.randn(4, 3, dtype=F64)
        torch.testing.assert_close(torch.jit.load(buffer)(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_trace_of_leading_dimensions(backend: str, make: Callable[[], nn.Module]) -> None:
    with use_backend(backend):
        module = make()
        trace = traced(module, torch.randn(2, 5, 3, dtype=F64))
        agree(trace, module, torch.randn(4, 1, 3, dtype=F64))


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_trace_of_convolutions(backend: str, case: Any) -> None:
    with use_backend(backend):
        module, shape = case[0](), case[1]
        trace = traced(module, torch.randn(3, *shape, dtype=F64))
        for batch in (3, 1, 7):
            agree(trace, module, torch.randn(batch, *shape, dtype=F64))


@pytest.mark.long
def test_trace_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are taken in blocks: the trace does not hold how many there were."""
    from kan_kernels._engine import conv_composed

    monkeypatch.setattr(conv_composed, "BLOCK", {"cpu": 200})
    with use_backend("reference"):
        module = KANConv2d(2, 3, 3, dtype=F64)
        trace = traced(module, torch.randn(4, 2, 5, 5, dtype=F64))
        for batch in (4, 9, 1):
            agree(trace, module, torch.randn(batch, 2, 5, 5, dtype=F64))


@pytest.mark.parametrize("size", [(10, 10), (4, 4), (16, 16), (1, 1)])
def test_trace_on_another_image_size(backend: str, size: tuple[int, int]) -> None:
    """The numbers, or an error: a composed convolution is that of one image size, and says so."""
    with use_backend(backend):
        module = KANConv2d(2, 3, 3, padding=1, dtype=F64)
        trace = traced(module, torch.randn(3, 2, 8, 8, dtype=F64))
        x = torch.randn(3, 2, *size, dtype=F64)
        if backend == "native":
            agree(trace, module, x)
        else:
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                trace(x)


@pytest.mark.parametrize("make", COMPAT.values(), ids=COMPAT)
def test_trace_of_compat_layers(make: Callable[[], nn.Module]) -> None:
    """They look at sizes, of which torch warns; another batch size shows that these are not in the trace."""
    module = make()
    trace: Any = torch.jit.trace(module, (torch.randn(5, 3, dtype=F64),))
    for batch in (5, 2):
        agree(trace, module, torch.randn(batch, 3, dtype=F64))


def test_trace_reads_the_weights_of_the_moment() -> None:
    """An optimizer's steps are seen, as with nn.Linear."""
    module = KAN([3, 5, 2])
    trace, x = traced(module, torch.randn(5, 3)), torch.randn(4, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert torch.equal(trace(x), module(x))


def test_trace_of_bad_knots() -> None:
    """Knots that decrease are an error while tracing too."""
    module = KANLinear(3, 4)
    module.grid[1] = module.grid[1].flip(0)
    with pytest.raises(checks.GridError, match=r"knot 1 of feature 1"):
        torch.jit.trace(module, (torch.randn(5, 3),))


@pytest.mark.parametrize("make", [nn.Linear, KANLinear, lambda i, o: KANConv1d(i, o, 1)])
def test_trace_of_a_closure(make: Callable[[int, int], nn.Module]) -> None:
    """Parameters that no traced module holds are refused by torch, in the same words as nn.Linear's."""
    module = make(4, 4)
    with pytest.raises(RuntimeError, match="Cannot insert a Tensor that requires grad as a constant"):
        torch.jit.trace(lambda x: module(x), (torch.randn(5, 4, 4),))


def test_add_graph() -> None:
    """What TensorBoard's writer does with a model: a trace, inlined, its nodes under the modules' names."""
    module = KAN([3, 5, 2])
    graph = torch.jit.trace(module, (torch.randn(5, 3),), strict=True).graph
    torch._C._jit_pass_inline(graph)
    kernels = [node for node in graph.nodes() if node.kind().startswith("kan_kernels::")]
    assert [node.kind() for node in kernels] == ["kan_kernels::kan_linear"] * 2
    assert "layers.1" in kernels[1].scopeName()


def test_summary_writer(tmp_path: Path) -> None:
    """TensorBoard's own writer takes models, and its file names the layers."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: too large for one test")
    from torch.utils.tensorboard import SummaryWriter

    for model, x in ((KAN([3, 5, 2]), torch.randn(5, 3)), (KANConv2d(2, 3, 3), torch.randn(2, 2, 5, 5))):
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_graph(model, x)
    events = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"kan_kernels::kan_linear" in events and b"kan_kernels::kan_conv" in events
    assert b"KANLinear[1]" in events


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_symbolic_trace(backend: str, make: Callable[[], nn.Module]) -> None:
    with use_backend(backend):
        module = make()
        graph = torch.fx.symbolic_trace(module)
        for batch in (5, 1):
            agree(graph, module, torch.randn(batch, 3, dtype=F64))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        agree(graph, module, torch.randn(5, 3, dtype=F64))


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_symbolic_trace_of_convolutions(case: Any) -> None:
    module, shape = case[0](), case[1]
    graph = torch.fx.symbolic_trace(module)
    for batch in (3, 7):
        agree(graph, module, torch.randn(batch, *shape, dtype=F64))


def test_symbolic_trace_of_pruned_weights() -> None:
    """torch's own pruning makes the weight an attribute that is computed: it stays so."""
    module = KANLinear(3, 4, dtype=F64)
    nn.utils.parametrizations.weight_norm(module, "spline_weight")
    agree(torch.fx.symbolic_trace(module), module, torch.randn(5, 3, dtype=F64))


def test_symbolic_trace_of_functions() -> None:
    """By way of the module a call is one node; elsewhere the error says what to do."""
    layer = KANLinear(3, 4)
    tensors = layer.spline_weight.detach(), layer.grid
    graph = torch.fx.symbolic_trace(lambda x: F.kan_linear(x, *tensors, spline_order=3, base=None))
    x = torch.randn(5, 3)
    assert torch.equal(graph(x), F.kan_linear(x, *tensors, spline_order=3, base=None))
    with pytest.raises(
        TypeError, match=r"x: got torch\.fx's Proxy, expected a torch\.Tensor; make the layer a leaf"
    ):
        torch.fx.symbolic_trace(cheby_kan.ChebyKANLayer(3, 2, 4))
