"""Checks of arguments. Each raises TypeError or ValueError: the argument, what came and what was expected."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bases import BASE_CODES, BASES, BSPLINE, FULL_SUPPORT, MAX_DERIVATIVE, MAX_SPLINE_ORDER, Basis
from .tensor_cache import has_values
from .tracing import untraced

HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)


class GridError(ValueError):
    """The knots, centres or widths of a layer have values that no kernel may see."""


class NestedError(TypeError):
    """A nested tensor where a dense one is expected."""


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as a plain int in low..high: whatever has __index__, NumPy's too, and is no bool."""
    expected = f"an int >= {low}" if high is None else f"an int in {low}..{high}"
    number: int
    if type(value) is int or isinstance(value, torch.SymInt):
        number = value  # type: ignore[assignment]
    elif isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    else:
        try:
            number = int(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name}: got {value!r}, expected {expected}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: got {number}, expected {expected}")
    return number


def boolean(name: str, value: object) -> bool:
    """Return `value` as a plain bool, which is what it has to be, or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r}, expected True or False")
    return bool(value)


def nonnegative(name: str, value: object, high: float = math.inf) -> float:
    """Return `value` as a finite float in 0..high."""
    expected = "a finite number >= 0" if high == math.inf else f"a number from 0 to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's are registered
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= high):
        raise ValueError(f"{name}: got {value}, expected {expected}")
    return number


def above(name: str, value: object, low: float) -> float:
    """Return `value` as a finite float > low."""
    expected = f"a finite number > {low:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    number = float(value)
    if not (math.isfinite(number) and number > low):
        raise ValueError(f"{name}: got {value}, expected {expected}")
    return number


def is_sequence(value: object) -> bool:
    """Return whether it has entries in order, as lists and arrays have."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def each(name: str, value: object, dims: int, low: int) -> tuple[int, ...]:
    """Check that `value` is an int >= low or one for each of `dims` dimensions; return all of them."""
    values = tuple(value) if is_sequence(value) else (value,) * dims  # type: ignore[arg-type]
    if len(values) != dims:
        raise ValueError(f"{name}: got {value!r}, expected an int or {dims} of them")
    return tuple(integer(name, number, low) for number in values)


def of_layers(name: str, value: object, count: int) -> list[Any]:
    """Check that `value` is one for all layers, or a sequence with one for each; return `count` of them."""
    values = list(value) if is_sequence(value) else [value] * count  # type: ignore[call-overload]
    if len(values) != count:
        raise ValueError(f"{name}: got {value!r}, expected one for all layers, or one for each of {count}")
    return values


def padding(value: object, dims: int, stride: Sequence[int]) -> str | tuple[int, ...]:
    """Return "valid", "same" beside strides of 1, an int >= 0 or one for each dimension: for all of them."""
    if not isinstance(value, str):
        return each("padding", value, dims, 0)
    if value not in ("same", "valid"):
        raise ValueError(
            f"padding: got {value!r}, expected an int, one for each dimension, 'same' or 'valid'"
        )
    if value == "same" and any(step != 1 for step in stride):
        raise ValueError(f"padding: got 'same' with stride {tuple(stride)}, expected stride 1")
    return value


def spline_order(value: object) -> int:
    return integer("spline_order", value, 0, MAX_SPLINE_ORDER)


def derivative(value: object) -> int:
    return integer("derivative", value, 0, MAX_DERIVATIVE)


