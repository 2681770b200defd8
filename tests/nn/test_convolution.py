"""KANConv1d, 2d and 3d against torch's convolutions of the materialised bases."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from conv_cases import CASES, LAYERS, compose, expected, image, made
from kan_kernels import KANConv1d, KANConv2d, KANLinear
from kan_kernels import functional as F
from kan_kernels._engine import conv_composed
from kan_kernels._engine import layer as engine
from kan_kernels.functional import conv


@pytest.mark.parametrize("block", (None, 300, 1 << 21), ids=("kernel", "some", "all"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_convolution_of_bases(
    case: dict[str, Any], block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, first and second derivatives, whatever the blocks, and by the kernel where there is one."""
    if block is not None:
        compose(monkeypatch)
        monkeypatch.setitem(conv_composed.BLOCK, "cpu", block)
    layer = made(**case)
    x = image(case["dims"]).requires_grad_()
    inputs = [x, *layer.parameters()]
    got, want = layer(x), expected(layer, x)
    assert got.shape == want.shape and got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    v = torch.randn_like(want)
    first = [torch.autograd.grad((y * v).sum(), inputs, create_graph=True) for y in (got, want)]
    torch.testing.assert_close(*first, rtol=0, atol=1e-11)
    second = [torch.autograd.grad(g[0].pow(2).sum(), [x, layer.spline_weight]) for g in first]
    torch.testing.assert_close(*second, rtol=1e-10, atol=1e-10)


def test_one_tap_is_a_linear_layer() -> None:
    """A 1x1 kernel is KANLinear on the channels."""
    conv, linear = made(2, kernel_size=1), KANLinear(4, 8, dtype=torch.float64)
    with torch.no_grad():
        linear.spline_weight.copy_(conv.spline_weight.flatten(2))
        linear.base_weight.copy_(conv.base_weight.flatten(1))
    x = image(2)
    torch.testing.assert_close(conv(x), linear(x.movedim(1, -1)).movedim(-1, 1))


def test_padding_adds_nothing() -> None:
    """A function that is not zero at zero contributes nothing where the kernel reads padding."""
    layer = made(2, kernel_size=3, padding=1)
    nn.init.ones_(layer.spline_weight)  # the splines sum to one inside the grid
    nn.init.zeros_(layer.base_weight)
    y = layer(torch.zeros(1, 4, 5, 5, dtype=torch.float64))[0, 0]
    assert [round(v, 9) for v in (y[0, 0].item(), y[0, 2].item(), y[2, 2].item())] == [16, 24, 36]


def test_derivatives_of_any_kind() -> None:
    """gradcheck in reverse and forward mode, over a class of every stride."""
    layer = made(2, kernel_size=2, stride=2, padding=1, spline_order=2)
    x = (0.8 * torch.rand(2, 4, 4, 3, dtype=torch.float64) - 0.4).requires_grad_()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        options = {"spline_order": 2, "base_weight": layer.base_weight.detach(), "stride": 2, "padding": 1}
        return conv.kan_conv(x, weight, layer.grid, **options)

    inputs = (x, layer.spline_weight)
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_functional_transforms() -> None:
    """torch.func: per-sample gradients agree with one sample at a time."""
    layer = made(1, kernel_size=3, padding=1)
    parameters = dict(layer.named_parameters())
    x = image(1)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x.unsqueeze(0),)).pow(2).sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        layer.zero_grad()
        layer(sample).pow(2).sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(got[name][n], parameter.grad)


def test_compiles() -> None:
    """One graph, the same numbers and gradients (the graph is captured, not lowered)."""
    layer = made(2, kernel_size=3, padding=1, stride=2)
    x = image(2).requires_grad_()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, layer(x))
    (got,), (want,) = (torch.autograd.grad(z.pow(2).sum(), x) for z in (y, layer(x)))
    torch.testing.assert_close(got, want)


def test_shapes_and_memory_formats() -> None:
    """No batch, an empty batch, channels last: as torch's convolutions."""
    layer = made(2, kernel_size=3, padding=1)
    x = image(2)
    y = layer(x)
    torch.testing.assert_close(layer(x[1]), y[1])
    empty = layer(x[:0])
    assert empty.shape == (0, 8, 9, 11)
    (gradient,) = torch.autograd.grad(empty.sum(), layer.spline_weight)
    assert gradient.shape == layer.spline_weight.shape and not gradient.any()
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)
    torch.testing.assert_close(layer(x[..., ::2]), layer(x[..., ::2].contiguous()))


