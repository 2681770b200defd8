"""Sums over the rows that describe edges: the Gram matrix of the basis, and the mean of |phi|.

An edge function is linear in its weights, so its mean and variance over the rows are a linear and a quadratic
form of the Gram matrix. Compiled kernels on the CPU; plain torch elsewhere and under
`use_backend("reference")`. There is no (B, in, out) tensor anywhere, and the result has the same bits
whatever the number of threads.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._core import checks, library
from .._core.bases import BASE_CODES
from .._engine import dispatch
from ..backends.reference import edges as reference
from . import edge_arguments as arguments

# A variance this small beside the terms it came from is rounding.
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def basis_gram(
    x: Tensor,
    grid: Tensor,
    spline_order: int,
    *,
    other_grid: Tensor | None = None,
    other_order: int | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Sum products of two B-splines of one input over the rows.

    Args:
        x: (..., in), any floating dtype: B rows.
        grid: (in, G+2k+1) finite, non-decreasing knots, in x's dtype, float32 or float64.
        spline_order: k, 0 to 10.
        other_grid: (in, G'+2k'+1), the knots of the second factor; None pairs the basis with itself.
        other_order: k' of the second factor; None means k.
        row_weight: w, (...) or (..., in) like x; None means 1. No gradient flows to it.

    Returns:
        In float64, with n = G+k. Without other_grid the band of the symmetric matrix, (in, n, k+1):
        K[i,r,d] = sum_b w B_r(x) B_{r+d}(x), 0 where r+d >= n; differentiable with respect to x, to any
        order. With other_grid (in, n, G'+k'): K[i,r,q] = sum_b w B_r(x) B'_q(x), without gradient.
        NaN in a column of x makes that feature's sums NaN.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> basis_gram(torch.tensor([[0.0], [0.0]]), torch.linspace(-2, 2, 5)[None], 1)[0, 1]
        tensor([2., 0.], dtype=torch.float64)
    """
    spline_order = checks.spline_order(spline_order)
    checks.tensor("x", x)
    grid = arguments.double_knots("grid", grid, spline_order, x)
    rows = x.reshape(-1, x.shape[-1])
    w = None if row_weight is None else arguments.row_weight(row_weight, x)
    if other_grid is None:
        if other_order is not None:
            raise ValueError(f"other_order: got {other_order!r} without other_grid, expected both or neither")
        return _gram(rows, w, grid, spline_order, 0)[0]
    other_order = spline_order if other_order is None else other_order
    other_order = checks.integer("other_order", other_order, 0, checks.MAX_SPLINE_ORDER)
    other_grid = arguments.double_knots("other_grid", other_grid, other_order, x)
    with torch.no_grad():
        cross_gram = torch.ops.kan_kernels.cross_gram if _compiled(x) else reference.cross_gram
        return cross_gram(rows, w, grid, spline_order, other_grid, other_order)


