"""The sums over the rows that describe edges, differentiable: once by their kernels, further by composition.

An edge function is linear in its weights, so its mean and variance over the rows are a linear and a quadratic
form of the Gram matrix. There is no (B, in, out) tensor anywhere, and the result has the same bits whatever
the number of threads.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._core.bases import BASE_NAMES
from .._core.function import ComposedFunction, transforming
from .._core.problem import Problem
from ..backends import native, reference
from . import dispatch

Some = Tensor | None

# A variance this small beside the terms it came from is rounding.
_ROUNDING = 64 * torch.finfo(torch.float64).eps

_chosen: dict[tuple, ModuleType] = {}


def backend_of(op: str, x: Tensor, dtype: torch.dtype, functions: int, order: int, base: int) -> ModuleType:
    """Return the backend that runs an op on edges."""
    key = (op, x.device, x.dtype, dtype, functions, order, base, dispatch.forced_backend())
    found = None if torch.compiler.is_compiling() else _chosen.get(key)
    if found is None:
        device = x.device
        # the sums do not depend on the number of inputs and outputs
        problem = Problem(
            device.type, dtype, x.dtype, 1, 1, functions, order, BASE_NAMES[base], index=device.index, op=op
        )
        found, _ = dispatch.run_on(problem)
        if not torch.compiler.is_compiling() and len(_chosen) < 4096:
            _chosen[key] = found
    return found


def _for_gram(x: Tensor, grid: Tensor, order: int, base: int) -> ModuleType:
    return backend_of("edge_gram", x, torch.float64, grid.shape[1] - order - 1, order, base)


def _for_l1(x: Tensor, weight: Tensor, order: int, base: int) -> ModuleType:
    return backend_of("edge_l1", x, weight.dtype, weight.shape[1], order, base)


def cross_gram(x: Tensor, w: Some, grid: Tensor, order: int, other_grid: Tensor, other_order: int) -> Tensor:
    """Return sum_b w B_r(x) B'_q(x) of splines on two grids: (in, n, n') float64, without gradient."""
    backend = _for_gram(x, grid, max(order, other_order), 0)
    with torch.no_grad():
        result: Tensor = backend.edge_cross_gram(x, w, grid, order, other_grid, other_order)
        return result


class Gram(ComposedFunction):
    """`band` and `border` of backends/reference/edges.py: of x, w, grid, order, base."""

    INPUTS = 1

    @staticmethod
    def forward(x, w, grid, order, base):
        return _for_gram(x, grid, order, base).edge_gram(x, w, grid, order, base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(cls, x, w, grid, order, base):
        if transforming() or forward_ad._current_level >= 0:
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor
            constant = not any(t is not None and (wrapped(t) or t.requires_grad) for t in (x, w, grid))
            if constant and forward_ad.unpack_dual(x).tangent is None:  # no transform reaches the arguments
                return cls.forward(x, w, grid, order, base)
        return reference.edge_gram(x, w, grid, order, base)

    @classmethod
    def gradients(cls, ctx, d_band, d_border):
        (x, w, grid, order, base), _ = cls.kept(ctx)
        band, border = _shapes(x, grid, order, base)
        d_band = grid.new_zeros(band) if d_band is None else d_band
        d_border = grid.new_zeros(border) if d_border is None else d_border
        kernel = _for_gram(x, grid, order, base).edge_gram_grad_input
        return (kernel(x, w, grid, order, base, d_band, d_border).to(x.dtype),)


class Moments(ComposedFunction):
    """Mean and standard deviation of the edges, float64 (in, out), and two tensors for the gradients.

    With S the matrix of sums over the rows of products of the features f = (splines, base), divided by their
    number, m their means and c the coefficients, the variance is c' (S - m m') c: products of small matrices.
    Of x, spline_weight, base_weight, grid (float64), order, base, correction.
    """

    INPUTS = 3

    @staticmethod
    def forward(x, spline_weight, base_weight, grid, order, base, correction):
        sums = _for_gram(x, grid, order, base).edge_gram(x, None, grid, order, base)
        return _moments(sums, spline_weight, base_weight, x.shape[0], order, base, correction)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, std, spread, m = output
        ctx.mark_non_differentiable(spread, m)
        ComposedFunction.keep(ctx, inputs, std, spread, m)

    @classmethod
    def compose(cls, x, spline_weight, base_weight, grid, order, base, correction):
        sums = Gram.run(x, None, grid, order, base)
        return _moments(sums, spline_weight, base_weight, x.shape[0], order, base, correction)

    @classmethod
    def gradients(cls, ctx, d_mean, d_std, *_):
        (x, spline_weight, base_weight, grid, order, base, correction), (std, spread, m) = cls.kept(ctx)
        d_mean = torch.zeros_like(std) if d_mean is None else d_mean
        d_std = torch.zeros_like(std) if d_std is None else d_std
        needs = ctx.needs_input_grad[:3]
        count, n = x.shape[0], spline_weight.shape[1]
        c = _coefficients(spline_weight, base_weight)
        d_variance = (d_std * (0.5 * count / (count - correction)) / std).masked_fill(std == 0, 0.0)
        d_mean, d_variance = d_mean.unsqueeze(1), d_variance.unsqueeze(1)
        dx = dc = db = None
        if needs[1] or needs[2]:
            d = torch.addcmul(m.mT * d_mean, spread, d_variance, value=2.0)
            dc = d[:, :n].to(spline_weight.dtype)
            db = d[:, n].to(base_weight.dtype) if base else None
        if needs[0]:
            d_square = torch.bmm(c * d_variance, c.mT)
            d_m = torch.baddbmm(torch.bmm(d_mean, c.mT), m, d_square, alpha=-2)
            d_sums = torch.cat((d_square, d_m), 1).reshape(c.shape[0], -1) / count
            places = _places(n, order, bool(base), d_sums)
            rows = 1 + bool(base)
            d_flat = d_sums.new_zeros(c.shape[0], n * (order + 1) + rows * (n + rows) + 1)
            d_flat.index_add_(1, places, d_sums)
            d_band, d_border, _ = d_flat.split((n * (order + 1), rows * (n + rows), 1), 1)
            d_band, d_border = d_band.view(-1, n, order + 1), d_border.view(-1, rows, n + rows)
            kernel = _for_gram(x, grid, order, base).edge_gram_grad_input
            dx = kernel(x, None, grid, order, base, d_band.contiguous(), d_border.contiguous()).to(x.dtype)
        return dx, dc, db


def _moments(
    sums: tuple[Tensor, Tensor], spline_weight: Tensor, base_weight: Some, count: int, order: int, base: int,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(mean, std, spread, m) from the sums, differentiable; std is 0, without gradient, if it is rounding."""
    (band, border), (features, n, _) = sums, spline_weight.shape
    size = n + bool(base)
    flat = torch.cat((band.flatten(1), border.flatten(1), band.new_zeros(features, 1)), 1)
    matrix = flat[:, _places(n, order, bool(base), flat)].view(features, size + 1, size) / count
    square, m = matrix[:, :size], matrix[:, size:]
    c = _coefficients(spline_weight, base_weight)
    mean = torch.bmm(m, c).squeeze(1)
    spread = torch.bmm(torch.baddbmm(square, m.mT, m, alpha=-1), c)
    variance = (c * spread).sum(1)
    scale = torch.bmm(m[:, :, :n], c[:, :n].abs()).squeeze(1).square()
    if base:
        scale = torch.addcmul(scale, square[:, n, n:], c[:, n].square())
    constant = variance <= _ROUNDING * scale
    std = torch.where(constant, 1.0, variance).sqrt().masked_fill(constant, 0.0)
    return mean, std * (count / (count - correction)) ** 0.5, spread, m


