"""torch.func over whole layers: Hessians of convolutions, and knots that vmap maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap

from kan_kernels import KANConv1d, KANConv2d, KANConv3d
from kan_kernels import functional as F
from kan_kernels._core import checks

F64 = torch.float64
MESSAGE = r"knot 1 of feature 1 is .* expected finite, non-decreasing knots"

CONVOLUTIONS: tuple[tuple[type[nn.Module], tuple[int, ...], dict[str, Any]], ...] = (
    (KANConv1d, (2, 2, 5), {"kernel_size": 3, "stride": 2, "padding": 1, "bias": True}),
    (KANConv2d, (2, 2, 3, 4), {"kernel_size": (2, 3), "padding": 1, "groups": 2}),
    (KANConv2d, (1, 2, 3, 3), {"kernel_size": 1, "padding": 3, "stride": 8}),  # taps in the padding alone
    (KANConv3d, (2, 2, 2, 3, 2), {"kernel_size": 2, "dilation": 1, "base": None}),
)


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).square().sum()


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0].__name__}{case[1]}")
def test_hessian_over_x(backend: str, case: Any) -> None:
    """Forward over reverse, and both twice, give what plain autograd gives twice."""
    kind, shape, options = case
    module = kind(2, 2, **options, backend=backend, dtype=F64)
    x = torch.randn(shape, dtype=F64)
    plain = kind(2, 2, **options, backend="reference", dtype=F64)
    plain.load_state_dict(module.state_dict())
    want = torch.autograd.functional.hessian(lambda x: loss(plain, x), x)

    def of_module(x: Tensor) -> Tensor:
        return loss(module, x)

    for got in (hessian(of_module)(x), jacrev(jacrev(of_module))(x), jacfwd(jacfwd(of_module))(x)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0].__name__}{case[1]}")
def test_hessian_over_parameters(backend: str, case: Any) -> None:
    kind, shape, options = case
    module = kind(2, 2, **options, grid_size=2, spline_order=2, backend=backend, dtype=F64)
    x = torch.randn(shape, dtype=F64)
    parameters = dict(module.named_parameters())
    names, values = list(parameters), tuple(p.detach() for p in parameters.values())

    def of_parameters(*values: Tensor) -> Tensor:
        with_values = dict(zip(names, values, strict=True))
        return functional_call(module, with_values, (x,)).square().sum()

    want = torch.autograd.functional.hessian(of_parameters, values)
    got = hessian(of_parameters, tuple(range(len(values))))(*values)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_hessian_by_batched_gradients(backend: str, kernel_size: int) -> None:
    """torch.autograd.functional's vectorize=True, which is another vmap than torch.func's."""
    module, x = KANConv2d(2, 2, kernel_size, backend=backend, dtype=F64), torch.randn(1, 2, 3, 4, dtype=F64)
    got, want = (
        torch.autograd.functional.hessian(lambda x: loss(module, x), x, vectorize=vectorize)
        for vectorize in (True, False)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def grids(decreasing: bool) -> Tensor:
    """(4, 3, 12) knots, those of one feature in one grid in decreasing order."""
    knots = torch.linspace(-2, 2, 12, dtype=F64).repeat(4, 3, 1) * torch.tensor([1.0, 1.5, 2.0, 0.7]).view(
        4, 1, 1
    )
    if decreasing:
        knots[2, 1] = knots[2, 1].flip(0)
    return knots


@pytest.mark.parametrize("place", [0, 1, 2])
def test_mapped_knots(backend: str, place: int) -> None:
    """What the unbatched calls do: their numbers, or their error that names knot and feature."""
    x, weight = torch.randn(5, 3, dtype=F64), torch.randn(3, 8, 2, dtype=F64)

    def layer(grid: Tensor) -> Tensor:
        return F.kan_linear(x, weight, grid, spline_order=3, base=None, backend=backend)

    good, bad = grids(False), grids(True)
    want = torch.stack([layer(grid) for grid in good])
    torch.testing.assert_close(vmap(layer, in_dims=place)(good.movedim(0, place)), want)
    with pytest.raises(checks.GridError, match=MESSAGE):
        layer(bad[2])
    with pytest.raises(checks.GridError, match=MESSAGE):
        vmap(layer, in_dims=place)(bad.movedim(0, place))


def test_knots_under_several_transforms(backend: str) -> None:
    """Mapped twice, within a gradient, and not mapped at all where x is."""
    x, weight = torch.randn(5, 3, dtype=F64), torch.randn(3, 8, 2, dtype=F64)

    def layer(x: Tensor, grid: Tensor) -> Tensor:
        return F.kan_linear(x, weight, grid, spline_order=3, base=None, backend=backend)

    bad = grids(True)
    twice = torch.stack((grids(False), bad)).movedim(1, -1)  # (2, 3, 12, 4)
    gradient = torch.func.grad(lambda x, grid: layer(x, grid).sum())
    for call in (
        lambda: vmap(vmap(layer, in_dims=(None, 2)), in_dims=(None, 0))(x, twice),
        lambda: vmap(gradient, in_dims=(None, 0))(x, bad),
        lambda: gradient(x, bad[2]),
        lambda: vmap(layer, in_dims=(0, None))(x, bad[2]),
    ):
        with pytest.raises(checks.GridError, match="knot 1 of feature 1"):
            call()
    nested = vmap(vmap(layer, in_dims=(None, 2)), in_dims=(None, 0))
    good = torch.stack((grids(False), 2 * grids(False)))
    want = torch.stack([torch.stack([layer(x, grid) for grid in part]) for part in good])
    torch.testing.assert_close(nested(x, good.movedim(1, -1)), want)


def test_mapped_centres(backend: str) -> None:
    """Widths that are not positive, among several grids of Gaussians."""
    x, weight = torch.randn(5, 2), torch.randn(2, 3, 2)
    rows = torch.tensor([-1.0, 0.0, 1.0, 0.5]).repeat(4, 2, 1)
    rows[3, 1, 3] = 0.0
    with pytest.raises(checks.GridError, match=r"the width of feature 1 is 0\.0"):
        vmap(lambda grid: F.basis_linear(x, weight, grid, basis="rbf", backend=backend))(rows)