def edge_moments(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    correction: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the rows of every edge function phi[i,o](x[..., i]).

    Args:
        x, spline_weight, grid, spline_order, base_weight, base: as for `kan_linear`.
        correction: the variance is divided by B - correction, as torch.std does.

    Returns:
        mean and std, each (in, out), float64 for float64 weights and else float32; differentiable with
        respect to x and the weights, to any order. The sums are float64; a deviation below 1e-7 of the terms
        that make up an edge function cannot be told from rounding and is 0, with gradient 0.

    Raises:
        TypeError, ValueError: as for `kan_linear`; or x has no more than `correction` rows.

    Example:
        >>> x, grid = torch.tensor([[-0.5], [0.5]]), torch.linspace(-2, 2, 5)[None]
        >>> weight = torch.tensor([[[-1.0], [0.0], [1.0]]])  # phi(x) = x
        >>> edge_moments(x, weight, grid, spline_order=1, base=None, correction=0)
        (tensor([[0.]]), tensor([[0.5000]]))
    """
    correction = checks.integer("correction", correction, 0)
    rows = arguments.layer_rows(x, spline_weight, grid, base_weight, spline_order, base, correction + 1)
    given = (rows, spline_weight, base_weight, grid.double(), spline_order, BASE_CODES[base], correction)
    mean, std, *_ = _moments(*given) if _transforming() else apply(Moments, *given)
    dtype = compute_dtype(spline_weight)
    return mean.to(dtype), std.to(dtype)


def edge_l1(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
) -> Tensor:
    """Return the L1 norm of every edge function, mean_b |phi[i,o](x[b,i])|  (arXiv 2404.19756, eq. 2.17).

    Args:
        x, spline_weight, grid, spline_order, base_weight, base: as for `kan_linear`.

    Returns:
        (in, out), float64 for float64 weights and else float32; differentiable with respect to x and the
        weights, to any order, with the derivative of |phi| taken as 0 where phi is 0. O(B in out k) work in
        float32 or float64, 16-bit tensors being widened first; O(in out) memory beside x and the weights.

    Raises:
        TypeError, ValueError: as for `kan_linear`; or x has no rows.

    Example:
        >>> x, grid = torch.tensor([[-0.5], [0.5]]), torch.linspace(-2, 2, 5)[None]
        >>> weight = torch.tensor([[[-1.0], [0.0], [1.0]]])  # phi(x) = x
        >>> edge_l1(x, weight, grid, spline_order=1, base=None)
        tensor([[0.5000]])
    """
    rows = arguments.layer_rows(x, spline_weight, grid, base_weight, spline_order, base, 1)
    dtype = compute_dtype(spline_weight)
    if base_weight is not None:
        base_weight = base_weight.to(dtype)
    given = (rows.to(dtype), spline_weight.to(dtype), base_weight, grid.to(dtype), spline_order)
    if _transforming():
        return reference.edge_l1(*given, BASE_CODES[base])
    return apply(EdgeL1, *given, BASE_CODES[base])


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply(*args), in eager mode without its inspect.signature().bind, slower than a small kernel.

    Dynamo does not trace the short cut; `autograd._Contraction` has one of its own.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def _transforming() -> bool:
    """Whether torch.func or forward mode is at work: the Functions here know plain backward only."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _gram(x, w, grid, order, base) -> tuple[Tensor, Tensor]:
    """`Gram`; in plain torch where a transform reaches its arguments, and else by the kernel there too."""
    if not _transforming():
        return apply(Gram, x, w, grid, order, base)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    constant = not any(t is not None and (wrapped(t) or t.requires_grad) for t in (x, w, grid))
    if constant and forward_ad.unpack_dual(x).tangent is None:
        return Gram.forward(x, w, grid, order, base)
    return reference.gram(x, w, grid, order, base)


def _compiled(x: Tensor) -> bool:
    """Whether the compiled library has kernels for x and may be used."""
    return library.LOAD_ERROR is None and x.device.type == "cpu" and dispatch.forced_backend() != "reference"


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What sums of weights of this dtype are computed in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


class Gram(Function):
    """`band` and `border` of `statistics_reference.gram`.

    First gradients come from a kernel, higher ones from plain autograd.
    """

    @staticmethod
    def forward(x, w, grid, order, base):
        kernel = torch.ops.kan_kernels.gram if _compiled(x) else reference.gram
        return kernel(x, w, grid, order, base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.constants = inputs[3:]

    @staticmethod
    def backward(ctx, d_band, d_border):
        x, w, grid = ctx.saved_tensors
        order, base = ctx.constants
        dx = None
        if torch.is_grad_enabled():  # this backward is itself to be differentiated
            sums = reference.gram(x, w, grid, order, base)
            (dx,) = torch.autograd.grad(sums, x, (d_band, d_border), create_graph=True)
        else:
            kernel: Any = torch.ops.kan_kernels.gram_input if _compiled(x) else reference.gram_input
            dx = kernel(x, w, grid, order, base, d_band, d_border).to(x.dtype)
        return dx, None, None, None, None


class Moments(Function):
    """Mean and standard deviation of the edges, float64 (in, out), and two tensors for backward.

    With S the matrix of sums over the rows of products of the features f = (splines, base), divided by their
    number, m their means and c the coefficients, the variance is c' (S - m m') c: products of small matrices.
    First gradients are written out, higher ones come from plain autograd.
    """

    @staticmethod
    def forward(x, spline_weight, base_weight, grid, order, base, correction):
        count, (features, n, _) = x.shape[0], spline_weight.shape
        kernel = torch.ops.kan_kernels.gram if _compiled(x) else reference.gram
        band, border = kernel(x, None, grid, order, base)
        size = n + bool(base)
        flat = torch.cat((band.flatten(1), border.flatten(1), band.new_zeros(features, 1)), 1)
        sums = flat[:, _places(n, order, bool(base), flat)].view(features, size + 1, size) / count
        square, m = sums[:, :size], sums[:, size:]
        c = _coefficients(spline_weight, base_weight)
        mean = torch.bmm(m, c).squeeze(1)
        spread = torch.bmm(torch.baddbmm(square, m.mT, m, alpha=-1), c)
        variance = (c * spread).sum(1)
        scale = torch.bmm(m[:, :, :n], c[:, :n].abs()).squeeze(1).square()
        if base:
            scale = torch.addcmul(scale, square[:, n, n:], c[:, n].square())
        constant = variance <= _ROUNDING * scale
        std = variance.masked_fill(constant, 0.0).sqrt_()
        return mean, std.mul_((count / (count - correction)) ** 0.5), spread, m

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, spline_weight, base_weight, grid = inputs[:4]
        _, std, spread, m = output
        ctx.mark_non_differentiable(spread, m)
        ctx.save_for_backward(x, spline_weight, base_weight, grid, std, spread, m)
        ctx.constants = inputs[4:]

    @staticmethod
    def backward(ctx, d_mean, d_std, *_):
        x, spline_weight, base_weight, grid, std, spread, m = ctx.saved_tensors
        order, base, correction = ctx.constants
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # this backward is itself to be differentiated
            given = (x, spline_weight, base_weight)
            results = _moments(*given, grid, order, base, correction)
            wanted = [t for t, need in zip(given, needs, strict=True) if need]
            found = iter(torch.autograd.grad(results, wanted, (d_mean, d_std), create_graph=True))
            return *(next(found) if need else None for need in needs), None, None, None, None
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
            kernel: Any = torch.ops.kan_kernels.gram_input if _compiled(x) else reference.gram_input
            d_band, d_border = d_band.view(-1, n, order + 1), d_border.view(-1, rows, n + rows)
            dx = kernel(x, None, grid, order, base, d_band.contiguous(), d_border.contiguous()).to(x.dtype)
        return dx, dc, db, None, None, None, None


def _coefficients(spline_weight: Tensor, base_weight: Tensor | None) -> Tensor:
    """(in, G+k, out), and the base as one more row, in float64."""
    if base_weight is None:
        return spline_weight.double()
    return torch.cat((spline_weight, base_weight.unsqueeze(1)), 1).double()


_known_places: dict[tuple, Tensor] = {}


def _places(n: int, order: int, base: bool, row: Tensor) -> Tensor:
    """Where the matrix of all products of (splines, base), then the sums of each, are in the row
    (band, border, 0) that `Gram` computes for a feature. `border` is described in `_moments`.
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


def _moments(rows, spline_weight, base_weight, grid, order, base, correction) -> tuple[Tensor, Tensor]:
    """What `Moments` computes, by plain autograd: differentiable to any order."""
    count, n = rows.shape[0], spline_weight.shape[1]
    band, border = _gram(rows, None, grid, order, base)
    c = spline_weight.double()
    # border[:, 0]: sums of the splines, of 1 and of the base; border[:, 1]: the same, times the base
    mean = torch.einsum("ir,iro->io", border[:, 0, :n], c)
    ahead = torch.nn.functional.pad(c, (0, 0, 0, order))
    products = band[:, :, :1] * c
    for d in range(1, order + 1):  # each product off the diagonal occurs twice
        products = products + 2 * band[:, :, d, None] * ahead[:, d : d + n]
    square = (products * c).sum(1)
    size = torch.einsum("ir,iro->io", border[:, 0, :n].detach(), c.detach().abs()).square() / count
    if base_weight is not None:
        b = base_weight.double()
        mean = mean + border[:, 0, n + 1, None] * b
        square = square + b * (
            2 * torch.einsum("ir,iro->io", border[:, 1, :n], c) + border[:, 1, n + 1, None] * b
        )
        size = size + border[:, 1, n + 1, None].detach() * b.detach().square()
    mean, square = mean / count, square / count
    variance = square - mean.square()
    constant = variance <= _ROUNDING * size / count
    std = torch.where(constant, 0.0, torch.where(constant, 1.0, variance).sqrt())
    return mean, std * (count / (count - correction)) ** 0.5


class EdgeL1(Function):
    """`statistics_reference.edge_l1`. First gradients come from a kernel, higher ones from plain autograd."""

    @staticmethod
    def forward(x, weight, base_weight, grid, order, base):
        kernel = torch.ops.kan_kernels.edge_l1 if _compiled(x) else reference.edge_l1
        return kernel(x, weight, base_weight, grid, order, base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.constants = inputs[4:]

    @staticmethod
    def backward(ctx, g):
        x, weight, base_weight, grid = ctx.saved_tensors
        order, base = ctx.constants
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # this backward is itself to be differentiated
            mean = reference.edge_l1(x, weight, base_weight, grid, order, base)
            wanted = [t for t, need in zip((x, weight, base_weight), needs, strict=True) if need]
            found = iter(torch.autograd.grad(mean, wanted, g, create_graph=True))
            return *(next(found) if need else None for need in needs), None, None, None
        kernel: Any = torch.ops.kan_kernels.edge_l1_backward if _compiled(x) else reference.edge_l1_backward
        results = kernel(x, weight, base_weight, g, grid, order, base, needs[0], needs[1] or needs[2])
        return *(t if need else None for t, need in zip(results, needs, strict=True)), None, None, None
