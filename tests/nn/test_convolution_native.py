"""The compiled convolution, and the composed one, against torch's convolutions of the bases in float64."""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import kan_kernels
from conv_cases import CASES, SIZES, compose, expected, image, made
from harness import FUSED, run_tests
from instruction_sets import RUNNABLE
from kan_kernels import KANConv1d, KANConv2d
from kan_kernels._engine import conv_autograd
from kan_kernels.backends import native
from kan_kernels.functional.conv import kan_conv

pytestmark = pytest.mark.skipif("native" not in FUSED, reason="the native backend is not under test")

MORE: tuple[dict[str, Any], ...] = (
    {"dims": 1, "kernel_size": 7, "padding": 9, "dilation": 2},
    {"dims": 1, "kernel_size": 13, "base": None},
    {"dims": 1, "kernel_size": 2, "stride": 5, "padding": 1, "base": "identity"},
    {"dims": 2, "kernel_size": 5, "padding": 7},
    {"dims": 2, "kernel_size": (2, 3), "stride": (3, 1), "dilation": (3, 4), "padding": (5, 4), "bias": True},
    {"dims": 2, "kernel_size": 3, "padding": 1, "groups": 4, "bias": True},
    {"dims": 2, "kernel_size": 3, "stride": 2, "spline_order": 0, "grid_size": 1},
    {"dims": 2, "kernel_size": 3, "padding": 1, "spline_order": 10, "grid_size": 3},
    {"dims": 2, "kernel_size": 2, "spline_order": 5, "grid_size": 40, "base": None},
    {"dims": 3, "kernel_size": 3, "padding": 1, "bias": True},
    {"dims": 3, "kernel_size": (1, 2, 3), "dilation": (2, 3, 1), "padding": (0, 3, 1), "groups": 2},
)


