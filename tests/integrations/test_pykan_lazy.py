"""The dense results of an accelerated KANLayer, computed when read: values and gradients for every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kan_kernels.integrations.pykan.lazy import LazyTensor
from pykan_cases import room, same, same_parameters, twins  # noqa: F401


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * t for t in tensors)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * t for t in g)


def hooked(layer: nn.Module) -> Callable[[Tensor], Any]:
    layer.register_full_backward_hook(lambda module, inputs, outputs: None)
    return layer


WAYS: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "plain": lambda layer: layer,
    "backward hook": hooked,
    "reentrant checkpoint": lambda layer: lambda x: checkpoint(layer, x, use_reentrant=True),
    "checkpoint": lambda layer: lambda x: checkpoint(layer, x, use_reentrant=False),
    "Function": lambda layer: lambda x: Twice.apply(*layer(x)),
    "two Functions": lambda layer: lambda x: Twice.apply(*checkpoint(layer, x, use_reentrant=True)),
    "distributed": lambda layer: nn.parallel.DistributedDataParallel(layer, find_unused_parameters=True),
}


def check(way: str, loss: Callable[..., Tensor]) -> None:
    """Values, and the loss's gradients with respect to x and all parameters."""
    layers, results = [model.act_fun[0] for model in twins()], []
    for layer in layers:
        x = torch.linspace(-1.5, 1.5, 20).view(10, 2).requires_grad_()
        call = WAYS[way](layer)
        outs = call(x)
        assert all(out.requires_grad for out in outs)
        loss(*outs).backward()
        results.append((*(out.detach() for out in outs), x.grad))
    for one, other in zip(*reversed(results), strict=True):
        same(one, other, way)
    assert layers[0].coef.grad.norm() > 0.1
    same_parameters(layers[1], layers[0], gradients=True)


def group(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)


@pytest.mark.parametrize("way", WAYS)
def test_gradients(way: str, tmp_path: Path) -> None:
    """Also through autograd Functions, which look at the object and not at its values."""
    if way == "distributed":
        group(tmp_path)
    try:
        check(way, lambda y, pre, post, spline: y.sum() + post.square().sum())
        check(way, lambda y, pre, post, spline: post.square().sum())
        check(way, lambda y, pre, post, spline: (y.unsqueeze(2) * pre * post.sin() * spline).sum())
    finally:
        if way == "distributed":
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["plain", "backward hook", "Function"])
def test_second_order(way: str) -> None:
    layers, results = [model.act_fun[0] for model in twins()], []
    for layer in layers:
        x = torch.linspace(-1.5, 1.5, 20).view(10, 2).requires_grad_()
        _, _, post, spline = WAYS[way](layer)(x)
        (slope,) = torch.autograd.grad((post.square() * spline).sum(), x, create_graph=True)
        slope.square().sum().backward()
        results.append((slope, x.grad))
    for one, other in zip(*reversed(results), strict=True):
        same(one, other, way, 1e-9)
    same_parameters(layers[1], layers[0], 1e-9, gradients=True)


def test_many_gradients_at_once() -> None:
    """is_grads_batched, through a Function and not."""
    layers, results = [model.act_fun[0] for model in twins()], []
    for layer in layers:
        post = layer(torch.linspace(-1, 1, 20).view(10, 2))[2]
        g = torch.linspace(0, 1, 3 * post.numel()).view(3, *post.shape)
        for out in (Twice.apply(post)[0], post):
            results.append(torch.autograd.grad(out, layer.coef, g, True, is_grads_batched=True)[0])
    same(results[2], results[0], "through a Function")
    same(results[3], results[1], "plain")


def test_written_into() -> None:
    """In place is as on any tensor; a Function afterwards would take the old way, and raises."""
    want, got = (model.act_fun[0] for model in twins())
    x = torch.linspace(-1, 1, 20).view(10, 2)
    for layer in (want, got):
        post = layer(x)[2]
        post.mul_(3.0)
        post.square().sum().backward()
    same_parameters(got, want, gradients=True)
    post = got(x)[2]
    post.mul_(3.0)
    with pytest.raises(RuntimeError, match="was written into and passed to an autograd Function"):
        Twice.apply(post)[0].sum().backward()


def test_first_read_elsewhere() -> None:
    """In inference_mode or no_grad: whoever reads it next trains as if nobody had."""
    want, got = (model.act_fun[0] for model in twins())
    x = torch.linspace(-1, 1, 20).view(10, 2)
    _, _, post, spline = got(x)
    with torch.inference_mode():
        assert post.sum().isfinite()
    with torch.no_grad():
        assert spline.sum().isfinite()
    (post * spline).sum().backward()
    _, _, post, spline = want(x)
    (post * spline).sum().backward()
    same_parameters(got, want, gradients=True)


def test_lazy_tensor() -> None:
    """It is built once, in the grad mode it was made in, and any function of torch sees the values."""
    calls = []
    a = torch.arange(6.0).view(2, 3).requires_grad_()

    def build(t: Tensor) -> Tensor:
        calls.append(1)
        return t * 2

    lazy: Any = LazyTensor((2, 3), build, a)
    assert lazy.shape == (2, 3) and lazy.dim() == 2 and lazy.dtype == a.dtype and not calls
    with torch.no_grad():
        assert lazy.tolist() == [[0, 2, 4], [6, 8, 10]]
    (lazy + lazy[0]).sum().backward()
    assert calls == [1] and type(lazy * 1) is Tensor and a.grad is not None
    assert torch.cat([lazy, lazy]).shape == (4, 3) and lazy.requires_grad and "2." in repr(lazy)
    assert type(torch.stack((lazy, a))) is Tensor and (lazy.detach().numpy() == 2 * a.detach().numpy()).all()


class Makes(torch.autograd.Function):
    """A Function that returns a lazy tensor, as a reentrant checkpoint does."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return LazyTensor((2, 3), torch.square, t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "grad": lambda t: torch.func.grad(lambda x: (x * x * t).sum())(torch.ones(3)),
    "vmap": lambda t: torch.func.vmap(lambda x: x * t)(torch.ones(4, 3)),
    "jvp": lambda t: torch.func.jvp(lambda x: x * x * t, (torch.ones(3),), (torch.ones(3),))[1],
    "hessian": lambda t: torch.func.hessian(lambda x: (x * x * t).sum())(torch.ones(3)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_read_inside_of_torch_func(name: str) -> None:
    """What was made before a transform is its constant, with its own gradient, a Function's too."""
    a = torch.arange(1.0, 7.0).view(2, 3).requires_grad_()
    squares = a.detach().square().requires_grad_()
    want = TRANSFORMS[name](squares)
    (of_squares,) = torch.autograd.grad(want.sum(), squares)
    for lazy, slope in ((LazyTensor((2, 3), torch.square, a), 2 * a.detach()), (Makes.apply(a), 3.0)):
        got = TRANSFORMS[name](lazy)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), a)[0], slope * of_squares)
    with pytest.raises(RuntimeError, match="computed when read: pass it times 1"):
        torch.func.vmap(torch.sin)(LazyTensor((2, 3), torch.square, a.detach()))
