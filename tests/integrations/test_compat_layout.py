"""The one-pass layout of scaled weights: values, gradients of any order, and gradients that need no copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kan_kernels.integrations._shared import layout


def leaves() -> tuple[Tensor, Tensor]:
    """A weight (out, in, G+k) and a scale (out, in), as efficient-kan has them."""
    return (
        torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 3, dtype=torch.float64, requires_grad=True),
    )


@pytest.fixture(params=[0, 2**40], ids=["one pass", "composed"])
def _threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SMALL", request.param)


@pytest.mark.usefixtures("_threshold")
def test_value_and_gradients() -> None:
    """Contiguous; second order too, each argument alone too."""
    weight, scale = leaves()

    def function(weight: Tensor, scale: Tensor) -> Tensor:
        return layout.scaled(weight.permute(1, 2, 0), scale.t())

    out = function(weight, scale)
    assert out.is_contiguous()
    assert torch.equal(out, (weight * scale[..., None]).permute(1, 2, 0))
    assert torch.autograd.gradcheck(function, (weight, scale))
    assert torch.autograd.gradgradcheck(function, (weight, scale))
    assert torch.autograd.gradcheck(function, (weight.detach(), scale))
    assert torch.autograd.gradcheck(function, (weight, scale.detach()))
    with torch.no_grad():
        assert torch.equal(function(weight, scale), out)


def test_gradient_has_the_strides_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes .grad as it is, where another layout would be copied."""
    monkeypatch.setattr(layout, "_SMALL", 0)
    weight, scale = leaves()
    out = layout.scaled(weight.permute(1, 2, 0), scale.t())
    (grad,) = torch.autograd.grad(out.sin().sum(), weight)
    assert grad.is_contiguous()
    composed = (weight.permute(1, 2, 0) * scale.t().unsqueeze(1)).contiguous()
    torch.testing.assert_close(grad, torch.autograd.grad(composed.sin().sum(), weight)[0])


SIZES = ((256, 40, 8), (17, 300, 8), (16, 3000, 1), (1, 4096, 9), (33, 65, 600), (130, 7, 37))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel(sizes: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled library's pass is torch's to the bit, but for the order of a scale's sum."""
    monkeypatch.setattr(layout, "_SMALL", 0)
    weight, scale = torch.randn(sizes, dtype=dtype), torch.randn(sizes[:2], dtype=dtype)
    weight[-1, -1, -1], scale[0, 0] = float("nan"), float("inf")
    weight.requires_grad_(), scale.requires_grad_()
    assert layout._by_kernel(weight.permute(1, 2, 0), scale.t())
    out = layout.scaled(weight.permute(1, 2, 0), scale.t())
    composed = (weight * scale[..., None]).permute(1, 2, 0)
    torch.testing.assert_close(out, composed, rtol=0, atol=0, equal_nan=True)
    g = torch.randn(out.shape, dtype=dtype)
    d_weight, d_scale = torch.autograd.grad(out, (weight, scale), g)
    wanted = torch.autograd.grad(composed, (weight, scale), g)
    torch.testing.assert_close(d_weight, wanted[0], rtol=0, atol=0, equal_nan=True)
    size = (weight * g.permute(2, 0, 1)).detach().abs().sum(2).nan_to_num()
    bound = size * sizes[2] * torch.finfo(dtype).eps
    assert ((d_scale - wanted[1]).abs() <= bound)[~wanted[1].isnan()].all()
    assert torch.equal(d_scale.isnan(), wanted[1].isnan())


def test_kernel_takes_only_its_own() -> None:
    """Other layouts and dtypes are torch's; the op itself says what it wants."""
    scale, half, wide = torch.randn(3, 4), torch.bfloat16, torch.float64
    assert not layout._by_kernel(torch.randn(3, 5, 4), scale)
    assert not layout._by_kernel(torch.randn(4, 3, 5, dtype=half).permute(1, 2, 0), scale.to(half))
    assert not layout._by_kernel(torch.randn(4, 3, 5, dtype=wide).permute(1, 2, 0), scale)
    op = torch.ops.kan_kernels
    weight, scale = torch.randn(4, 3, 5), torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="scale"):
        op.edge_scale(weight, scale.t())
    with pytest.raises(RuntimeError, match="g"):
        op.edge_scale_backward(weight, scale, weight, True, True)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        op.edge_scale(weight.half(), scale.half())


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_kernel_registration(wanted: tuple[bool, bool]) -> None:
    """Shapes and strides of the ops under torch.compile's fake tensors."""
    weight, scale, g = torch.randn(4, 3, 5), torch.randn(4, 3), torch.randn(3, 5, 4)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.kan_kernels.edge_scale.default, (weight, scale), test_utils=tests)
    arguments = (weight, scale, g, *wanted)
    torch.library.opcheck(torch.ops.kan_kernels.edge_scale_backward.default, arguments, test_utils=tests)


@pytest.mark.usefixtures("_threshold")
def test_transforms() -> None:
    """vmap over the rows of a loss, and forward mode."""
    weight, scale = (leaf.detach() for leaf in leaves())

    def function(weight: Tensor, scale: Tensor) -> Tensor:
        return layout.scaled(weight.permute(1, 2, 0), scale.t())

    many = torch.func.vmap(function)(torch.stack([weight, 2 * weight]), torch.stack([scale, scale]))
    torch.testing.assert_close(many[1], 2 * many[0])
    value, tangent = torch.func.jvp(lambda s: function(weight, s), (scale,), (scale,))
    torch.testing.assert_close(value, tangent)


@pytest.mark.usefixtures("_threshold")
def test_batches_of_cotangents() -> None:
    """One backward for many cotangents, by each way torch has: the rows of the Jacobian."""
    weight, scale = leaves()

    def function(weight: Tensor, scale: Tensor) -> Tensor:
        return layout.scaled(weight.permute(1, 2, 0), scale.t()).flatten()[:7]

    want = torch.autograd.functional.jacobian(function, (weight, scale))
    many = torch.autograd.functional.jacobian(function, (weight, scale), vectorize=True)
    y, eye = function(weight, scale), torch.eye(7, dtype=torch.float64)
    batched = torch.autograd.grad(y, (weight, scale), eye, is_grads_batched=True, retain_graph=True)
    mapped = torch.vmap(lambda g: torch.autograd.grad(y, (weight, scale), g, retain_graph=True))(eye)
    for got in (many, batched, mapped):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
