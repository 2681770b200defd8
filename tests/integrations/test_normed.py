"""FastKAN's small layer in one op: values, gradients of any order, bits, transforms, and who gets it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from benchmarks.basis_forms import FastKANLayer
from harness import check_same_bits, poisoned_memory
from kan_kernels import use_backend
from kan_kernels._core.problem import Problem
from kan_kernels._engine import layer_norm_rbf
from kan_kernels.backends import native
from kan_kernels.integrations import accelerate, explain, fast_kan

F32, F64 = torch.float32, torch.float64
# batch, in, out, functions: one lane, past a block of rows, rows that are split, as wide as it goes
SIZES = (
    (1000, 2, 5, 8), (1, 3, 1, 4), (0, 3, 2, 4), (17, 5, 8, 3), (257, 64, 8, 5), (5000, 2, 3, 20),
    (2100, 9, 7, 2), (40, 4, 6, 200), (33, 7, 4, 1),
)  # fmt: skip


def arguments(
    sizes: tuple[int, ...], base: str | None, dtype: torch.dtype = F64, affine: bool = True
) -> list[Any]:
    """Of `layer_norm_rbf`, random; x has a spread, so that its norm is well conditioned."""
    batch, fan_in, fan_out, functions = sizes
    gen = torch.Generator().manual_seed(sum(sizes))

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=F64).to(dtype)

    x = made(batch, fan_in) + 3 * torch.linspace(-1, 1, fan_in, dtype=dtype)
    centres = torch.linspace(-2, 2, functions, dtype=dtype).repeat(fan_in, 1)
    grid = torch.cat([centres + 0.1 * made(fan_in, functions), 0.5 + made(fan_in, 1).abs()], 1)
    scale, shift = (made(fan_in), made(fan_in)) if affine else (None, None)
    base_weight, bias = (made(fan_out, fan_in), made(fan_out)) if base else (None, None)
    return [x, scale, shift, made(fan_out, fan_in * functions), base_weight, bias, grid, 1e-3, base, native]


def plainly(x, scale, shift, spline_weight, base_weight, bias, grid, epsilon, base, _) -> Tensor:
    """The same in plain torch, step by step."""
    centred = x - x.mean(1, keepdim=True)
    z = centred / (centred.square().mean(1, keepdim=True) + epsilon).sqrt()
    z = z if scale is None else z * scale + shift
    t = (z.unsqueeze(-1) - grid[:, :-1]) / grid[:, -1:]
    y = torch.exp(-t * t).flatten(1) @ spline_weight.t()
    if base is not None:
        y = y + (x * torch.sigmoid(x) if base == "silu" else x) @ base_weight.t()
    return y if bias is None else y + bias


def leaves(args: list[Any]) -> tuple[list[Any], list[Tensor]]:
    """The arguments with all but the grid as leaves, and those."""
    args = [a.clone().requires_grad_() if isinstance(a, Tensor) and n != 6 else a for n, a in enumerate(args)]
    return args, [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def first(function: Any, args: list[Any]) -> list[Tensor]:
    """y and the gradients of all arguments, for a fixed cotangent."""
    args, wanted = leaves(args)
    y = function(*args)
    g = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, wanted, g)]


def magnitudes(args: list[Any]) -> list[float]:
    """What roundings of y and of the gradients scale with: of sums over the rows, the sum of all sizes."""
    x, *rest = leaves(args)[0]
    y = plainly(x, *rest)
    g = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    places = [n for n, a in enumerate(rest) if isinstance(a, Tensor) and a.requires_grad]

    def of_row(row: Tensor, cotangent: Tensor, *some: Tensor) -> Tensor:
        full = list(rest)
        for n, value in zip(places, some, strict=True):
            full[n] = value
        return (plainly(row[None], *full)[0] * cotangent).sum()

    each = torch.func.vmap(
        torch.func.grad(of_row, tuple(range(2, 2 + len(places)))), (0, 0, *(None for _ in places))
    )(x.detach(), g, *(rest[n].detach() for n in places))
    whole = [y, torch.autograd.grad(y, x, g)[0]]
    return [float(t.abs().max()) for t in whole] + [float(t.abs().sum(0).max()) for t in each]


@pytest.mark.parametrize("base", (None, "silu", "identity"))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(sizes: tuple[int, ...], base: str | None) -> None:
    """Against plain torch in float64; float32 at most twice as far from it as plain float32, and 16 eps of
    what is summed up.
    """
    for affine in (True, False):
        wide = arguments(sizes, base, affine=affine)
        narrow = [a.float() if isinstance(a, Tensor) else a for a in wide]
        rounded = [a.double() if isinstance(a, Tensor) else a for a in narrow]
        with poisoned_memory():
            double, single = (
                first(layer_norm_rbf.layer_norm_rbf, wide),
                first(layer_norm_rbf.layer_norm_rbf, narrow),
            )
        truth, plain = first(plainly, rounded), first(plainly, narrow)
        for got, want in zip(double, first(plainly, wide), strict=True):
            size = float(want.abs().amax()) if want.numel() else 0.0
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * max(1.0, size))
        if sizes[0] == 0:
            continue
        for got, want, other, size in zip(single, truth, plain, magnitudes(rounded), strict=True):
            error = 2 * float((other - want).abs().max()) + 16 * torch.finfo(F32).eps * size
            assert float((got - want).abs().max()) <= error


def test_not_finite() -> None:
    """A row with NaN or infinities is lost, and with it the gradients of the weights; no other row is."""
    for bad in (torch.nan, torch.inf, -torch.inf):
        args = arguments((300, 4, 3, 5), "silu")
        args[0][7, 2] = bad
        got, want = first(layer_norm_rbf.layer_norm_rbf, args), first(plainly, args)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
        assert got[0].isnan().any(1).nonzero().tolist() == [[7]]
    args = arguments((5, 3, 2, 4), None, affine=False)
    args[0][:], args[7] = 2.0, 0.0  # 0 / 0, as the layer norm has it
    assert layer_norm_rbf.layer_norm_rbf(*args).isnan().all()


@pytest.mark.parametrize("dtype", (F32, F64))
def test_same_bits(dtype: torch.dtype) -> None:
    """The same bits with 1, 2 and 3 threads."""
    for sizes in ((5000, 20, 5, 8), (100_000, 2, 5, 8)):
        args = arguments(sizes, "silu", dtype)
        check_same_bits(functools.partial(first, layer_norm_rbf.layer_norm_rbf, args))


@pytest.mark.parametrize("base", (None, "silu", "identity"))
def test_gradcheck(base: str | None) -> None:
    """First and second derivatives with respect to every tensor; a third order against plain torch."""
    args, wanted = leaves(arguments((4, 3, 2, 4), base))

    def function(*some: Tensor, call: Any = layer_norm_rbf.layer_norm_rbf) -> Tensor:
        rest = iter(some)
        return call(*(next(rest) if isinstance(a, Tensor) and a.requires_grad else a for a in args))

    assert gradcheck(function, wanted, atol=1e-6, rtol=1e-5)
    assert gradgradcheck(function, wanted, atol=1e-5, rtol=1e-4)
    thirds = []
    for call in (layer_norm_rbf.layer_norm_rbf, plainly):
        y = function(*wanted, call=call).square().sum()
        for _ in range(2):
            (d,) = torch.autograd.grad(y, args[0], create_graph=True)
            y = d.square().sum()
        thirds.append(torch.autograd.grad(y, wanted, allow_unused=True))
    for a, b in zip(*thirds, strict=True):
        assert (a is None or not a.any()) if b is None else True
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_some_gradients() -> None:
    """Of x alone, of all but x, and many cotangents at once."""
    args = arguments((20, 3, 2, 4), "silu")
    all_of_them = first(plainly, args)
    for only in range(6):
        some = [
            a.clone().requires_grad_(n == only) if isinstance(a, Tensor) else a for n, a in enumerate(args)
        ]
        y = layer_norm_rbf.layer_norm_rbf(*some)
        y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
        torch.testing.assert_close(some[only].grad, all_of_them[only + 1])
    args, wanted = leaves(args)
    y = layer_norm_rbf.layer_norm_rbf(*args)
    many = torch.randn(3, *y.shape, dtype=F64)
    together = torch.autograd.grad(y, wanted, many, is_grads_batched=True, retain_graph=True)
    for n, g in enumerate(many):
        for a, b in zip(together, torch.autograd.grad(y, wanted, g, retain_graph=True), strict=True):
            torch.testing.assert_close(a[n], b)


def test_op_checks() -> None:
    """torch's own checks of the op; its own words on what does not fit."""
    for affine in (True, False):
        args, _ = leaves(arguments((6, 3, 2, 4), "silu" if affine else None, affine=affine))
        args[8] = 1 if affine else 0
        torch.library.opcheck(torch.ops.kan_kernels.layer_norm_rbf, tuple(args[:9]))
    args = arguments((6, 3, 2, 4), "silu")
    for at, value, message in (
        (3, torch.ones(2, 13, dtype=F64), r"spline_weight has shape \(2, 13\), expected \(2, 12\)"),
        (3, torch.ones(9, 12, dtype=F64), "spline_weight has 9 rows, expected 1 to 8"),
        (4, None, "base_weight must be given"),
        (1, torch.ones(2, dtype=F64), "scale has shape"),
        (5, torch.ones(2), "bias must have x's dtype"),
        (6, torch.ones(3, 5), "grid must have x's dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer_norm_rbf.layer_norm_rbf(*args[:at], value, *args[at + 1 :])
    with pytest.raises(ValueError, match="width of feature 0"):
        layer_norm_rbf.layer_norm_rbf(*args[:6], torch.zeros(3, 5, dtype=F64), *args[7:])


def test_limits_are_the_ops() -> None:
    """What the backend says it can run, the op runs, and nothing else: the library is asked."""
    for fan_in, fan_out, dtype in ((64, 8, F64), (65, 8, F64), (64, 9, F32), (3, 2, torch.float16)):
        facts = {"functions": 4, "basis": "rbf", "op": "layer_norm_rbf"}
        reason = native.can_run(Problem("cpu", dtype, dtype, fan_in, fan_out, **facts))
        given = [
            a.to(dtype) if isinstance(a, Tensor) else a for a in arguments((5, fan_in, fan_out, 4), None)
        ]
        if reason is None:
            assert layer_norm_rbf.layer_norm_rbf(*given).shape == (5, fan_out) and fan_in == 64
        else:
            assert ("64 features" in reason) == (dtype != torch.float16)
            with pytest.raises(RuntimeError, match=r"expected 1 to|must be float32 or float64"):
                layer_norm_rbf.layer_norm_rbf(*given)


def layers(dtype: torch.dtype = F64, **options: Any) -> tuple[Any, Any]:
    """The peer's layer, and its accelerated copy."""
    torch.manual_seed(0)
    own = FastKANLayer(3, 4, num_grids=5, **options).to(dtype)
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    return own, fast


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the op was asked for."""
    count = [0]

    def counted(*args: Any, run: Any = layer_norm_rbf.layer_norm_rbf) -> Tensor:
        count[0] += 1
        result: Tensor = run(*args)
        return result

    monkeypatch.setattr(layer_norm_rbf, "layer_norm_rbf", counted)
    return count


def test_who_gets_it(calls: list[int]) -> None:
    """Accelerated layers and the drop-in; and those whose parts somebody watches, or has changed, do not."""
    own, fast = layers()
    calls[0] = 0  # a probe has been there
    x = torch.randn(2, 7, 3, dtype=F64)
    torch.testing.assert_close(fast(x), own(x))
    assert calls == [1] and "in one op" in explain(fast)
    drop_in = fast_kan.FastKANLayer(3, 4, num_grids=5).double()
    drop_in.load_state_dict(own.state_dict())
    torch.testing.assert_close(drop_in(x[0]), own(x[0]))
    assert calls == [2]
    seen = []
    watcher = fast.layernorm.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(fast(x), own(x))
    assert calls == [2] and seen == [1] and "in one op" not in explain(fast)
    watcher.remove()
    for name in ("reference", "native"):
        with use_backend(name):
            torch.testing.assert_close(fast(x), own(x))
    assert calls == [3]
    single = layers(F32)[1]
    calls[0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        single(x.float())
    assert calls == [0]
    for options in ({"base_activation": torch.sin}, {"use_layernorm": False}):
        own, fast = layers(**options)
        calls[0] = 0
        torch.testing.assert_close(fast(x), own(x))
        assert calls == [0], options
    wide = fast_kan.FastKANLayer(3, 9)
    wide(torch.randn(5, 3))
    assert calls == [0]


def test_transforms_and_compiling(calls: list[int]) -> None:
    """torch.func and forward mode come from the parts; torch.compile sees one op, and its gradients."""
    own, fast = layers()
    calls[0] = 0
    x, v = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (v,))[1],
        lambda f: torch.func.hessian(lambda row: f(row[None]).sum())(x[0]),
        lambda f: torch.func.vmap(lambda row: f(row[None]))(x),
    ):
        torch.testing.assert_close(transform(fast), transform(own))
    assert calls == [0]
    network = nn.Sequential(fast, FastKANLayer(4, 1).double())
    accelerate(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = []
    for f in (network, compiled):
        row = x.clone().requires_grad_()
        wanted = [row, *(p for p in network.parameters() if p.requires_grad)]
        results.append(torch.autograd.grad(f(row).square().sum(), wanted))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_operands_made_of_each_other() -> None:
    """With create_graph each gradient stays a partial derivative: nothing is counted twice."""
    torch.manual_seed(0)
    layer = fast_kan.FastKANLayer(4, 3).double()
    x0, weight = torch.rand(5, 4, dtype=F64), layer.spline_linear.weight.detach()
    found = []
    for create_graph in (False, True):
        x = x0.clone().requires_grad_()
        y = torch.func.functional_call(layer, {"spline_linear.weight": weight * (1 + x.mean())}, x)
        found.append(torch.autograd.grad(y.square().sum(), x, create_graph=create_graph)[0].detach())
    torch.testing.assert_close(*found)


def test_second_order_in_the_precision_of_the_forward_pass() -> None:
    """Under an autocast around the backward pass alone."""
    torch.manual_seed(0)
    layer, x = fast_kan.FastKANLayer(4, 3), torch.rand(5, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    loss = layer(x).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(got.detach(), wanted)


def test_another_shape_of_norm() -> None:
    """A layernorm over more than the features is not this op's."""
    torch.manual_seed(0)
    layer, x = fast_kan.FastKANLayer(4, 3), torch.rand(2, 5, 4)
    layer.layernorm = nn.LayerNorm((5, 4), elementwise_affine=False)
    got = layer(x)
    with use_backend("reference"):
        torch.testing.assert_close(got, layer(x))