def test_nan_stays_where_it_is() -> None:
    """NaN reaches the outputs whose kernel reads it, and no other."""
    x = image(2)
    x[1, 2, 4, 5] = torch.nan
    y = made(2, kernel_size=3, padding=1)(x)
    hit = torch.zeros(3, 1, 9, 11, dtype=torch.bool)
    hit[1, :, 3:6, 4:7] = True
    assert torch.equal(y.isnan(), hit.expand_as(y))


def test_low_precision_and_autocast() -> None:
    """16-bit weights keep their knots in float32; autocast's output is autocast's."""
    layer = made(2, kernel_size=3, padding=1, dtype=torch.float32)
    x = image(2, torch.float32)
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x)
    half = copy.deepcopy(layer).bfloat16()
    assert half.grid.dtype == torch.float32 and half.spline_weight.dtype == torch.bfloat16
    for y in (cast, half(x)):
        assert y.dtype == torch.bfloat16
        # 16-bit operands, results and sums over nine taps: a few units of 2^-8 of the largest value
        assert (y.float() - want).abs().max() < 3 * 2**-8 * want.abs().max()


def test_modules_travel() -> None:
    """State dict, pickle, deepcopy; what it prints."""
    layer = made(2, kernel_size=3, stride=2, groups=2, bias=True)
    x = image(2)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    fresh = made(2, kernel_size=3, stride=2, groups=2, bias=True)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    assert "stride=(2, 2)" in repr(layer) and "groups=2" in repr(layer)


def test_initial_scale() -> None:
    """The variance of the output does not grow with channels and taps."""
    torch.manual_seed(0)
    x = torch.rand(4, 64, 12, 12) * 2 - 1
    for base in ("silu", None):
        y = KANConv2d(64, 64, 3, base=base)(x)
        assert 0.02 < y.std() < 1.0


def torch_conv_kan(state: dict[str, Tensor], x: Tensor, groups: int, knots: Tensor, order: int) -> Tensor:
    """The convolution part of torch-conv-kan's KANConv2DLayer, from its weights' names and shapes."""
    parts = []
    for n, xs in enumerate(x.chunk(groups, 1)):
        bases = F.bspline_basis(xs.unsqueeze(-1), knots[None], order).squeeze(-2)  # (N, C, H, W, G+k)
        bases = bases.moveaxis(-1, 2).flatten(1, 2)
        parts.append(
            TF.conv2d(TF.silu(xs), state[f"base_conv.{n}.weight"], padding=1, stride=2)
            + TF.conv2d(bases, state[f"spline_conv.{n}.weight"], padding=1, stride=2)
        )
    return torch.cat(parts, 1)


