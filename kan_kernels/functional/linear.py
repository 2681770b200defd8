"""The stateless API: validate, apply the precision policy, pick a backend, call autograd."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import BASE_CODES, BASIS_CODES, basis_order
from .._core.tensor_cache import Remembered, readable
from .._core.tracing import tracing, untraced
from .._engine import autograd, dispatch
from ..backends import reference
from .edges import basis_gram, edge_l1, edge_moments

__all__ = ["basis_gram", "basis_linear", "bspline_basis", "edge_l1", "edge_moments", "kan_linear"]

# What was validated before: everything the checks look at -> the backend. Values of knots are checked apart.
_plans: dict[tuple, Any] = {}
_PLANS_LIMIT = 4096

_RBF = BASIS_CODES["rbf"]

# torch.fx.symbolic_trace takes calls of these, by way of this module, as they stand
torch.fx.wrap("kan_linear")
torch.fx.wrap("basis_linear")


def kan_linear(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    bias: Tensor | None = None,
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply a layer of learnable univariate functions phi[i,o], one on every edge from input i to output o.

    y[..., o] = sum_i phi[i,o](x[..., i]) + bias[o], where
    phi[i,o](x) = base_weight[i,o] base(x) + sum_r spline_weight[i,r,o] B_r(x)  (arXiv 2404.19756, sec. 2.2)

    Args:
        x: (..., in), also nested. The weights' dtype, or float32 beside 16-bit weights: cells are located in
            float32.
        spline_weight: (in, G+k, out), float32, float64, bfloat16 or float16.
        grid: (in, G+2k+1) finite, non-decreasing knots, k extension knots on each side, in the weights' dtype
            or float32. No gradient flows to it.
        spline_order: k, 0 to 10.
        base_weight: (in, out), present exactly if there is a base.
        base: "silu", "identity" or None.
        bias: (out,).
        derivative: m > 0 evaluates phi^(m) in place of phi, without the bias; up to 32. Autograd does not
            need it: it differentiates phi to any order by itself.
        backend: "native", "triton" or "reference"; None leaves the choice to `use_backend` and `dispatch`.

    Returns:
        (..., out) in the weights' dtype; under autocast, in autocast's, with x left in float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, knot or name, or a base without its weight or the reverse.
        RuntimeError: the backend asked for cannot run this case.

    Example:
        >>> weight, grid = torch.ones(2, 3, 1), torch.linspace(-2, 2, 5).repeat(2, 1)  # G = 2, k = 1
        >>> kan_linear(torch.zeros(4, 2), weight, grid, spline_order=1, base=None).shape
        torch.Size([4, 1])
    """
    if type(spline_order) is not int or type(derivative) is not int:
        spline_order, derivative = checks.spline_order(spline_order), checks.derivative(derivative)
    if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor) and isinstance(spline_weight, Tensor):
        x, spline_weight, base_weight, bias = autocast(x, spline_weight, base_weight, bias)
    try:
        ops = plan(x, spline_weight, grid, base_weight, bias, spline_order, base, derivative, backend)
    except checks.NestedError:
        options: dict[str, Any] = {
            "spline_order": spline_order,
            "base_weight": base_weight,
            "base": base,
            "bias": bias,
        }
        options |= {"derivative": derivative, "backend": backend}
        return of_parts(x, lambda rows: kan_linear(rows, spline_weight, grid, **options))
    return run(x, spline_weight, base_weight, bias, grid, spline_order, BASE_CODES[base], derivative, ops)