def step(layer: Any, x: Tensor, v: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients of <v, y> with respect to x and every parameter."""
    x = x.detach().requires_grad_()
    y = layer(x)
    v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y) if v is None else v
    return [y.detach(), *torch.autograd.grad((y * v).sum(), [x, *layer.parameters()])]


def bound(dtype: torch.dtype, want: Tensor) -> float:
    """16 bits: one rounding of operands, weights and results each. Else: sums of hundreds of terms."""
    eps = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    return eps * max(1.0, float(want.abs().max()))


def oracle(layer: Any, x: Tensor, v: Tensor) -> list[Tensor]:
    """`step` in float64, by torch's convolutions of the bases."""
    wide = copy.deepcopy(layer).double()
    x = x.detach().double().requires_grad_()
    y = expected(wide, x)
    return [y.detach(), *torch.autograd.grad((y * v.double()).sum(), [x, *wide.parameters()])]


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("case", CASES + MORE, ids=str)
def test_equals_the_oracle(case: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients, of the kernel and of the composed path, in every dtype."""
    half = dtype in (torch.bfloat16, torch.float16)
    layer = made(**{**case, "dtype": torch.float32 if half else dtype})
    x = image(case["dims"], layer.spline_weight.dtype)
    if half:
        layer, x = layer.to(dtype), x.to(dtype)
    v = torch.rand(layer(x).shape, dtype=torch.float64).to(dtype)
    want = oracle(layer, x, v)
    for got, true in zip(step(layer, x, v), want, strict=True):
        assert got.dtype == dtype and got.shape == true.shape
        assert (got.double() - true).abs().max() <= bound(dtype, true)
    if not half:
        compose(monkeypatch)
        for got, true in zip(step(layer, x, v), want, strict=True):
            assert (got.double() - true).abs().max() <= bound(dtype, true)


@pytest.mark.parametrize("out", (1, 3, 16, 24, 48, 64, 65, 130, 200))
@pytest.mark.parametrize("channels,stride", ((1, 1), (5, 2), (33, 1)), ids=str)
def test_every_kind_of_panel(out: int, channels: int, stride: int) -> None:
    """Few and many outputs, whole and broken vectors; several blocks of channels."""
    layer = KANConv2d(channels, out, 3, stride, 1, dtype=torch.float32, bias=True)
    x = torch.randn(2, channels, 7, 18)
    v = torch.rand(layer(x).shape)
    for got, true in zip(step(layer, x, v), oracle(layer, x, v), strict=True):
        assert (got.double() - true).abs().max() <= bound(torch.float32, true)


@pytest.mark.parametrize(
    "shape,out,kernel",
    (
        ((1, 2, 70, 300), 3, 3),  # parts of lines, boxes of one image
        ((150, 1, 3, 3), 2, 3),  # many images a window
        ((1, 1, 5000), 1, 5),
        ((3, 2, 4, 40, 40), 20, 3),
        ((1, 2, 130, 90), 260, 3),  # a tile of several MiB
        ((2, 1, 40, 90), 5, (1, 70)),  # a rim as wide as a box
    ),
    ids=str,
)
def test_boxes_and_windows(shape: tuple[int, ...], out: int, kernel: Any) -> None:
    """Images large and small are cut in every way and put together again."""
    layer = {3: KANConv1d, 4: KANConv2d, 5: kan_kernels.KANConv3d}[len(shape)](
        shape[1], out, kernel, padding=2, grid_size=3, spline_order=2, dtype=torch.float64
    )
    x = torch.randn(shape, dtype=torch.float64)
    v = torch.rand(layer(x).shape, dtype=torch.float64)
    for got, true in zip(step(layer, x, v), oracle(layer, x, v), strict=True):
        assert (got - true).abs().max() <= 1e-11 * max(1.0, float(true.abs().max()))


@pytest.mark.parametrize("out, kernel, dilation, size", [(64, 3, 7, 16), (256, 3, 4, 12), (256, 7, 1, 8)])
def test_rims_wider_than_images(out: int, kernel: int, dilation: int, size: int) -> None:
    """Taps that lie far apart in a volume cost about what neighbouring ones do: no box of one place."""

    def seconds(dilation: int, kernel: int) -> float:
        layer = kan_kernels.KANConv3d(2, out, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        x = torch.rand(1, 2, size, size, size)
        start = time.process_time()
        with torch.no_grad():
            layer(x)
        return time.process_time() - start

    layer = kan_kernels.KANConv3d(
        2, out, kernel, dilation=dilation, padding=dilation * (kernel // 2), dtype=torch.float64
    )
    x = torch.rand(1, 2, size, size, size, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        got, true = layer(x), expected(layer, x)
    assert (got - true).abs().max() <= 1e-11 * max(1.0, float(true.abs().max()))
    seconds(1, 3)
    taps = (kernel / 3) ** 3
    assert seconds(dilation, kernel) < 40 * taps * seconds(1, 3) + 0.2


def test_small_images_in_every_pattern() -> None:
    """All small kernels, strides, dilations and paddings on images smaller than a kernel's reach."""
    tried = 0
    for size, kernel, stride, dilation, padding in itertools.product(
        (1, 2, 5), (1, 2, 3), (1, 2, 4), (1, 3), (0, 1, 4)
    ):
        if size + 2 * padding < (kernel - 1) * dilation + 1:
            continue
        layer = made(2, kernel_size=kernel, stride=stride, dilation=dilation, padding=padding)
        x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
        v = torch.rand(layer(x).shape, dtype=torch.float64)
        for got, true in zip(step(layer, x, v), oracle(layer, x, v), strict=True):
            torch.testing.assert_close(got, true, rtol=0, atol=1e-11)
        tried += 1
    assert tried > 100


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf), ids=str)
@pytest.mark.parametrize("base", ("silu", "identity", None), ids=str)
@pytest.mark.parametrize("place", ((0, 0), (4, 5), (8, 10), (0, 6)), ids=str)
def test_special_values(value: float, base: str | None, place: tuple[int, int]) -> None:
    """NaN and infinities, inside and at the edges, reach what the oracle says and nothing else."""
    for stride in (1, 2):
        layer = made(2, kernel_size=3, padding=1, stride=stride, base=base)
        x = image(2)
        x[1, 2, place[0], place[1]] = value
        v = torch.rand(layer(x).shape, dtype=torch.float64)
        got, want = step(layer, x, v), oracle(layer, x, v)
        for mine, true in zip(got, want, strict=True):
            torch.testing.assert_close(mine, true, rtol=0, atol=1e-10, equal_nan=True)