def _coefficients(spline_weight: Tensor, base_weight: Some) -> Tensor:
    """(in, G+k, out), and the base as one more row, in float64."""
    if base_weight is None:
        return spline_weight.double()
    return torch.cat((spline_weight, base_weight.unsqueeze(1)), 1).double()


def _shapes(x: Tensor, grid: Tensor, order: int, base: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of band and border."""
    n, rows = grid.shape[1] - order - 1, 1 + bool(base)
    return (x.shape[1], n, order + 1), (x.shape[1], rows, n + rows)


_known_places: dict[tuple, Tensor] = {}


def _places(n: int, order: int, base: bool, row: Tensor) -> Tensor:
    """Where the matrix of all products of (splines, base), then the sums of each, are in the row
    (band, border, 0) that `Gram` computes for a feature. `border` is described in `reference.edge_gram`.
    """
    key = (n, order, base, row.device)
    real = not torch.compiler.is_compiling() and type(row) is Tensor  # not a fake one, of no use later
    if real and key in _known_places:
        return _known_places[key]
    border = n * (order + 1)
    zero = border + (1 + base) * (n + 1 + base)
    bases = list(range(n)) + [n + 1] * base  # positions in a row of border
    places = []
    for r in range(n):
        for q in range(n):
            places.append(min(r, q) * (order + 1) + abs(r - q) if abs(r - q) <= order else zero)
        if base:
            places.append(border + n + 2 + r)
    if base:
        places += [border + n + 2 + at for at in bases]
    places += [border + at for at in bases]
    if not real:
        return torch.tensor(places, device=row.device)
    with torch.inference_mode(False):  # a tensor that training can use as well
        result = torch.tensor(places, device=row.device)
    if type(result) is Tensor and len(_known_places) < 256:
        _known_places[key] = result
    return result


class EdgeL1(ComposedFunction):
    """`reference.edge_l1`: of x, weight, base_weight, grid, order, base."""

    INPUTS = 3

    @staticmethod
    def forward(x, weight, base_weight, grid, order, base):
        return _for_l1(x, weight, order, base).edge_l1(x, weight, base_weight, grid, order, base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(cls, x, weight, base_weight, grid, order, base):
        return reference.edge_l1(x, weight, base_weight, grid, order, base)

    @classmethod
    def gradients(cls, ctx, g):
        (x, weight, base_weight, grid, order, base), _ = cls.kept(ctx)
        needs = ctx.needs_input_grad[:3]
        kernel = _for_l1(x, weight, order, base).edge_l1_backward
        results = kernel(x, weight, base_weight, g, grid, order, base, needs[0], needs[1] or needs[2])
        return [t if need else None for t, need in zip(results, needs, strict=True)]


if native.NAMESPACE is not None:
    Gram.register("kan_kernels::edge_gram")
    EdgeL1.register("kan_kernels::edge_l1")
