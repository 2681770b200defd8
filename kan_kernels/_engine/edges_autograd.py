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
from .._core.function import ComposedFunction, func_or_forward_mode
from .._core.problem import Problem
from ..backends import reference, with_op
from . import dispatch

Some = Tensor | None

_chosen: dict[tuple, ModuleType] = {}


def backend_of(op: str, x: Tensor, dtype: torch.dtype, functions: int, order: int, base: int) -> ModuleType:
    """Return the backend that runs an op on edges."""
    functions = functions if isinstance(functions, int) else int(functions)  # a symbol, which has no hash
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
    """The `band` and `border` of backends/reference/edges.py: of x, w, grid, order, base."""

    INPUTS = 1

    @staticmethod
    def forward(x, w, grid, order, base):
        return _for_gram(x, grid, order, base).edge_gram(x, w, grid, order, base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(cls, x, w, grid, order, base):
        if func_or_forward_mode():
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
    """The mean and standard deviation of edges, float64 (in, out), and two tensors for the gradients.

    `reference.edge_moments`: of x, spline_weight, base_weight, grid (float64), order, base, correction.
    """

    INPUTS = 3

    @staticmethod
    def forward(x, spline_weight, base_weight, grid, order, base, correction):
        kernel = _for_gram(x, grid, order, base).edge_moments
        return kernel(x, spline_weight, base_weight, grid, order, base, correction)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, std, spread, m = output
        ctx.mark_non_differentiable(spread, m)
        ComposedFunction.keep(ctx, inputs, std, spread, m)

    @classmethod
    def compose(cls, x, spline_weight, base_weight, grid, order, base, correction):
        sums = Gram.run(x, None, grid, order, base)
        return reference.moments_of_sums(
            sums, spline_weight, base_weight, x.shape[0], order, base, correction
        )

    @classmethod
    def plain(cls, *args):
        return cls.compose(*args)

    @classmethod
    def gradients(cls, ctx, d_mean, d_std, *_):
        (x, spline_weight, base_weight, grid, order, base, correction), saved = cls.kept(ctx)
        needs = ctx.needs_input_grad[:3]
        kernel = _for_gram(x, grid, order, base).edge_moments_backward
        given = x, spline_weight, base_weight, grid, order, base, correction, d_mean, d_std, *saved
        results = list(kernel(*given, needs[0], needs[1] or needs[2]))
        if needs[0]:
            results[0] = results[0].to(x.dtype)
        return [t if need else None for t, need in zip(results, needs, strict=True)]


def _shapes(x: Tensor, grid: Tensor, order: int, base: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return those of band and border."""
    n, rows = grid.shape[1] - order - 1, 1 + bool(base)
    return (x.shape[1], n, order + 1), (x.shape[1], rows, n + rows)


class EdgeL1(ComposedFunction):
    """The `reference.edge_l1`: of x, weight, base_weight, grid, order, base."""

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


for _backend in with_op("edge_gram"):
    Gram.register(f"{_backend.NAMESPACE}::edge_gram")
for _backend in with_op("edge_l1"):
    EdgeL1.register(f"{_backend.NAMESPACE}::edge_l1")