def test_layouts() -> None:
    """Strided images, channels last, expanded cotangents; dx and y have the layout of x."""
    layer = made(2, kernel_size=3, padding=1, stride=2, bias=True)
    x = image(2)
    want = step(layer, x)
    last = x.to(memory_format=torch.channels_last)
    got = step(layer, last)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    for other in (got, step(layer, x.transpose(2, 3).contiguous().transpose(2, 3))):
        for mine, true in zip(other, want, strict=True):
            torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)
    wide = torch.randn(3, 8, 18, 22, dtype=x.dtype)
    wide[:, ::2, ::2, 1::2] = x
    for mine, true in zip(step(layer, wide[:, ::2, ::2, 1::2]), want, strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)
    ones = torch.ones((), dtype=x.dtype).expand_as(want[0])
    for mine, true in zip(step(layer, x, ones), step(layer, x, ones.contiguous()), strict=True):
        assert torch.equal(mine, true)


def test_one_pass_is_two_passes() -> None:
    """dx alone, dweight alone and both in one pass: the same bits."""
    layer = made(2, kernel_size=3, padding=1, dtype=torch.float32)
    x = image(2, torch.float32).requires_grad_()
    y = layer(x)
    v = torch.rand_like(y)
    parameters = list(layer.parameters())
    both = torch.autograd.grad(y, [x, *parameters], v, retain_graph=True)
    (dx,) = torch.autograd.grad(y, x, v, retain_graph=True)
    weights = torch.autograd.grad(y, parameters, v)
    for one, other in zip((dx, *weights), both, strict=True):
        assert torch.equal(one, other)


def test_asks_for_no_more_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    true = native.kan_conv_backward
    monkeypatch.setattr(native, "kan_conv_backward", lambda *a: asked.append(a[-2:]) or true(*a))
    layer = made(2, kernel_size=3, bias=True)
    x = image(2)
    layer(x).sum().backward()
    layer(x.requires_grad_()).sum().backward()
    torch.autograd.grad(layer(x).sum(), x)
    assert asked == [(False, True), (True, True), (True, False)]


