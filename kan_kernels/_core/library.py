"""Finds and loads the compiled library, and tells torch the shapes its ops return.

A library that is missing or cannot be loaded does not break the import: LOAD_ERROR keeps the reason, which
`python -m kan_kernels` and every error about the native backend show.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .bases import REMEDY, basis_rows

LIBRARY = Path(__file__).parent.parent / "lib" / "libkan_kernels.so"

SCHEMAS = {
    "forward": "(Tensor x, Tensor? s, Tensor spline_weight, Tensor? base_weight, Tensor? bias, Tensor grid, "
    "int spline_order, int base, int derivative, int basis=0) -> Tensor",
    "input": "(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
    "int spline_order, int base, int derivative, int basis=0) -> Tensor",
    "weight": "(Tensor x, Tensor? s, Tensor g, Tensor grid, "
    "int spline_order, int base, int derivative, int basis=0, Tensor? like=None) -> (Tensor, Tensor)",
    "backward": "(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
    "int spline_order, int base, int derivative, int basis=0) -> (Tensor, Tensor, Tensor)",
}
"""Of the ops of every backend; the library in C++ defines its own, csrc/ops/library.cpp, word for word."""


def _load() -> str | None:
    """Load the library and return None, or say why it could not be."""
    if not LIBRARY.exists():
        return f"{LIBRARY} does not exist; {REMEDY}"
    try:
        torch.ops.load_library(LIBRARY)
        _register()
        _register_statistics()
        _register_convolution()
    except (OSError, RuntimeError, AttributeError) as error:
        loader = error.__cause__ or error  # torch's own message hides the loader's
        return f"{LIBRARY} does not fit torch {torch.__version__} or this Python code ({loader}); {REMEDY}"
    return None


def _devices() -> tuple[str, ...]:
    """The device types with a kernel for every op."""
    names = [f"kan_kernels::{op}" for op in ("forward", "input", "weight", "backward")]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(
        device
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
        if all(has_kernel(name, key) for name in names)
    )


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels run on here, or None without the library."""
    return None if LOAD_ERROR is not None else torch.ops.kan_kernels.cpu_isa()


def define(namespace: str, kernels: dict[str, Callable], keys: tuple[str, ...]) -> torch.library.Library:
    """The family's ops in another namespace, for a backend written in Python; keep the result alive.

    kernels: op name -> its function. keys: the dispatch keys ("CUDA", "CPU") whose tensors they take.
    """
    library = torch.library.Library(namespace, "DEF")
    for op, kernel in kernels.items():
        library.define(op + SCHEMAS[op], tags=(torch.Tag.pt2_compliant_tag,))
        for key in keys:
            library.impl(op, kernel, key)
    _register(namespace)
    return library


def _register(namespace: str = "kan_kernels") -> None:
    """Shapes and the rule of vmap, which C++ does not know."""
    for op, fake, rows in (
        ("forward", _forward, (0, 1)),  # x, s
        ("input", _input, (0, 3)),  # x, g
        ("weight", _weight, ()),
        ("backward", _backward, ()),
    ):
        torch.library.register_fake(f"{namespace}::{op}", fake)
        call = getattr(getattr(torch.ops, namespace), op).default
        torch.library.register_vmap(f"{namespace}::{op}", partial(_vmap, call, rows))


def _register_statistics() -> None:
    """Shapes of the sums over rows and of scaled edges, which only the library has as ops."""
    for op, fake in (
        ("gram", _gram),
        ("gram_input", _gram_input),
        ("cross_gram", _cross_gram),
        ("edge_l1", _edge_l1),
        ("edge_l1_backward", _edge_l1_backward),
        ("edge_scale", _edge_scale),
        ("edge_scale_backward", _edge_scale_backward),
    ):
        torch.library.register_fake(f"kan_kernels::{op}", fake)


def _register_convolution() -> None:
    """Shapes of the convolution, which only the library has as ops."""
    torch.library.register_fake("kan_kernels::convolution", _convolution)
    torch.library.register_fake("kan_kernels::convolution_backward", _convolution_backward)


def _vmap(call, rows, info, in_dims, *args):
    return map_rows(call, rows, info.batch_size, in_dims, args)


def map_rows(call: Callable, rows: tuple[int, ...], size: int, in_dims: tuple, args: tuple) -> tuple:
    """(outputs, out_dims) of `call` under vmap: fold the mapped dimension into the rows, or else loop.

    Folding needs an output with rows and nothing mapped but the arguments at positions `rows`, each (B, n) or
    None. A mapped weight, and a sum over the rows, take one call for each index.
    """
    if rows and all(dim is None or i in rows for i, dim in enumerate(in_dims)):
        folded = list(args)
        for i in rows:
            if args[i] is not None:
                folded[i] = _lead(args[i], in_dims[i], size).flatten(0, 1)
        return call(*folded).unflatten(0, (size, -1)), 0
    outputs = [
        call(*(arg if dim is None else arg.select(dim, n) for arg, dim in zip(args, in_dims, strict=True)))
        for n in range(size)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])


