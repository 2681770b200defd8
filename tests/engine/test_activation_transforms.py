"""kan_activation under autograd, torch.func, torch.compile and torch.library: as kan_linear is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from activation_cases import OPS, arguments, build_activation
from cases import TABLE, Case
from kan_kernels import KANLinear, MultiHeadKANLinear, explain, use_backend
from kan_kernels import functional as F

BACKENDS = ("reference", "native")


def operands(heads: int = 2, features: int = 3, batch: int = 5) -> tuple[Tensor, ...]:
    """x, spline_weight, base_weight and grid, float64, leaves but for the grid."""
    gen = torch.Generator().manual_seed(0)
    shapes = (batch, features), (features, 8, heads), (features, heads)
    leaves = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in shapes]
    return *leaves, torch.linspace(-3.1, 3.2, 12, dtype=torch.float64).repeat(features, 1)


def activation(x: Tensor, weight: Tensor, base: Tensor, grid: Tensor, backend: str | None = None) -> Tensor:
    return F.kan_activation(x, weight, grid, spline_order=3, base_weight=base, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_three_orders(backend: str) -> None:
    """Gradients with respect to x and the weights, theirs, and theirs again, by finite differences."""
    x, weight, base, grid = operands()

    def call(x: Tensor, weight: Tensor, base: Tensor) -> Tensor:
        return activation(x, weight, base, grid, backend)

    assert torch.autograd.gradcheck(call, (x, weight, base), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, weight, base))

    def second(x: Tensor, weight: Tensor, base: Tensor) -> Tensor:
        first = torch.autograd.grad(call(x, weight, base).sin().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), (x, weight, base), create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (x, weight, base))


def test_derivative_is_what_autograd_finds() -> None:
    """`derivative=m` against m passes of autograd through the fused kernels."""
    x, weight, base, grid = operands(heads=1)
    v = activation(x, weight, base, grid)
    for m in range(1, 5):
        v = torch.autograd.grad(v.sum(), x, create_graph=True)[0].unsqueeze(-1)
        direct = F.kan_activation(x, weight, grid, spline_order=3, base_weight=base, derivative=m)
        torch.testing.assert_close(v, direct, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_agree_with_loops(backend: str) -> None:
    """vmap over rows, weights, both, and in two levels; jacobians and hessians in all modes."""
    x, weight, base, grid = (t.detach() for t in operands())

    def call(x: Tensor, weight: Tensor, base: Tensor) -> Tensor:
        return activation(x, weight, base, grid, backend)

    xs, weights, bases = (torch.stack([t, t.flip(0), 2 * t]) for t in (x, weight, base))
    loop = torch.stack([call(*one) for one in zip(xs, weights, bases, strict=True)])
    torch.testing.assert_close(vmap(call)(xs, weights, bases), loop)
    torch.testing.assert_close(
        vmap(call, (None, 0, 0))(x, weights, bases),
        torch.stack([call(x, *one) for one in zip(weights, bases, strict=True)]),
    )
    torch.testing.assert_close(
        vmap(call, (1, None, None))(xs.transpose(0, 1), weight, base),
        torch.stack([call(one, weight, base) for one in xs]),
    )
    both = vmap(vmap(call, (0, None, None)), (None, 0, 0))(xs, weights, bases)
    want = [[call(a, *one) for a in xs] for one in zip(weights, bases, strict=True)]
    torch.testing.assert_close(both, torch.stack([torch.stack(row) for row in want]))

    def loss(x: Tensor, weight: Tensor, base: Tensor) -> Tensor:
        return call(x, weight, base).pow(2).sum()

    for argnums in (0, 1):
        each = [grad(loss, argnums)(*one) for one in zip(xs, weights, bases, strict=True)]
        torch.testing.assert_close(vmap(grad(loss, argnums))(xs, weights, bases), torch.stack(each))
        forward = jacfwd(call, argnums)(x, weight, base)
        torch.testing.assert_close(forward, jacrev(call, argnums)(x, weight, base))
    direct = torch.autograd.functional.hessian(lambda x: loss(x, weight, base), x)
    torch.testing.assert_close(hessian(loss)(x, weight, base), direct)
    tangent = jvp(lambda w: call(x, w, base), (weight,), (weights[1],))[1]
    torch.testing.assert_close(tangent, call(x, weights[1], torch.zeros_like(base)))


@pytest.mark.parametrize("op", OPS)
def test_library_manners(op: str) -> None:
    """opcheck on a part of the table; the fake kernel's shapes, dtypes and strides on all of it."""
    overload = getattr(torch.ops.kan_kernels, OPS[op])
    plain = [c for c in TABLE if c.points not in ("nan", "inf")]
    for case in [*plain[::150], Case(0, 3, 4), Case(7, 5, 3, base=None)]:
        torch.library.opcheck(overload, arguments(op, build_activation(case)))
    for case in TABLE[::14]:
        args = arguments(op, build_activation(case))
        meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        for real, fake in zip(*(_all(overload(*a)) for a in (args, meta)), strict=True):
            assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def _all(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


def test_compiled_training_step() -> None:
    """A compiled layer has one graph, and the gradients of the eager one."""
    torch._dynamo.reset()
    layer = MultiHeadKANLinear(6, 4, 2)
    x = torch.randn(9, 6, requires_grad=True)
    names, leaves = zip(*layer.named_parameters(), strict=True)
    want = torch.autograd.grad(layer(x).square().sum(), (x, *leaves))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), (x, *leaves))
    for name, a, b in zip(("x", *names), got, want, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_ensemble_of_layers() -> None:
    """torch.func.stack_module_state with vmap: the layers side by side in one call."""
    layers = [MultiHeadKANLinear(5, 6, 3, dtype=torch.float64) for _ in range(3)]
    x = torch.randn(4, 5, dtype=torch.float64)
    state = torch.func.stack_module_state(layers)  # type: ignore[arg-type]
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(*state)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))


def test_dispatch_says_what_runs() -> None:
    """The library's kernel on the CPU by itself; plain torch, with the reason, where a backend has none."""
    assert "native" in explain((4, 2), op="kan_activation")
    said = explain((4, 2), op="kan_activation", backend="triton")
    assert "reference: plain torch" in said or "cannot run" in said
    x, weight, base, grid = operands()
    with use_backend("reference"):
        want = activation(x, weight, base, grid)
    torch.testing.assert_close(activation(x, weight, base, grid), want)
    assert "2 heads" in explain(MultiHeadKANLinear(4, 6, 2))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_keeps_x(dtype: torch.dtype) -> None:
    """Under autocast the operands are 16 bits and x locates its cell in float32, as in KANLinear."""
    layer, single = MultiHeadKANLinear(6, 4, 4), KANLinear(6, 4)
    with torch.no_grad():
        single.spline_weight.copy_(layer.edge_weights()[0])
        single.base_weight.copy_(layer.edge_weights()[1])  # type: ignore[union-attr]
    x = torch.randn(50, 6)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), single(x), rtol=0.03, atol=0.03)