def base(value: object) -> None:
    """Check that `value` is the name of a base activation, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"base: got {value!r}, expected 'silu', 'identity' or None")
    if value not in BASE_CODES:
        raise ValueError(f"base: unknown activation {value!r}, expected 'silu', 'identity' or None")


def heads(value: object, out_features: int) -> int:
    """Check that `value` is a number of equal groups of the outputs."""
    number = integer("heads", value, 1)
    if number > out_features or out_features % number:
        raise ValueError(
            f"heads: got {number}, expected a divisor of out_features={out_features}: "
            f"{divisors(out_features)}"
        )
    return number


def divisors(number: int) -> str:
    """Return the divisors of a number as text, the middle of many left out."""
    found = [n for n in range(1, number + 1) if number % n == 0]
    parts = [str(n) for n in found]
    return ", ".join(parts if len(parts) <= 12 else [*parts[:6], "...", *parts[-5:]])


def interval(name: str, value: object) -> tuple[float, float]:
    """Check that `value` is a pair of finite increasing numbers; return them."""
    expected = "a pair (low, high) of finite numbers with low < high"
    try:
        low, high = (float(bound) for bound in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {value!r}, expected {expected}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return low, high


def names(name: str, value: object, count: int, of: str = "column") -> list[str]:
    """Check that `value` is `count` different non-empty strings, in a sequence; return them."""
    expected = f"{count} different non-empty strings, a name for each {of}"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    values = list(value)
    if not all(isinstance(entry, str) and entry for entry in values):
        raise TypeError(f"{name}: got {values!r}, expected {expected}")
    if len(values) != count or len(set(values)) != count:
        raise ValueError(f"{name}: got {values!r}, expected {expected}")
    return values


def tensor(name: str, value: object, rank: int | None = None) -> None:
    """Check that `value` is a dense floating tensor, of this rank if one is given."""
    if isinstance(value, torch.fx.Proxy):
        raise TypeError(
            f"{name}: got torch.fx's Proxy, expected a torch.Tensor; make the layer a leaf of the tracer "
            "(Tracer.is_leaf_module), or mark the function by torch.fx.wrap"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: got {value.dtype}, expected float32, float64, bfloat16 or float16")
    if value.is_nested:
        raise NestedError(f"{name}: got a nested tensor, expected a dense one; pass its parts one by one")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got {value.layout}, expected a dense tensor; pass {name}.to_dense()")
    if rank is not None and value.dim() != rank:
        raise ValueError(f"{name}: got {value.dim()} dimensions {tuple(value.shape)}, expected {rank}")


def rows(x: object, in_features: int) -> None:
    """Check that `x` is (..., in_features)."""
    tensor("x", x)
    if x.dim() == 0 or x.shape[-1] != in_features:  # type: ignore[attr-defined]
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {in_features})")  # type: ignore[attr-defined]


def operand(
    name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Check that `value` is a tensor of this shape, dtype and device."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {shape}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: got {value.dtype}, expected {dtype} like spline_weight")
    if value.device != device:
        raise ValueError(f"{name}: is on {value.device}, expected {device} like x")


def grid_shape(grid: object, order: int, in_features: int | None = None) -> None:
    """Check that `grid` is (in, G+2k+1) with G >= 1 and asks for no gradient."""
    tensor("grid", grid, 2)
    assert isinstance(grid, Tensor)
    if in_features is not None and grid.shape[0] != in_features:
        raise ValueError(
            f"grid: got shape {tuple(grid.shape)}, expected ({in_features}, knots), a row for each feature"
        )
    if grid.shape[1] < 2 * order + 2:
        raise ValueError(
            f"grid: got {grid.shape[1]} knots a row, expected 2*spline_order + 2 = {2 * order + 2} or more"
        )
    if grid.requires_grad:
        raise ValueError("grid: requires grad, but there is no gradient for knots; pass grid.detach()")


def layer(
    x: object,
    weight: object,
    grid: object,
    base_weight: object,
    bias: object,
    order: object,
    base_name: object,
    basis: Basis = BSPLINE,
) -> None:
    """Check that the tensors of one layer fit together, not the grid's values. Splines have an order."""
    name = "spline_weight" if basis.local else "weight"
    number = spline_order(order) if basis.local else 0
    base(base_name)
    tensor(name, weight, 3)
    assert isinstance(weight, Tensor)
    in_features, functions, out_features = weight.shape
    if not basis.local:
        expected = basis.why_not(functions)
        if expected is not None:
            raise ValueError(f"{name}.shape[1]: got {functions}, expected {expected}")
    rows(x, in_features)
    assert isinstance(x, Tensor)
    dtype, device = weight.dtype, x.device
    _rows_like(x, dtype, name)
    if basis.local:
        grid_shape(grid, number, in_features)
        assert isinstance(grid, Tensor)
        grid_like(grid, weight)
        operand(name, weight, (in_features, grid.shape[1] - number - 1, out_features), dtype, device)
    elif weight.device != device:
        raise ValueError(f"{name}: is on {weight.device}, expected {device} like x")
    elif basis.grid is not None:
        _columns(grid, (in_features, basis.columns(functions, 0)), basis)
        assert isinstance(grid, Tensor)
        grid_like(grid, weight)
    elif grid is not None:
        raise ValueError(f"grid: got one, expected None: the basis {basis.name!r} has none")
    if isinstance(grid, Tensor) and grid.device != device:
        raise ValueError(f"grid: is on {grid.device}, expected {device} like x")
    _base_and_bias(base_weight, bias, base_name, in_features, out_features, dtype, device)


