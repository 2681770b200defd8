"""Differentiation: gradcheck to third order, one pass against separate kernels, partial gradients, PINN
training.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cases import BASE_CODE, Case, build
from harness import DEVICE
from kan_kernels import KAN, KANLinear
from kan_kernels import functional as F
from knots_and_points import make_grid

F64 = torch.float64


def leaves(
    order: int, base: str | None, bias: bool, knots: str = "adaptive", batch: int = 3
) -> dict[str, Any]:
    """Small float64 tensors for kan_linear, each a leaf that requires grad, x far enough from the knots."""
    inputs = build(Case(batch, 2, 3, 3, order, 0, knots, "inside", F64, base=base, bias=bias), DEVICE)
    x, grid = inputs.x * 0.9, inputs.grid
    for _ in range(9):  # finite differences must not step over a knot, where a derivative may jump
        near = (x.unsqueeze(-1) - grid).abs().amin(-1) < 1e-3
        x = torch.where(near, x + 4e-3, x)
    tensors = {
        "x": x,
        "spline_weight": inputs.spline_weight,
        "base_weight": inputs.base_weight,
        "bias": inputs.bias,
    }
    return {
        "grid": grid,
        **{k: None if t is None else t.clone().requires_grad_() for k, t in tensors.items()},
    }


def call(t: dict[str, Any], order: int, base: str | None, backend: str) -> Tensor:
    return F.kan_linear(
        t["x"], t["spline_weight"], t["grid"], spline_order=order, base_weight=t["base_weight"], base=base,
        bias=t["bias"], backend=backend,
    )  # fmt: skip


def as_function(
    t: dict[str, Any], order: int, base: str | None, backend: str
) -> tuple[Any, tuple[Tensor, ...]]:
    """kan_linear as a function of its tensors alone, and those tensors."""
    names = [k for k, v in t.items() if k != "grid" and v is not None]

    def function(*a: Tensor) -> Tensor:
        return call({**t, **dict(zip(names, a, strict=True))}, order, base, backend)

    return function, tuple(t[k] for k in names)


SETUPS = [(3, "silu", True), (2, "identity", False), (5, "silu", False), (4, None, True), (3, None, False)]


@pytest.mark.parametrize("order,base,bias", [*SETUPS, (1, "silu", True), (10, "silu", False)])
def test_gradcheck(backend: str, order: int, base: str | None, bias: bool) -> None:
    """First derivatives with respect to every tensor."""
    for knots in ("uniform", "adaptive", "clamped"):
        function, tensors = as_function(leaves(order, base, bias, knots), order, base, backend)
        assert gradcheck(function, tensors, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order,base,bias", SETUPS)
def test_gradgradcheck(backend: str, order: int, base: str | None, bias: bool) -> None:
    """Second derivatives with respect to every tensor and the cotangent."""
    function, tensors = as_function(leaves(order, base, bias), order, base, backend)
    assert gradgradcheck(function, tensors, atol=1e-5, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("order,base,bias", [(4, "silu", True), (5, None, False), (3, "identity", False)])
def test_third_order(backend: str, order: int, base: str | None, bias: bool) -> None:
    """Third derivatives: gradgradcheck of the gradient itself, cotangent included."""
    t = leaves(order, base, bias, batch=2)
    function, tensors = as_function(t, order, base, backend)

    def gradient(g: Tensor, *a: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*a), a, g, create_graph=True)

    g = torch.randn(2, 3, dtype=F64, device=DEVICE, requires_grad=True)
    assert gradgradcheck(gradient, (g, *tensors), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("depth", (1, 2, 3, 4, 5))
def test_nested_derivatives(backend: str, depth: int) -> None:
    """d^m y / dx^m by nested autograd is the basis' own m-th derivative, past the order as well."""
    t = leaves(3, "silu", False, batch=20)
    y = call(t, 3, "silu", backend)[:, 1].sum()
    for _ in range(depth):
        (d,) = torch.autograd.grad(y, t["x"], create_graph=True)
        y = d.sum()
    phi = F.bspline_basis(t["x"].detach(), t["grid"], 3, depth)
    import oracle

    want = torch.einsum("bir,ir->bi", phi, t["spline_weight"][..., 1].detach())
    base = oracle.base(t["x"].detach().cpu(), 1, depth).to(DEVICE)
    want = want + base * t["base_weight"][:, 1].detach()
    torch.testing.assert_close(d, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("derivatives", (2, 3))
def test_pinn_training_gradient(fused: str, derivatives: int) -> None:
    """A residual with second or third derivatives of a two-layer KAN trains on every backend as on the
    reference.
    """
    torch.manual_seed(3)
    net = KAN([2, 4, 1], 5, 4, dtype=F64, device=DEVICE)
    x = (torch.rand(40, 2, dtype=F64, device=DEVICE) * 1.6 - 0.8).requires_grad_()

    def train_gradient(backend: str) -> list[Tensor]:
        import kan_kernels

        net.zero_grad()
        with kan_kernels.use_backend(backend):
            u = net(x)
            d = u.sum()
            for _ in range(derivatives):
                (du,) = torch.autograd.grad(d, x, create_graph=True)
                d = du[:, 0].sum() + (du[:, 1].sum() if _ == 0 else 0.0)
            loss = (du[:, 0] + u[:, 0].sin()).square().mean()
            loss.backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    got, want = train_gradient(fused), train_gradient("reference")
    assert len(got) == len(want) == len(list(net.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("base", (None, "silu"))
def test_every_pattern_of_needed_gradients(backend: str, base: str | None) -> None:
    """Any subset of tensors may require grad: the same gradients as with all, and None for the others."""
    t = leaves(3, base, True, batch=5)
    names = [k for k, v in t.items() if k != "grid" and v is not None]
    g = torch.randn(5, 3, dtype=F64, device=DEVICE)
    grads = torch.autograd.grad(call(t, 3, base, backend), [t[k] for k in names], g)
    everything = dict(zip(names, grads, strict=True))
    for pattern in itertools.product((False, True), repeat=len(names)):
        part = dict(t)
        for k, need in zip(names, pattern, strict=True):
            part[k] = t[k].detach().clone().requires_grad_(need)
        y = call(part, 3, base, backend)
        assert y.requires_grad is any(pattern)
        if any(pattern):
            y.backward(g)
        for k, need in zip(names, pattern, strict=True):
            if need:
                torch.testing.assert_close(part[k].grad, everything[k], rtol=1e-12, atol=1e-12)
            else:
                assert part[k].grad is None, k


@pytest.mark.parametrize("frozen", ("first", "last", "weights", "base"))
def test_frozen_layers(backend: str, frozen: str) -> None:
    """Freezing some parameters changes no gradient of the rest."""
    torch.manual_seed(1)
    net = KAN([3, 5, 4, 2], backend=backend, dtype=F64, device=DEVICE)
    x = torch.rand(9, 3, dtype=F64, device=DEVICE) * 2 - 1
    net(x).square().sum().backward()
    want = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    chosen = {
        "first": lambda name: name.startswith("layers.0"), "last": lambda name: name.startswith("layers.2"),
        "weights": lambda name: "spline_weight" in name, "base": lambda name: "base_weight" in name,
    }[frozen]  # fmt: skip
    for name, p in net.named_parameters():
        p.requires_grad_(not chosen(name))
    net(x).square().sum().backward()
    assert any(chosen(name) for name in want) and len(want) == 6
    for name, p in net.named_parameters():
        if chosen(name):
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, want[name], rtol=1e-12, atol=1e-12)


def test_graph_is_kept_and_freed(backend: str) -> None:
    """retain_graph accumulates; without it the second backward is an error; gradients accumulate over
    calls.
    """
    t = leaves(3, "silu", True)
    y = call(t, 3, "silu", backend)
    y.sum().backward(retain_graph=True)
    once = t["x"].grad.clone()
    y.sum().backward()
    torch.testing.assert_close(t["x"].grad, 2 * once, rtol=1e-14, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_inplace_change_is_detected(backend: str) -> None:
    """A weight changed in place between forward and backward is an error, never a silently wrong gradient."""
    t = leaves(3, "silu", False)
    y = call(t, 3, "silu", backend)
    with torch.no_grad():
        t["spline_weight"].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saves_little(fused: str) -> None:
    """What autograd keeps is x and the weights: nothing of size B I G or B I O."""
    layer = KANLinear(24, 40, 20, backend=fused, device=DEVICE)
    x = torch.randn(500, 24, device=DEVICE, requires_grad=True)
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sizes and max(sizes) <= max(x.numel(), layer.spline_weight.numel())
    assert sum(sizes) <= 2 * x.numel() + 2 * sum(p.numel() for p in layer.parameters()) + layer.grid.numel()


@pytest.mark.parametrize("layout", ("transposed", "expanded", "sliced"))
def test_strided_tensors_train(backend: str, layout: str) -> None:
    """Non-contiguous leaves and a cotangent of stride 0 give the gradients of their contiguous copies."""
    case = Case(12, 3, 4, dtype=F64, layout=layout)
    inputs = build(case, DEVICE)
    grads = []
    for copy in (lambda v: v.detach(), lambda v: v.detach().clone(memory_format=torch.contiguous_format)):
        x, c, w = (copy(v).requires_grad_() for v in (inputs.x, inputs.spline_weight, inputs.base_weight))
        y = F.kan_linear(x, c, copy(inputs.grid), spline_order=3, base_weight=w, backend=backend)
        grads.append(torch.autograd.grad(y.sum(), [x, c, w]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_empty_batch_backward(backend: str) -> None:
    """B = 0: weight gradients are zero, not garbage and not None."""
    layer = KANLinear(3, 4, backend=backend, bias=True, device=DEVICE)
    x = torch.empty(0, 3, device=DEVICE, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 3)
    for p in layer.parameters():
        assert p.grad is not None and p.grad.shape == p.shape and not bool(p.grad.any())


def test_codes_are_those_of_the_schema() -> None:
    """The table's base codes are the package's own."""
    assert BASE_CODE == {None: 0, "silu": 1, "identity": 2}
    grid = make_grid("uniform", 2, 5, 3, torch.Generator())
    assert KANLinear(2, 1, dtype=F64).grid.allclose(grid)