def test_takes_weights_of_torch_conv_kan() -> None:
    """Names, shapes and the order of its rows; a state that does not fit changes nothing."""
    layer = made(2, kernel_size=3, padding=1, stride=2, groups=2)
    state = {}
    for n in range(2):
        state[f"base_conv.{n}.weight"] = torch.randn(4, 2, 3, 3, dtype=torch.float64)
        state[f"spline_conv.{n}.weight"] = torch.randn(4, 16, 3, 3, dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(KeyError, match=r"base_conv\.1\.weight"):
        layer.load_conv_kan({k: v for k, v in state.items() if k != "base_conv.1.weight"})
    with pytest.raises(ValueError, match=r"spline_conv\.0\.weight"):
        layer.load_conv_kan({**state, "spline_conv.0.weight": torch.zeros(4, 15, 3, 3)})
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer.load_conv_kan(state)
    x = image(2)
    torch.testing.assert_close(layer(x), torch_conv_kan(state, x, 2, layer.grid[0], 3))


@pytest.mark.parametrize(
    "dims,out,size,limit,most",
    (
        (2, 8, (9, 11), 1 << 21, 1.0),  # one block
        (2, 8, (40, 11), 1 << 15, 1.5),  # some rows a block
        (2, 64, (20, 50), 1 << 13, 3.5),  # parts of a row: taps of the other axis one by one
        (3, 8, (6, 20, 20), 1 << 16, 3.5),
    ),
    ids=str,
)
def test_blocks_are_small_and_bases_shared(
    dims: int, out: int, size: tuple[int, ...], limit: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block exceeds its limit by more than half on each axis; positions are evaluated `most` times."""
    calls = []
    true = engine.call

    def counted(x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = true(x, *args, **options)
        calls.append((x.numel(), y.numel()))
        return y

    layer = LAYERS[dims](4, out, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    want = layer(x)
    compose(monkeypatch)
    monkeypatch.setattr(engine, "call", counted)
    monkeypatch.setitem(conv_composed.BLOCK, "cpu", limit)
    torch.testing.assert_close(layer(x), want)
    assert max(n for _, n in calls) <= limit * 1.5**dims
    assert sum(n for n, _ in calls) <= most * x.numel()


def test_outputs_in_the_padding_alone() -> None:
    """Zeros of the right dtype, of which every parameter has a gradient, zero too."""
    layer = KANConv1d(1, 2, 1, stride=3, padding=1)
    x = torch.randn(1, 1, 1, requires_grad=True)
    y = layer(x)
    assert y.shape == (1, 2, 1) and not y.any()
    gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert not any(g.any() for g in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


BAD: tuple[tuple[str, dict[str, Any], type[Exception]], ...] = (
    ("groups", {"groups": 3}, ValueError),
    ("groups", {"groups": 0}, ValueError),
    ("kernel_size", {"kernel_size": (3, 3, 3)}, ValueError),
    ("kernel_size", {"kernel_size": 0}, ValueError),
    ("stride", {"stride": 0}, ValueError),
    ("stride", {"stride": 1.5}, TypeError),
    ("dilation", {"dilation": (1,)}, ValueError),
    ("padding", {"padding": -1}, ValueError),
    ("padding", {"padding": "reflect"}, ValueError),
    ("padding", {"padding": "same", "stride": 2}, ValueError),
    ("in_channels", {"in_channels": 0}, ValueError),
    ("base", {"base": "relu"}, ValueError),
    ("backend", {"backend": "metal"}, ValueError),
)


@pytest.mark.parametrize("name,options,error", BAD, ids=str)
def test_bad_options(name: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name}"):
        KANConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **options})


@pytest.mark.parametrize(
    "shape,message",
    (
        ((3, 5, 9, 9), r"x: got shape \(3, 5, 9, 9\), expected \(batch, 4, height, width\)"),
        ((4, 9), "x: got shape"),
        ((3, 4, 2, 9), "x: got size .* expected at least 3"),
    ),
    ids=str,
)
def test_bad_images(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(2, kernel_size=3)(torch.zeros(shape, dtype=torch.float64))


def test_bad_tensors() -> None:
    layer = made(2, kernel_size=3)
    x = image(2)
    options = {"spline_order": 3, "base_weight": layer.base_weight}
    with pytest.raises(TypeError, match=r"^x: got torch\.float32"):
        layer(x.float())
    with pytest.raises(ValueError, match=r"^spline_weight: got shape"):
        conv.kan_conv(x, layer.spline_weight[:, :, 0, 0], layer.grid, **options)
    with pytest.raises(ValueError, match=r"^base_weight: got shape"):
        conv.kan_conv(x, layer.spline_weight, layer.grid, spline_order=3, base_weight=x.new_zeros(4, 3, 3, 7))
    for grid, error in ((layer.grid.repeat(2, 1), ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"^grid: got"):
            conv.kan_conv(x, layer.spline_weight, grid, **options)
    with pytest.raises(ValueError, match=r"^bias: got shape"):
        conv.kan_conv(x, layer.spline_weight, layer.grid, bias=x.new_zeros(4), **options)


def test_every_tap_pattern() -> None:
    """All small kernels, strides, dilations and paddings: as torch has them, in one dimension."""
    x = torch.randn(1, 1, 6, dtype=torch.float64)
    for kernel, stride, dilation, padding in itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (0, 1, 3)):
        if 6 + 2 * padding < (kernel - 1) * dilation + 1:
            continue
        layer = KANConv1d(1, 1, kernel, stride, padding, dilation, dtype=torch.float64, base=None)
        torch.testing.assert_close(layer(x), expected(layer, x), rtol=0, atol=1e-13)