@pytest.mark.parametrize(
    "shape,out,options",
    (
        ((5, 16, 20, 20), 32, {"padding": 1}),
        ((1, 40, 64, 64), 9, {"stride": 2}),
        ((40, 3, 6, 6), 4, {"padding": 2, "dilation": 2}),
        ((2, 8, 16, 16), 8, {"groups": 4}),
    ),
    ids=str,
)
def test_threads_change_no_bit(shape: tuple[int, ...], out: int, options: dict[str, Any]) -> None:
    """1, 2 and 3 threads: the same bits."""
    layer = KANConv2d(shape[1], out, 3, **options)
    x = torch.randn(shape)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(step(layer, x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_double_backward_is_the_composed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradgradcheck through the kernel, in every operand; third derivatives equal the composed path's."""
    layer = made(2, kernel_size=2, stride=2, padding=1, spline_order=3, bias=True)
    x = (0.8 * torch.rand(2, 4, 4, 3, dtype=torch.float64) - 0.4).requires_grad_()

    def third() -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(second.sum(), [x, layer.spline_weight, layer.base_weight])

    def f(*operands: Tensor) -> Tensor:
        names = ("spline_weight", "base_weight", "bias")
        return torch.func.functional_call(layer, dict(zip(names, operands[1:], strict=True)), operands[:1])

    operands = (x, layer.spline_weight, layer.base_weight, layer.bias)
    assert torch.autograd.gradcheck(f, operands)
    assert torch.autograd.gradgradcheck(f, operands, fast_mode=True)
    got = third()
    compose(monkeypatch)
    for mine, true in zip(got, third(), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("compiler", ("aot_eager", pytest.param("inductor", marks=pytest.mark.long)))
def test_one_op_in_the_graph(memory: torch.memory_format, compiler: str) -> None:
    """torch.compile(fullgraph=True): forward and backward are one op each, with the same numbers."""
    layer = made(2, kernel_size=3, padding=1, stride=2, bias=True)
    x = image(2).to(memory_format=memory)
    torch._dynamo.reset()
    graphs = []

    def inspected(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        graphs.append(str(graph.code))
        return lookup_backend(compiler)(graph, inputs)

    got = step(torch.compile(layer, fullgraph=True, backend=inspected), x)
    assert len(graphs) == 1 and "kan_kernels.kan_conv" in graphs[0]
    for mine, true in zip(got, step(layer, x), strict=True):
        torch.testing.assert_close(mine, true)
        assert mine.stride() == true.stride()


def test_which_path_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` says it; another backend and a transform go the composed way."""
    layer = KANConv2d(4, 8, 3, groups=2)
    assert "a compiled kernel for cpu: a convolution" in kan_kernels.explain(layer)
    with kan_kernels.use_backend("reference"):
        assert "composed of kan_linear: the backend 'reference' has no kernel" in kan_kernels.explain(layer)
    calls = []
    true = conv_autograd.Convolution.forward
    monkeypatch.setattr(conv_autograd.Convolution, "forward", lambda *a: calls.append(a) or true(*a))
    x = torch.rand(2, 4, 5, 5)
    want = layer(x)
    assert len(calls) == 1
    torch.testing.assert_close(torch.func.vmap(layer)(x), want)
    assert len(calls) == 1


@pytest.mark.long
@pytest.mark.parametrize("isa", RUNNABLE[1:])
def test_narrower_instruction_sets(isa: str) -> None:
    """The same tests on every other width of vectors that this machine runs."""
    tests = "equals_the_oracle or special_values or kind_of_panel or boxes_and_windows or small_images"
    run_tests(__file__, tests, {"KAN_KERNELS_CPU_ISA": isa, "KAN_TEST_BACKENDS": "native"})


def test_empty_batches() -> None:
    """No image: gradients of the weights are zeros, in both layouts."""
    for groups in (1, 2):
        layer = made(2, kernel_size=3, padding=1, bias=True, groups=groups)
        y, dx, *gradients = step(layer, torch.empty(0, 4, *SIZES[2], dtype=torch.float64))
        assert y.shape == (0, 8, 9, 11) and dx.shape == (0, 4, 9, 11)
        for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
            assert gradient.shape == parameter.shape and not gradient.any()


def test_operands_made_of_each_other() -> None:
    """With create_graph each gradient stays a partial derivative: nothing is counted twice."""
    torch.manual_seed(0)
    layer = KANConv1d(2, 3, 3, dtype=torch.float64)
    x0, scale = torch.rand(2, 2, 7, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    found = []
    for create_graph in (False, True):
        x = x0.clone().requires_grad_()
        weight = layer.spline_weight.detach() * (1 + x.mean())
        y = kan_conv(x, weight, layer.grid, spline_order=3, base_weight=weight.sum(1), bias=scale * x.sum())
        found.append(torch.autograd.grad(y.square().sum(), x, create_graph=create_graph)[0].detach())
    torch.testing.assert_close(*found)


def test_second_order_in_the_precision_and_on_the_knots_of_the_forward_pass() -> None:
    """Under an autocast around the backward pass alone, and after the caller's knots were written into."""
    torch.manual_seed(0)
    layer = KANConv1d(2, 3, 3)
    knots = layer.grid.detach().clone()
    weight, base_weight = layer.spline_weight.detach().double(), layer.base_weight.detach().double()
    x = torch.rand(2, 2, 7, dtype=torch.float64, requires_grad=True)

    def y() -> Tensor:
        return kan_conv(x, weight, knots, spline_order=3, base_weight=base_weight).square().sum()

    (wanted,) = torch.autograd.grad(y(), x)
    loss = y()
    knots.mul_(1.5)
    torch.testing.assert_close(torch.autograd.grad(loss, x, create_graph=True)[0].detach(), wanted)
    single = torch.rand(2, 2, 7, requires_grad=True)
    (wanted,) = torch.autograd.grad(layer(single).square().sum(), single)
    loss = layer(single).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(loss, single, create_graph=True)
    torch.testing.assert_close(got.detach(), wanted)


@pytest.mark.parametrize("shape", [(2, 8, 3, 0), (2, 8, 0, 3)], ids=["no outputs", "no taps"])
def test_nothing_to_learn(shape: tuple[int, ...]) -> None:
    knots = torch.arange(12.0).expand(2, -1)
    with pytest.raises(ValueError, match=r"spline_weight: got shape .*, expected at least one tap"):
        kan_conv(torch.rand(1, 2, 6), torch.rand(shape), knots, spline_order=3, base=None)
