"""Statistics of edges under torch.func, forward mode, fake tensors and inference mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian

from harness import DEVICE
from kan_kernels import functional as F
from kan_kernels import use_backend
from kan_kernels.backends.reference import moments as plain

F64 = torch.float64
KNOTS = torch.linspace(-2, 2, 12, dtype=F64, device=DEVICE).repeat(3, 1)
Results = tuple[Tensor, ...]


def moments(x: Tensor, weight: Tensor, base_weight: Tensor) -> Results:
    return F.edge_moments(x, weight, KNOTS, spline_order=3, base_weight=base_weight)


def l1(x: Tensor, weight: Tensor, base_weight: Tensor) -> Results:
    return (F.edge_l1(x, weight, KNOTS, spline_order=3, base_weight=base_weight),)


def gram(x: Tensor, weight: Tensor, base_weight: Tensor) -> Results:
    """Of x alone; the others take part so that all three have the same arguments."""
    return (F.basis_gram(x, KNOTS, 3) * weight.sum() * base_weight.sum(),)


def arguments() -> Results:
    shapes = (12, 3), (3, 8, 2), (3, 2)
    return tuple(torch.randn(shape, dtype=F64, device=DEVICE) for shape in shapes)


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("function", (moments, l1, gram))
@pytest.mark.parametrize("backend", (None, "reference"))
def test_transforms(backend: str | None, function: Callable[..., Results]) -> None:
    """Forward mode, reverse mode in batches and vmap agree with plain backward, for x and the weights."""
    given = arguments()
    with use_backend(backend):
        want = jacobian(function, given)
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            close(transform(function, argnums=(0, 1, 2))(*given), want)
        for create in (False, True):
            close(jacobian(function, given, vectorize=True, create_graph=create), want)
        directions = arguments()
        tangents = torch.func.jvp(function, given, directions)[1]
        for tangent, row in zip(tangents, want, strict=True):
            close(tangent, sum(torch.tensordot(j, d, d.dim()) for j, d in zip(row, directions, strict=True)))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(given, directions, strict=True)]
            close([forward_ad.unpack_dual(r).tangent for r in function(*duals)], list(tangents))
        x, *weights = given
        both = torch.func.vmap(lambda x: function(x, *weights))(torch.stack([x, 0.5 * x]))
        close([t[1] for t in both], list(function(0.5 * x, *weights)))

        def total(x: Tensor) -> Tensor:
            return torch.stack([r.sum() for r in function(x, *weights)]).sum()

        close(torch.func.hessian(total)(x), hessian(total, x))


def trained() -> Tensor:
    """The gradient of x by a backward pass through the moments."""
    x, weight, base_weight = (t.requires_grad_() for t in arguments())
    mean, std = moments(x, weight, base_weight)
    (mean.sum() + std.sum()).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("fake_first", (False, True))
def test_fake_tensors(fake_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with fake tensors and one with real ones do not get in each other's way, whichever is first."""
    monkeypatch.setattr(plain, "_known_places", {})
    for fake in (fake_first, not fake_first, fake_first):
        if fake:
            with FakeTensorMode():
                *given, knots = *arguments(), torch.empty(3, 12, dtype=F64, device=DEVICE)
                x, weight, base_weight = given
                for t in given:
                    t.requires_grad_()
                options: dict[str, Any] = {"spline_order": 3, "base_weight": base_weight}
                mean, std = F.edge_moments(x, weight, knots, **options)
                (mean.sum() + std.sum()).backward()
                assert std.shape == (3, 2) and x.grad is not None and x.grad.shape == x.shape
        else:
            assert bool(trained().isfinite().all())


def test_inference_mode_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call under inference_mode remembers is of use to training."""
    monkeypatch.setattr(plain, "_known_places", {})
    with torch.inference_mode(), use_backend("reference"):
        moments(*arguments())
    assert [t.is_inference() for t in plain._known_places.values()] == [False]
    with use_backend("reference"):
        assert bool(trained().isfinite().all())
    assert bool(trained().isfinite().all())
