"""Checks of an op that is called directly, past `functional`: kernels must never read outside a tensor."""

import torch

from ..._core.bases import (
    BASE_CODES,
    BASIS_CODES,
    MAX_DERIVATIVE,
    MAX_FREQUENCIES,
    MAX_FUNCTIONS,
    MAX_SPLINE_ORDER,
    basis_rows,
)
from ..._core.checks import DTYPES, HALF_DTYPES

_NAMES = {
    "forward": ("x", "s", "spline_weight", "base_weight", "bias"),
    "input": ("x", "spline_weight", "base_weight", "g"),
    "weight": ("x", "s", "g"),
    "backward": ("x", "spline_weight", "base_weight", "g"),
}


def check(op: str, args: tuple) -> None:
    """Raise ValueError or TypeError, naming the argument, unless shapes, dtypes, devices, numbers agree."""
    *tensors, grid, order, base, derivative, basis = (*args, 0)[: len(_NAMES[op]) + 5]  # basis may be absent
    given = dict(zip(_NAMES[op], tensors, strict=True))
    like = args[len(_NAMES[op]) + 5] if len(args) > len(_NAMES[op]) + 5 else None
    _number("basis", basis, 0, max(BASIS_CODES.values()))
    most = (MAX_SPLINE_ORDER, 0, MAX_FUNCTIONS - 1, MAX_FREQUENCIES)[basis]
    _number("spline_order", order, int(basis == BASIS_CODES["fourier"]), most)
    _number("base", base, 0, max(BASE_CODES.values()))
    _number("derivative", derivative, 0, MAX_DERIVATIVE + (op == "input"))
    x = given["x"]
    _shape("x", x, (None, None))
    rows, features = x.shape
    _shape("grid", grid, (features, None))
    _columns(grid.shape[1], order, basis)
    functions = basis_rows(basis, grid.shape[1], order)
    wide = given["g"] if "g" in given else given["spline_weight"]
    width = wide.shape[-1] if wide.dim() else -1
    dtype = wide.dtype
    if dtype not in DTYPES:
        raise TypeError(f"weights: got {dtype}, expected float32, float64, bfloat16 or float16")
    x_dtypes = (dtype, torch.float32) if dtype in HALF_DTYPES else (dtype,)
    wanted = {
        "x": ((rows, features), x_dtypes),
        "s": ((rows, features), x_dtypes),
        "spline_weight": ((features, functions, width), (dtype,)),
        "base_weight": ((features, width), (dtype,)),
        "bias": ((width,), (dtype,)),
        "g": ((rows, width), (dtype,)),
        "like": ((features, functions, width), (dtype,)),
        "grid": ((features, grid.shape[1]), (torch.float64 if dtype == torch.float64 else torch.float32,)),
    }
    if "base_weight" in given and (given["base_weight"] is None) != (base == 0):
        raise ValueError(f"base_weight: got {'None' if base else 'a tensor'} with base={base}")
    for name, tensor in (*given.items(), ("like", like), ("grid", grid)):
        if tensor is None:
            continue
        shape, dtypes = wanted[name]
        _shape(name, tensor, shape)
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name}: got {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device}, expected {x.device} like x")


def _columns(columns: int, order: int, basis: int) -> None:
    """The grid has as many columns as its basis takes: knots, centres and their width, or none."""
    if basis == BASIS_CODES["bspline"] and columns < 2 * order + 2:
        raise ValueError(f"grid: got {columns} knots a row, expected {2 * order + 2} or more")
    if basis == BASIS_CODES["rbf"]:
        _number("grid.shape[1]", columns, 2, MAX_FUNCTIONS + 1)
    if basis in (BASIS_CODES["chebyshev"], BASIS_CODES["fourier"]):
        _number("grid.shape[1]", columns, 0, 0)


def _shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for size, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")


def _number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, expected {low}..{high}")