def _lead(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with its mapped dimension first; expanded, if it is not mapped."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _forward(x, s, spline_weight, base_weight, bias, grid, spline_order, base, derivative, basis=0) -> Tensor:
    return spline_weight.new_empty(x.shape[0], spline_weight.shape[2])


def _input(x, spline_weight, base_weight, g, grid, spline_order, base, derivative, basis=0) -> Tensor:
    return x.new_empty(x.shape)


def _weight(x, s, g, grid, spline_order, base, derivative, basis=0, like=None) -> tuple[Tensor, Tensor]:
    rows = basis_rows(basis, grid.shape[1], spline_order)
    base_shape = (x.shape[1], g.shape[1]) if base else (0,)
    spline_shape = x.shape[1], rows, g.shape[1]
    if basis and like is not None and functions_together(like):
        return g.new_empty_strided(spline_shape, like.stride()), g.new_empty(base_shape)
    return g.new_empty(spline_shape), g.new_empty(base_shape)


def _backward(x, spline_weight, base_weight, g, grid, spline_order, base, derivative, basis=0):
    return (
        x.new_empty(x.shape),
        *_weight(x, None, g, grid, spline_order, base, derivative, basis, spline_weight),
    )


def functions_together(weight: Tensor) -> bool:
    """As csrc/ops/checks.h has it: weights (in, R, out) that lie as (out, in, R) or (in, out, R)."""
    features, functions, out = weight.shape
    if weight.dtype not in (torch.float32, torch.float64) or weight.is_contiguous():
        return False
    places = (functions, 1, features * functions), (out * functions, 1, functions)
    return weight.stride() in places


def _gram(x, w, grid, spline_order, base) -> tuple[Tensor, Tensor]:
    n, rows = grid.shape[1] - spline_order - 1, 1 + bool(base)
    return grid.new_empty(x.shape[1], n, spline_order + 1), grid.new_empty(x.shape[1], rows, n + rows)


def _gram_input(x, w, grid, spline_order, base, d_band, d_border) -> Tensor:
    return grid.new_empty(x.shape)


def _cross_gram(x, w, grid, spline_order, other_grid, other_order) -> Tensor:
    n, other_n = grid.shape[1] - spline_order - 1, other_grid.shape[1] - other_order - 1
    return grid.new_empty(x.shape[1], n, other_n)


def _edge_l1(x, spline_weight, base_weight, grid, spline_order, base) -> Tensor:
    return spline_weight.new_empty(x.shape[1], spline_weight.shape[2])


def _edge_l1_backward(x, spline_weight, base_weight, g, grid, spline_order, base, need_x, need_weight):
    return (
        x.new_empty(x.shape if need_x else (0,)),
        g.new_empty(spline_weight.shape if need_weight else (0,)),
        g.new_empty(g.shape if need_weight and base else (0,)),
    )


def _edge_scale(weight, scale) -> Tensor:
    return weight.new_empty(*weight.shape[1:], weight.shape[0])


def _edge_scale_backward(weight, scale, g, need_weight, need_scale):
    return (
        weight.new_empty(weight.shape if need_weight else (0,)),
        weight.new_empty(scale.shape if need_scale else (0,)),
    )


def _convolution(
    x,
    spline_weight,
    base_weight,
    bias,
    grid,
    spline_order,
    base,
    stride,
    padding,
    dilation,
    groups,
    channels_last,
) -> Tensor:
    kernel = spline_weight.shape[2:-1]
    out = [
        (size + sum(padding[2 * d : 2 * d + 2]) - (taps - 1) * dilation[d] - 1) // stride[d] + 1
        for d, (size, taps) in enumerate(zip(x.shape[2:], kernel, strict=True))
    ]
    return _images(spline_weight, x.shape[0], spline_weight.shape[-1] * groups, out, channels_last)


def _convolution_backward(
    x,
    spline_weight,
    base_weight,
    g,
    grid,
    spline_order,
    base,
    stride,
    padding,
    dilation,
    groups,
    channels_last,
    need_x,
    need_weight,
):
    none = x.new_empty(0)
    return (
        _images(x, x.shape[0], x.shape[1], x.shape[2:], channels_last) if need_x else none,
        g.new_empty(spline_weight.shape if need_weight else (0,)),
        g.new_empty(base_weight.shape if need_weight and base else (0,)),
    )


def _images(like: Tensor, batch: int, channels: int, size, channels_last: bool) -> Tensor:
    if channels_last:
        return like.new_empty((batch, *size, channels)).movedim(-1, 1)
    return like.new_empty((batch, channels, *size))


LOAD_ERROR: str | None = _load()
DEVICES: tuple[str, ...] = _devices() if LOAD_ERROR is None else ()
