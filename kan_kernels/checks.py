"""Checks of arguments. Each raises TypeError or ValueError: the argument, what came and what was expected."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import BASE_CODES, BASIS_CODES, MAX_DERIVATIVE, MAX_SPLINE_ORDER, most_rows
from .remembered import Remembered, readable

HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)

_checked: Remembered[bool] = Remembered(by_value=True)  # grids that are good


class GridError(ValueError):
    """The knots, centres or widths of a layer have values that no kernel may see."""


def integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """`value` is an int in low..high."""
    expected = f"an int >= {low}" if high is None else f"an int in {low}..{high}"
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def nonnegative(name: str, value: object, high: float = math.inf) -> None:
    """`value` is a finite number in 0..high."""
    expected = "a finite number >= 0" if high == math.inf else f"a number from 0 to {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not (math.isfinite(value) and 0 <= value <= high):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def each(name: str, value: object, dims: int, low: int) -> tuple[int, ...]:
    """`value` is an int >= low or one for each of `dims` dimensions: all of them."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name}: got {value!r}, expected an int or {dims} of them")
    for number in values:
        integer(name, number, low)
    return values  # type: ignore[return-value]


def padding(value: object, dims: int, stride: Sequence[int]) -> None:
    """`value` is "valid", "same" beside strides of 1, an int >= 0 or one for each dimension."""
    if not isinstance(value, str):
        each("padding", value, dims, 0)
    elif value not in ("same", "valid"):
        raise ValueError(
            f"padding: got {value!r}, expected an int, one for each dimension, 'same' or 'valid'"
        )
    elif value == "same" and any(step != 1 for step in stride):
        raise ValueError(f"padding: got 'same' with stride {tuple(stride)}, expected stride 1")


def spline_order(value: object) -> None:
    integer("spline_order", value, 0, MAX_SPLINE_ORDER)


def derivative(value: object) -> None:
    integer("derivative", value, 0, MAX_DERIVATIVE)


def base(value: object) -> None:
    """`value` is the name of a base activation, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"base: got {value!r}, expected 'silu', 'identity' or None")
    if value not in BASE_CODES:
        raise ValueError(f"base: unknown activation {value!r}, expected 'silu', 'identity' or None")


def grid_range(value: object) -> None:
    """`value` is a pair of finite increasing numbers."""
    expected = "a pair (low, high) of finite numbers with low < high"
    try:
        low, high = (float(bound) for bound in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"grid_range: got {value!r}, expected {expected}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"grid_range: got {value!r}, expected {expected}")


def tensor(name: str, value: object, rank: int | None = None) -> None:
    """`value` is a floating tensor, of this rank if one is given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: got {value.dtype}, expected float32, float64, bfloat16 or float16")
    if rank is not None and value.dim() != rank:
        raise ValueError(f"{name}: got {value.dim()} dimensions {tuple(value.shape)}, expected {rank}")


def rows(x: object, in_features: int) -> None:
    """`x` is (..., in_features)."""
    tensor("x", x)
    if x.dim() == 0 or x.shape[-1] != in_features:  # type: ignore[attr-defined]
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {in_features})")  # type: ignore[attr-defined]


def operand(
    name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """`value` is a tensor of this shape, dtype and device."""
    tensor(name, value)
    assert isinstance(value, Tensor)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {shape}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: got {value.dtype}, expected {dtype} like spline_weight")
    if value.device != device:
        raise ValueError(f"{name}: is on {value.device}, expected {device} like x")


def grid_shape(grid: object, order: int, in_features: int | None = None) -> None:
    """`grid` is (in, G+2k+1) with G >= 1 and asks for no gradient."""
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
    spline_weight: object,
    grid: object,
    base_weight: object,
    bias: object,
    order: object,
    base_name: object,
) -> None:
    """The tensors of one layer fit together; the knots' values are not looked at."""
    spline_order(order)
    base(base_name)
    tensor("spline_weight", spline_weight, 3)
    assert isinstance(spline_weight, Tensor) and isinstance(order, int)
    in_features, _, out_features = spline_weight.shape
    rows(x, in_features)
    assert isinstance(x, Tensor)
    dtype, device = spline_weight.dtype, x.device
    _rows_like(x, dtype, "spline_weight")
    grid_shape(grid, order, in_features)
    assert isinstance(grid, Tensor)
    grid_like(grid, spline_weight)
    expected = (in_features, grid.shape[1] - order - 1, out_features)
    operand("spline_weight", spline_weight, expected, dtype, device)
    if grid.device != device:
        raise ValueError(f"grid: is on {grid.device}, expected {device} like x")
    _base_and_bias(base_weight, bias, base_name, in_features, out_features, dtype, device)


def _rows_like(x: Tensor, dtype: torch.dtype, like: str) -> None:
    if x.dtype != dtype and not (x.dtype == torch.float32 and dtype in HALF_DTYPES):
        also = " or float32" if dtype in HALF_DTYPES else ""
        raise TypeError(f"x: got {x.dtype}, expected {dtype} like {like}{also}")


def _base_and_bias(base_weight, bias, base_name, in_features, out_features, dtype, device) -> None:
    if (base_name is None) != (base_weight is None):
        raise ValueError(
            f"base_weight: got {'None' if base_weight is None else 'a tensor'} with base={base_name!r}, "
            "expected it exactly if there is a base"
        )
    if base_weight is not None:
        operand("base_weight", base_weight, (in_features, out_features), dtype, device)
    if bias is not None:
        operand("bias", bias, (out_features,), dtype, device)


