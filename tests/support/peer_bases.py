"""FastKAN's, ChebyKAN's and FourierKAN's layers for the tests: stand-ins, the real ones if on the path, and
comparisons.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import basis_forms as forms
from kan_kernels.integrations import accelerate, explain

F64 = torch.float64
FAST: dict[str, type[Any]] = {"stand-in": forms.FastKANLayer}
CHEBY: dict[str, type[Any]] = {"stand-in": forms.ChebyKANLayer}
FOURIER: dict[str, type[Any]] = {"stand-in": forms.NaiveFourierKANLayer}
for layers, module, name in (
    (FAST, "fastkan", "FastKANLayer"),
    (CHEBY, "ChebyKANLayer", "ChebyKANLayer"),
    (FOURIER, "fftKAN", "NaiveFourierKANLayer"),
):
    if importlib.util.find_spec(module) is not None:
        layers[module] = getattr(importlib.import_module(module), name)


def pair(own: Any) -> tuple[Any, Any]:
    """A float64 layer with random weights and its accelerated copy."""
    own = own.double()
    with torch.no_grad():
        for weight in own.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight))
    fast = copy.deepcopy(own)
    report = accelerate(fast)
    assert len(report.taken) == 1 and not report.left, str(report)
    assert "runs the kernels" in explain(fast)
    return own, fast


def results(layer: nn.Module, x: Tensor, *args: Any) -> list[Tensor | None]:
    """y, the gradients of x and the trained parameters, and second derivatives of both kinds."""
    x = x.detach().requires_grad_()
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    y = layer(x, *args)
    dy = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    first = torch.autograd.grad(y, trained, dy, create_graph=True, allow_unused=True)
    mixed = sum((g.square().sum() for g in first if g is not None), torch.zeros((), dtype=y.dtype))
    second = torch.autograd.grad(mixed, trained, allow_unused=True)
    return [y.detach(), *first, *second]


def same(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    """To a tolerance of the largest entry: float64 rounding, and the digits that second derivatives lose."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(1.0, float(want.detach().abs().max())))


def same_results(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    """A gradient that is missing on one side is one of zeros on the other."""
    for a, b in zip(got, want, strict=True):
        if a is not None and b is not None:
            same(a, b)
        else:
            assert not any(t is not None and t.any() for t in (a, b))


def check_left_alone(layer: nn.Module, why: str) -> None:
    """`accelerate` keeps the layer's class, says why, and takes no random number of the caller's."""
    cls, state = type(layer), torch.get_rng_state()
    report = accelerate(layer)
    assert torch.equal(torch.get_rng_state(), state), "the probe took from the caller's random numbers"
    assert not report.taken and type(layer) is cls
    assert [entry.name for entry in report.left] == [""] and why in report.left[0].why, str(report)
