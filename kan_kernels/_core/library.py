"""Finds and loads the compiled library, and tells torch what its ops return.

A library that is missing or cannot be loaded does not break the import: LOAD_ERROR keeps the reason, which
`python -m kan_kernels` and every error about the native backend show.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import fakes
from .bases import REMEDY
from .function import map_features, map_rows

OFF = os.environ.get("KAN_KERNELS_OFF", "").split(",")
"""What `python -m benchmarks paths` switches off."""

LIBRARY = Path(__file__).parent.parent / "lib" / "libkan_kernels.so"

_NUMBERS = "Tensor grid, int functions, int order, int base, int derivative, int basis"
SCHEMAS = {
    "kan_linear": "(Tensor x, Tensor? row_scale, Tensor spline_weight, Tensor? base_weight, Tensor? bias, "
    f"{_NUMBERS}) -> Tensor",
    "kan_linear_grad_input": f"(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, {_NUMBERS}) "
    "-> Tensor",
    "kan_linear_grad_weight": f"(Tensor x, Tensor? row_scale, Tensor g, {_NUMBERS}, Tensor? like=None) "
    "-> (Tensor, Tensor)",
    "kan_linear_backward": f"(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, {_NUMBERS}) "
    "-> (Tensor, Tensor, Tensor)",
    "kan_activation": "(Tensor x, Tensor? row_scale, Tensor spline_weight, Tensor? base_weight, "
    f"{_NUMBERS}) -> Tensor",
    "kan_activation_grad_input": "(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, "
    f"{_NUMBERS}) -> Tensor",
    "kan_activation_grad_weight": f"(Tensor x, Tensor? row_scale, Tensor g, {_NUMBERS}) -> (Tensor, Tensor)",
    "kan_activation_backward": f"(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, {_NUMBERS}) "
    "-> (Tensor, Tensor, Tensor)",
}
"""Of the ops of every fused backend; the library in C++ defines its own, csrc/ops, word for word."""

# arguments with rows, of outputs with rows
_ROWS = {
    "kan_linear": (0, 1),
    "kan_linear_grad_input": (0, 3),
    "kan_activation": (0, 1),
    "kan_activation_grad_input": (0, 3),
}

FEATURES = {
    "kan_activation": ((1, 1, 0, 0, 0), (1,)),
    "kan_activation_grad_input": ((1, 0, 0, 1, 0), (1,)),
    "kan_activation_grad_weight": ((1, 1, 1, 0), (0, 0)),
    "kan_activation_backward": ((1, 0, 0, 1, 0), (1, 0, 0)),
}
"""Where tensors and results of the ops without a sum over the features have these: for vmap."""


def _load() -> str | None:
    """Load the library and return None, or return why it could not be."""
    if not LIBRARY.exists():
        return f"{LIBRARY} does not exist; {REMEDY}"
    try:
        torch.ops.load_library(LIBRARY)
        _register("kan_kernels", fakes.LINEAR | fakes.ACTIVATION)
        for op, fake in fakes.OTHERS.items():
            torch.library.register_fake(f"kan_kernels::{op}", fake)
    except (OSError, RuntimeError, AttributeError) as error:
        loader = error.__cause__ or error  # torch's own message hides the loader's
        return f"{LIBRARY} does not fit torch {torch.__version__} or this Python code ({loader}); {REMEDY}"
    return None


def devices_of(op: str) -> tuple[str, ...]:
    """Return the device types for which the library has a kernel of an op."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(
        device
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
        if LOAD_ERROR is None and has_kernel(f"kan_kernels::{op}", key)
    )


def cpu_isa() -> str | None:
    """Return the instruction set that the CPU kernels run on here, or None without the library."""
    return None if LOAD_ERROR is not None else str(torch.ops.kan_kernels.cpu_isa())


def define(
    namespace: str, kernels: dict[str, Callable[..., Any]], keys: tuple[str, ...]
) -> torch.library.Library:
    """Define ops of layers and activations in another namespace, for a backend in Python.

    Keep the result alive. kernels: op name -> its function. keys: the dispatch keys ("CUDA", "CPU") whose
    tensors they take.
    """
    library = torch.library.Library(namespace, "DEF")
    for op, kernel in kernels.items():
        library.define(op + SCHEMAS[op], tags=(torch.Tag.pt2_compliant_tag,))
        for key in keys:
            library.impl(op, kernel, key)
    every = fakes.LINEAR | fakes.ACTIVATION
    _register(namespace, {op: every[op] for op in kernels})
    return library


def _register(namespace: str, ops: dict[str, Callable[..., Any]]) -> None:
    """Register shapes and the rule of vmap, which C++ does not know."""
    for op, fake in ops.items():
        torch.library.register_fake(f"{namespace}::{op}", fake)
        call = getattr(getattr(torch.ops, namespace), op).default
        torch.library.register_vmap(f"{namespace}::{op}", partial(_vmap, call, op))


def _vmap(call: Callable[..., Any], op: str, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    return map_op(call, op, info.batch_size, in_dims, args)


def map_op(
    call: Callable[..., Any], op: str, size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Return (outputs, out_dims) of an op under vmap: more rows, or features, or one call after another."""
    rows = _ROWS.get(op, ())
    if op in FEATURES and not (rows and all(d is None or n in rows for n, d in enumerate(in_dims))):
        return map_features(call, FEATURES[op], size, in_dims, args)
    return map_rows(call, rows, size, in_dims, args)


LOAD_ERROR: str | None = _load()
DEVICES: tuple[str, ...] = devices_of("kan_linear")