def _columns(grid: object, expected: tuple[int, int], basis: Basis) -> None:
    """Check that `grid` has this shape and asks for no gradient."""
    tensor("grid", grid, 2)
    assert isinstance(grid, Tensor)
    if grid.shape != expected:
        raise ValueError(
            f"grid: got shape {tuple(grid.shape)}, expected {expected}, each feature's {basis.grid}"
        )
    if grid.requires_grad:
        raise ValueError(
            f"grid: requires grad, but there is no gradient for {basis.grid}; pass grid.detach()"
        )


def _rows_like(x: Tensor, dtype: torch.dtype, like: str) -> None:
    if x.dtype != dtype and not (x.dtype == torch.float32 and dtype in HALF_DTYPES):
        also = " or float32" if dtype in HALF_DTYPES else ""
        raise TypeError(f"x: got {x.dtype}, expected {dtype} like {like}{also}")


def _base_and_bias(
    base_weight: object,
    bias: object,
    base_name: object,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if (base_name is None) != (base_weight is None):
        raise ValueError(
            f"base_weight: got {'None' if base_weight is None else 'a tensor'} with base={base_name!r}, "
            "expected it exactly if there is a base"
        )
    if base_weight is not None:
        operand("base_weight", base_weight, (in_features, out_features), dtype, device)
    if bias is not None:
        operand("bias", bias, (out_features,), dtype, device)


def basis(value: object, names: Sequence[str] = tuple(BASES), elsewhere: str = "") -> Basis:
    """Return the record of the basis `value`, one of these."""
    if isinstance(value, str) and value in names:
        return BASES[value]
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"basis: got {value!r}, expected one of {', '.join(map(repr, names))}{elsewhere}")


def full_support(value: object) -> Basis:
    """Return the record of the basis of full support `value`."""
    return basis(value, FULL_SUPPORT, " (B-splines: kan_linear)")


def knots(grid: Tensor) -> None:
    """Check that the knots are finite and non-decreasing, where they are on the CPU and not traced."""
    grid_values(grid, BSPLINE)


def grid_values(grid: Tensor, basis: Basis) -> None:
    """Check that a grid has values that its basis takes. Compiled kernels look at what they read.

    Other devices than the CPU are not looked at: that would wait for them.
    """
    if basis.grid is not None and grid.is_cpu and not torch.compiler.is_compiling():
        untraced(_look, grid, basis.complaint)


def explained(error: RuntimeError) -> Exception:
    """Return the GridError for what a kernel found in its grid; any other error as it is."""
    said = str(error).partition("\n")[0]
    return GridError(said) if said.startswith("grid: ") else error


def _look(grid: Tensor, complaint: Callable[[Tensor], str | None]) -> None:
    """Raise GridError if there is a complaint about the grid's values: those beneath all transforms."""
    with torch._C._DisableFuncTorch(), torch.no_grad():
        values = _beneath_transforms(grid)
        said = None if values is None else complaint(values)
    if said is not None:
        raise GridError(f"grid: {said}")


def _beneath_transforms(grid: Tensor) -> Tensor | None:
    """Return the values (..., in, columns) of a grid that transforms wrapped; None where there are none."""
    functorch = torch._C._functorch
    places = [grid.dim() - 2, grid.dim() - 1]  # of features and columns
    while functorch.is_functorch_wrapped_tensor(grid):
        if functorch.is_functionaltensor(grid):
            return None
        if functorch.is_batchedtensor(grid):
            mapped = functorch.maybe_get_bdim(grid)
            places = [place + (place >= mapped) for place in places]
        grid = functorch.get_unwrapped(grid)
    if not has_values(grid):
        return None
    return grid if places == [grid.dim() - 2, grid.dim() - 1] else grid.movedim(places, (-2, -1))


def grid_like(grid: Tensor, operand: Tensor) -> None:
    """Check that the knots are float32 or of the operand's dtype."""
    if grid.dtype not in (torch.float32, operand.dtype):
        also = "" if operand.dtype == torch.float32 else f" or {operand.dtype}"
        raise TypeError(f"grid: got {grid.dtype}, expected torch.float32{also}")


def dtype(value: object) -> None:
    """Check that `value` is a dtype that a layer can have."""
    if value not in DTYPES:
        raise TypeError(f"dtype: got {value!r}, expected float32, float64, bfloat16 or float16")


def widths(value: object, name: str = "widths") -> list[int]:
    """Check that `value` is a sequence of at least two positive ints; return them."""
    if not is_sequence(value):
        raise TypeError(f"{name}: got {value!r}, expected a sequence of at least two positive ints")
    values = list(value)  # type: ignore[call-overload]
    if len(values) < 2:
        raise ValueError(
            f"{name}: got {len(values)} of them, expected at least two, the input's and the output's"
        )
    return [integer(f"{name}[{i}]", width, 1) for i, width in enumerate(values)]
