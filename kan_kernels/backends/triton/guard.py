"""Checks of an op that is called directly, past `functional`: kernels must never read outside a tensor."""

import torch

from ..._core import checks, fakes
from ..._core.bases import BASE_CODES, BY_CODE, MAX_DERIVATIVE, MAX_SPLINE_ORDER
from ..._core.checks import DTYPES, HALF_DTYPES

_NAMES = {
    "kan_linear": ("x", "row_scale", "spline_weight", "base_weight", "bias"),
    "kan_linear_grad_input": ("x", "spline_weight", "base_weight", "g"),
    "kan_linear_grad_weight": ("x", "row_scale", "g"),
    "kan_linear_backward": ("x", "spline_weight", "base_weight", "g"),
    "kan_activation": ("x", "row_scale", "spline_weight", "base_weight"),
    "kan_activation_grad_input": ("x", "spline_weight", "base_weight", "g"),
    "kan_activation_grad_weight": ("x", "row_scale", "g"),
    "kan_activation_backward": ("x", "spline_weight", "base_weight", "g"),
}


def check(op: str, args: tuple) -> None:
    """Raise ValueError or TypeError, naming the argument, unless shapes, dtypes, devices, numbers agree."""
    count = fakes.TENSORS[op]
    *tensors, grid = args[:count]
    functions, order, base, derivative, code, *rest = args[count:]
    given = dict(zip(_NAMES[op], tensors, strict=True))
    like = rest[0] if rest else None
    _number("basis", code, 0, len(BY_CODE) - 1)
    basis = BY_CODE[code]
    _number("order", order, 0, MAX_SPLINE_ORDER if basis.local else 0)
    expected = basis.why_not(functions)
    if expected is not None:
        raise ValueError(f"functions: got {functions}, expected {expected}")
    _number("base", base, 0, max(BASE_CODES.values()))
    _number("derivative", derivative, 0, MAX_DERIVATIVE + op.endswith("_grad_input"))
    x = given["x"]
    _shape("x", x, (None, None))
    rows, features = x.shape
    if basis.local and functions <= order:
        raise ValueError(f"functions: got {functions}, expected more than the order, {order}")
    _shape("grid", grid, (features, basis.columns(functions, order)))
    wide = given["g"] if "g" in given else given["spline_weight"]
    width = wide.shape[-1] if wide.dim() else -1
    dtype = wide.dtype
    if dtype not in DTYPES:
        raise TypeError(f"weights: got {dtype}, expected float32, float64, bfloat16 or float16")
    x_dtypes = (dtype, torch.float32) if dtype in HALF_DTYPES else (dtype,)
    wanted = {
        "x": ((rows, features), x_dtypes),
        "row_scale": ((rows, features), x_dtypes),
        "spline_weight": ((features, functions, width), (dtype,)),
        "base_weight": ((features, width), (dtype,)),
        "bias": ((width,), (dtype,)),
        "g": ((rows, width) if op.startswith("kan_linear") else (rows, features, width), (dtype,)),
        "like": ((features, functions, width), (dtype,)),
        "grid": ((features, grid.shape[1]), (torch.float64 if dtype == torch.float64 else torch.float32,)),
    }
    if "base_weight" in given and (given["base_weight"] is None) != (base == 0):
        raise ValueError(f"base_weight: got {'None' if base else 'a tensor'} with base={base}")
    if grid.is_cpu:  # in the interpreter; a GPU is not waited for
        checks.grid_values(grid, basis)
    for name, tensor in (*given.items(), ("like", like), ("grid", grid)):
        if tensor is None:
            continue
        shape, dtypes = wanted[name]
        _shape(name, tensor, shape)
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name}: got {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device}, expected {x.device} like x")


def _shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for size, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")


def _number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, expected {low}..{high}")
