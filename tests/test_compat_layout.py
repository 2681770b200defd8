"""The one-pass layout of scaled weights: values, gradients of any order, and gradients that need no copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kan_kernels.compat import layout


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