def basis(value: object) -> None:
    """`value` is the name of a basis."""
    expected = f"one of {', '.join(map(repr, BASIS_CODES))}"
    if not isinstance(value, str):
        raise TypeError(f"basis: got {value!r}, expected {expected}")
    if value not in BASIS_CODES:
        raise ValueError(f"basis: got {value!r}, expected {expected}")


def global_basis(value: object) -> None:
    """`value` is the name of a basis that is not local."""
    expected = "'rbf', 'chebyshev' or 'fourier' (B-splines: kan_linear)"
    if not isinstance(value, str):
        raise TypeError(f"basis: got {value!r}, expected {expected}")
    if value not in BASIS_CODES or value == "bspline":
        raise ValueError(f"basis: got {value!r}, expected {expected}")


def global_layer(
    x: object,
    weight: object,
    grid: object,
    base_weight: object,
    bias: object,
    basis: object,
    base_name: object,
) -> None:
    """The tensors of one layer whose basis is not local fit together; the grid's values are not looked at."""
    global_basis(basis)
    base(base_name)
    tensor("weight", weight, 3)
    assert isinstance(weight, Tensor)
    in_features, functions, out_features = weight.shape
    assert isinstance(basis, str)
    integer("weight.shape[1]", functions, 1, most_rows(basis))
    if basis == "fourier" and functions % 2:
        raise ValueError(f"weight.shape[1]: got {functions}, expected an even number: cosines, then sines")
    rows(x, in_features)
    assert isinstance(x, Tensor)
    dtype, device = weight.dtype, x.device
    _rows_like(x, dtype, "weight")
    if weight.device != device:
        raise ValueError(f"weight: is on {weight.device}, expected {device} like x")
    if basis == "rbf":
        tensor("grid", grid, 2)
        assert isinstance(grid, Tensor)
        expected = (in_features, functions + 1)
        if grid.shape != expected:
            raise ValueError(
                f"grid: got shape {tuple(grid.shape)}, expected {expected}, "
                "each feature's centres and their width"
            )
        if grid.requires_grad:
            raise ValueError("grid: requires grad, but there is no gradient for centres; pass grid.detach()")
        grid_like(grid, weight)
        if grid.device != device:
            raise ValueError(f"grid: is on {grid.device}, expected {device} like x")
    elif grid is not None:
        raise ValueError(f"grid: got one, expected None: the basis {basis!r} has none")
    _base_and_bias(base_weight, bias, base_name, in_features, out_features, dtype, device)


def _seen(grid: Tensor) -> bool:
    """Whether this state of a grid was looked at before, or cannot be without waiting for a device."""
    if torch.compiler.is_compiling() or not grid.is_cpu or torch._C._are_functorch_transforms_active():
        return True
    return _checked.get(grid) is not None or not readable(grid)


def centres(grid: Tensor) -> None:
    """The centres of Gaussians are finite and their widths positive; looks at values as `knots` does."""
    if _seen(grid):
        return
    with torch.no_grad():
        good = torch.isfinite(grid)
        good[:, -1] &= grid[:, -1] > 0
        if not good.all():
            feature, column = (~good).nonzero()[0].tolist()
            what = "width" if column == grid.shape[1] - 1 else f"centre {column}"
            raise GridError(
                f"grid: the {what} of feature {feature} is {grid[feature, column].item()}, "
                "expected finite centres and a finite width > 0"
            )
    _checked.put(grid, True)


def knots(grid: Tensor) -> None:
    """The knots are finite and non-decreasing.

    Looks at values only where that needs no device synchronisation, and once for each state of a tensor.
    """
    if _seen(grid):
        return
    with torch.no_grad():
        good = torch.isfinite(grid)
        good[:, 1:] &= grid[:, 1:] >= grid[:, :-1]
        if not good.all():
            feature, knot = (~good).nonzero()[0].tolist()
            after = f" after {grid[feature, knot - 1].item()}" if knot else ""
            raise GridError(
                f"grid: knot {knot} of feature {feature} is {grid[feature, knot].item()}{after}, "
                "expected finite, non-decreasing knots"
            )
    _checked.put(grid, True)


def grid_like(grid: Tensor, operand: Tensor) -> None:
    """The knots are float32 or of the operand's dtype."""
    if grid.dtype not in (torch.float32, operand.dtype):
        also = "" if operand.dtype == torch.float32 else f" or {operand.dtype}"
        raise TypeError(f"grid: got {grid.dtype}, expected torch.float32{also}")


def dtype(value: object) -> None:
    """`value` is a dtype that a layer can have."""
    if value not in DTYPES:
        raise TypeError(f"dtype: got {value!r}, expected float32, float64, bfloat16 or float16")


def widths(value: object, name: str = "widths") -> None:
    """`value` is a sequence of at least two positive ints."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: got {value!r}, expected a sequence of at least two positive ints")
    if len(value) < 2:
        raise ValueError(
            f"{name}: got {len(value)} of them, expected at least two, the input's and the output's"
        )
    for i, width in enumerate(value):
        integer(f"{name}[{i}]", width, 1)