def basis_linear(
    x: Tensor,
    weight: Tensor,
    grid: Tensor | None = None,
    *,
    basis: str,
    base_weight: Tensor | None = None,
    base: str | None = None,
    bias: Tensor | None = None,
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply `kan_linear` on a basis of full support: every function reaches over the whole line.

    y[..., o] = sum_i ( base_weight[i,o] base(x[..., i]) + sum_r weight[i,r,o] B_r(x[..., i]) ) + bias[o];
    basis="rbf": B_r(x) = exp(-((x - c_r) / h)^2), the Gaussians of FastKAN (arXiv 2405.06721), 0 at +-inf;
    basis="chebyshev": B_r = T_r for r = 0 .. R-1, meant for x in [-1, 1], NaN at +-inf. ChebyKAN's
    (arXiv 2405.07200) is that of torch.tanh(x);
    basis="fourier": cos(g x) for g = 1 .. R/2, then sin(g x) likewise, those of FourierKAN, NaN at +-inf
        and, on the CPU in float64, from 2^128 on.

    Args:
        x: (..., in), also nested. The weights' dtype, or float32 beside 16-bit weights.
        weight: (in, R, out), float32, float64, bfloat16 or float16; 1 <= R <= 256, or for "fourier" an even
            R up to 1024.
        grid: for "rbf" (in, R + 1): the finite centres c of each feature, then their width h > 0, in the
            weights' dtype or float32. No gradient flows to it. None for the others.
        basis: "rbf", "chebyshev" or "fourier".
        base_weight: (in, out), present exactly if there is a base.
        base: "silu", "identity" or None.
        bias: (out,).
        derivative: m > 0 evaluates the m-th derivative of every function, without the bias; up to 32.
        backend: as for `kan_linear`.

    Returns:
        (..., out) in the weights' dtype; under autocast, in autocast's, with x left in float32.

    Raises:
        TypeError, ValueError, RuntimeError: as for `kan_linear`.

    Example:
        >>> basis_linear(torch.tensor([[0.5]]), torch.eye(3)[None], basis="chebyshev")  # T_0, T_1, T_2
        tensor([[ 1.0000,  0.5000, -0.5000]])
    """
    if type(derivative) is not int:
        derivative = checks.derivative(derivative)
    if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor) and isinstance(weight, Tensor):
        x, weight, base_weight, bias = autocast(x, weight, base_weight, bias)
    if basis == "bspline":  # the only one whose arguments `plan` would take for another function's
        checks.global_basis(basis)
    try:
        ops = plan(x, weight, grid, base_weight, bias, 0, base, derivative, backend, basis)
    except checks.NestedError:
        options: dict[str, Any] = {"basis": basis, "base_weight": base_weight, "base": base, "bias": bias}
        options |= {"derivative": derivative, "backend": backend}
        return of_parts(x, lambda rows: basis_linear(rows, weight, grid, **options))
    order = 0
    if grid is None:
        order, grid = untraced(_no_grid, weight, basis)
    code = BASIS_CODES[basis]
    return run(x, weight, base_weight, bias, grid, order, BASE_CODES[base], derivative, ops, code)


def _no_grid(weight: Tensor, basis: str) -> tuple[int, Tensor]:
    """The order, and the grid without columns, of a basis that has none."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return basis_order(basis, weight.shape[1]), weight.new_empty((weight.shape[0], 0), dtype=dtype)


def of_parts(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """A layer's (..., out) for every part of a nested tensor, itself nested, of the layout that x has.

    Raises:
        NestedError: the parts of x differ in their last dimension.
    """
    if x.layout != torch.jagged:
        return torch.nested.as_nested_tensor([layer(part) for part in x.unbind()])
    if not isinstance(x.shape[-1], int):
        raise checks.NestedError(
            f"x: got a nested tensor of shape {tuple(x.shape)}, expected parts of one size in their last "
            "dimension"
        )
    ragged: Any = x
    return torch.nested.nested_tensor_from_jagged(
        layer(x.values()), ragged.offsets(), ragged.lengths(), jagged_dim=ragged._ragged_idx
    )


def bspline_basis(x: Tensor, grid: Tensor, spline_order: int, derivative: int = 0) -> Tensor:
    """Evaluate the m-th derivative of every B-spline at x, dense: for reading, testing and plotting.

    Args:
        x: (..., in), float32, float64, bfloat16 or float16; 16 bits are computed in float32.
        grid: (in, G+2k+1) finite, non-decreasing knots, in x's dtype or float32.
        spline_order: k, 0 to 10.
        derivative: m, 0 to 32.

    Returns:
        (..., in, G+k) in x's dtype, differentiable with respect to x to any order.

    Raises:
        TypeError, ValueError: as for `kan_linear`.

    Example:
        >>> bspline_basis(torch.tensor([[0.25]]), torch.linspace(-2, 2, 5)[None], 1)
        tensor([[[0.0000, 0.7500, 0.2500]]])
    """
    spline_order, derivative = checks.spline_order(spline_order), checks.derivative(derivative)
    checks.grid_shape(grid, spline_order)
    checks.rows(x, grid.shape[0])
    checks.grid_like(grid, x)
    checks.knots(grid)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return reference.bspline_basis(x.to(dtype), grid.to(dtype), spline_order, derivative).to(x.dtype)


def run(x, spline_weight, base_weight, bias, grid, order, base, derivative, ops, basis=0) -> Tensor:
    """`kan_linear` after its arguments were validated, save the knots, and `ops`, its backend, was chosen."""
    if basis == 0:
        checks.knots(grid)
    elif basis == _RBF:
        checks.centres(grid)
    knots_dtype = torch.float64 if spline_weight.dtype == torch.float64 else torch.float32
    if grid.dtype != knots_dtype:
        grid = _widened(grid, knots_dtype)
    if derivative:
        bias = None
    rank = x.dim()
    rows = x if rank == 2 else x.unsqueeze(0) if rank == 1 else x.flatten(0, -2)
    if ops.DIFFERENTIABLE:
        y = ops.forward(rows, None, spline_weight, base_weight, bias, grid, order, base, derivative, basis)
    else:
        y = autograd.kan_linear(
            rows, spline_weight, base_weight, bias, grid, order, base, derivative, basis, ops
        )
    return y if rank == 2 else y.reshape(*x.shape[:-1], y.shape[1])


def _widened(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """The knots in another dtype."""
    return _kept_copy(grid, dtype) if grid.is_cuda and readable(grid) else grid.to(dtype)


_copies: dict[torch.dtype, Remembered[Tensor]] = {}
_captured: dict[
    int, Tensor
] = {}  # copies that a CUDA graph fills at every replay: it needs their memory for ever


def _kept_copy(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """The same copy for as long as torch counts no write, with the values that the knots have now.

    A GPU backend looks at values once for each tensor and version (backends/triton/knots.py), so a new copy
    at every call would be a synchronisation at every call; filling it past its version is none. Every stream
    fills it with the same values, and its memory is not given away while one still reads it.
    """
    copies = _copies.setdefault(dtype, Remembered())
    copy = copies.get(grid)
    capturing = torch.cuda.is_current_stream_capturing()
    if copy is None or copy.shape != grid.shape or copy.device != grid.device:
        if capturing:
            return grid.to(dtype)
        with torch.inference_mode(False), torch.no_grad():  # autograd saves it
            copy = torch.empty_like(grid, dtype=dtype).copy_(grid)
        copies.put(grid, copy)
    else:
        with torch.no_grad():
            copy.data.copy_(grid)
        if capturing:
            _captured[id(copy)] = copy
        else:
            copy.record_stream(torch.cuda.current_stream(grid.device))
    return copy


def autocast(x, spline_weight, base_weight, bias):
    """Autocast touches the matrix operands only: x keeps the precision that locates its cell."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or spline_weight.dtype == torch.float64:
        return x, spline_weight, base_weight, bias
    dtype = torch.get_autocast_dtype(device)
    if x.dtype in checks.HALF_DTYPES and x.dtype != dtype:
        x = x.float()
    return x, *(
        None if operand is None else operand.to(dtype) for operand in (spline_weight, base_weight, bias)
    )


def plan(x, weight, grid, base_weight, bias, spline_order, base, derivative, backend, basis="bspline") -> Any:
    """The backend for these arguments, once they are known to be good; or what stands for it in a trace."""
    arguments = (x, weight, grid, base_weight, bias, spline_order, base, derivative, backend, basis)
    if torch.compiler.is_compiling():
        return _validate(*arguments)
    try:
        key = (
            x.shape[-1],
            x.dtype,
            x.device,
            x.layout,
            weight.shape,
            weight.dtype,
            weight.device,
            None if grid is None else (grid.shape, grid.dtype, grid.device, grid.requires_grad),
            None if base_weight is None else (base_weight.shape, base_weight.dtype, base_weight.device),
            None if bias is None else (bias.shape, bias.dtype, bias.device),
            spline_order,
            base,
            derivative,
            backend,
            basis,
            dispatch.forced_backend(),
            torch.backends.cuda.matmul.fp32_precision if x.is_cuda else None,
        )
        ops = _plans.get(key)
    except (AttributeError, IndexError, TypeError):  # not even tensors: let the checks name the argument
        return _validate(*arguments)
    except RuntimeError:
        if isinstance(x, Tensor) and x.is_nested:  # has no shape where it is strided
            return _validate(*arguments)
        raise
    if ops is None:
        if tracing():  # sizes are tensors now, so that no key is found
            return _traced(untraced(_validate, *arguments))
        ops = _validate(*arguments)
        if len(_plans) >= _PLANS_LIMIT:
            _plans.clear()
        _plans[key] = ops
    return ops


def _traced(ops: Any) -> Any:
    """A backend in a trace of torch.jit: its op, which has gradients of its own, and no Function."""
    if ops.DIFFERENTIABLE:
        return ops
    return SimpleNamespace(DIFFERENTIABLE=True, NAME=ops.NAME, forward=ops.forward_op)


def _validate(x, weight, grid, base_weight, bias, spline_order, base, derivative, backend, basis) -> Any:
    """Check everything but the grid's values, and choose the backend."""
    checks.derivative(derivative)
    dispatch.check_name("backend", backend)
    if basis == "bspline":
        checks.layer(x, weight, grid, base_weight, bias, spline_order, base)
    else:
        checks.global_layer(x, weight, grid, base_weight, bias, basis, base)
        spline_order = basis_order(basis, weight.shape[1])
    in_features, rows, out_features = weight.shape
    case = dispatch.Case(
        device=x.device.type,
        dtype=weight.dtype,
        x_dtype=x.dtype,
        in_features=in_features,
        out_features=out_features,
        grid_size=rows - spline_order,
        spline_order=spline_order,
        base=base,
        derivative=derivative,
        basis=basis,
        index=x.device.index,
    )
    return dispatch.run_on(case, backend)
