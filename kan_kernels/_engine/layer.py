"""A call of a layer: arguments are checked and a backend is chosen once for all calls that are alike."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import BASE_CODES, BSPLINE, Basis
from .._core.problem import Problem, Spec
from .._core.tensor_cache import TensorCache, readable
from .._core.tracing import tracing, untraced
from . import autograd, dispatch, op_gradients  # noqa: F401  # the last registers

# What was checked before: all that the checks look at -> the constants. Kernels look at the knots they read.
_specs: dict[tuple[Any, ...], Spec] = {}
_SPECS_LIMIT = 4096


def call(
    x: Tensor,
    weight: Tensor,
    grid: Tensor | None,
    base_weight: Tensor | None,
    bias: Tensor | None,
    order: int,
    base: str | None,
    derivative: int,
    backend: str | None,
    basis: Basis = BSPLINE,
    op: str = "kan_linear",
) -> Tensor:
    """Return a layer's output, once its arguments are known to be good; of every part of a nested x."""
    if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor) and isinstance(weight, Tensor):
        x, weight, base_weight, bias = autocast(x, weight, base_weight, bias)
    arguments = (weight, grid, base_weight, bias, order, base, derivative, backend, basis, op)
    try:
        spec = spec_of(x, *arguments)
    except checks.NestedError:
        return of_parts(x, lambda part: call(part, *arguments))
    if grid is None:
        grid = untraced(_no_grid, weight)
    return run(x, weight, base_weight, bias, grid, spec)


def _no_grid(weight: Tensor) -> Tensor:
    """Return the grid without columns of a basis that has none."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.new_empty((weight.shape[0], 0), dtype=dtype)


def spec_of(
    x: Any,
    weight: Any,
    grid: Any,
    base_weight: Any,
    bias: Any,
    order: int,
    base: str | None,
    derivative: int,
    backend: str | None,
    basis: Basis = BSPLINE,
    op: str = "kan_linear",
) -> Spec:
    """Return the constants of a call, once its arguments are known to be good."""
    arguments = (x, weight, grid, base_weight, bias, order, base, derivative, backend, basis, op)
    if torch.compiler.is_compiling():
        return _checked(*arguments)
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
            order,
            base,
            derivative,
            backend,
            basis.code,
            op,
            dispatch.forced_backend(),
            (torch.backends.cuda.matmul.fp32_precision, *work(x, weight, base_weight, bias))
            if x.is_cuda
            else None,
        )
        spec = _specs.get(key)
    except (AttributeError, IndexError, TypeError):  # not even tensors: let the checks name the argument
        return _checked(*arguments)
    except RuntimeError:
        if isinstance(x, Tensor) and x.is_nested:  # has no shape where it is strided
            return _checked(*arguments)
        raise
    if spec is None:
        if tracing():  # sizes are tensors now, so that no key is found
            return untraced(_checked, *arguments)
        spec = _checked(*arguments)
        if len(_specs) >= _SPECS_LIMIT:
            _specs.clear()
        _specs[key] = spec
    return spec


def work(x: Any, *parameters: Any) -> tuple[int, bool]:
    """Return what a GPU is asked for: the rows of a call, up to a power of two, and whether it is training.

    While compiling the rows stay unknown, so that a graph holds for every batch.
    """
    given = [t for t in (x, *parameters) if isinstance(t, Tensor)]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if torch.compiler.is_compiling() or x.shape[-1] == 0:
        return 0, training
    rows = x.numel() // x.shape[-1]
    return (1 << (rows - 1).bit_length() if rows else 0), training


def _checked(
    x, weight, grid, base_weight, bias, order, base, derivative, backend, basis: Basis, op: str
) -> Spec:
    """Check everything but the grid's values, and choose the backend."""
    checks.derivative(derivative)
    dispatch.check_name("backend", backend)
    checks.layer(x, weight, grid, base_weight, bias, order, base, basis)
    in_features, functions, out_features = weight.shape
    rows, training = work(x, weight, base_weight, bias) if x.is_cuda else (0, False)
    problem = Problem(
        device=x.device.type,
        dtype=weight.dtype,
        x_dtype=x.dtype,
        in_features=in_features,
        out_features=out_features,
        functions=functions,
        order=order,
        base=base,
        derivative=derivative,
        basis=basis.name,
        index=x.device.index,
        op=op,
        rows=rows,
        training=training,
    )
    module, composed = dispatch.run_on(problem, backend)
    numbers = functions, order, BASE_CODES[base], derivative, basis.code
    return Spec(*numbers, module, composed, summed=op != "kan_activation")


def run(
    x: Tensor, weight: Tensor, base_weight: Tensor | None, bias: Tensor | None, grid: Tensor, spec: Spec
) -> Tensor:
    """Return the layer's output, (..., out) or (..., in, heads), for arguments that were checked."""
    knots_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if grid.dtype != knots_dtype:
        grid = _widened(grid, knots_dtype)
    if spec.derivative:
        bias = None
    rank = x.dim()
    rows = x if rank == 2 else x.unsqueeze(0) if rank == 1 else x.flatten(0, -2)
    backend = spec.backend
    if backend.DIFFERENTIABLE or tracing():  # a trace holds the op, which has gradients of its own
        y: Tensor = autograd.Forward.forward(rows, None, weight, base_weight, bias, grid, spec)
    else:
        y = autograd.kan_linear(rows, weight, base_weight, bias, grid, spec)
    return y if rank == 2 else y.reshape(*x.shape[:-1], *y.shape[1:])


def _widened(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the knots in another dtype."""
    if grid.is_cuda and readable(grid) and not hasattr(grid, "to_local"):  # a DTensor records no streams
        return _kept_copy(grid, dtype)
    return grid.to(dtype)


_copies: dict[torch.dtype, TensorCache[Tensor]] = {}
_captured: dict[int, Tensor] = {}  # copies that a CUDA graph fills at every replay: it needs them for ever


def _kept_copy(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same copy for as long as torch counts no write, with the values that the knots have now.

    A GPU backend looks at values once for each tensor and version (backends/triton/knots.py), so a new copy
    at every call would be a synchronisation at every call; filling it past its version is none. Every stream
    fills it with the same values, and its memory is not given away while one still reads it.
    """
    copies = _copies.setdefault(dtype, TensorCache())
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


def autocast(
    x: Tensor, weight: Tensor, base_weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Cast as autocast does, but the matrix operands only: x keeps the precision that locates its cell."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return x, weight, base_weight, bias
    dtype = torch.get_autocast_dtype(device)
    if x.dtype in checks.HALF_DTYPES and x.dtype != dtype:
        x = x.float()
    base_weight = None if base_weight is None else base_weight.to(dtype)
    return x, weight.to(dtype), base_weight, None if bias is None else bias.to(dtype)


def of_parts(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a layer's (..., out) for every part of a nested tensor, itself nested, of the layout that x has.

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
