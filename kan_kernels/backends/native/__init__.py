"""The compiled kernels: torch.ops.kan_kernels.*, on every device the loaded library was built for."""

import torch

from ..._core import cuda_support, library, limits
from ..._engine import cost_model

NAME = "native"
DIFFERENTIABLE = False
NAMESPACE = "kan_kernels" if library.LOAD_ERROR is None else None  # of its torch ops
CUDA_BASES = ("bspline", "rbf", "chebyshev")
PRODUCT_VALUES = 1 << 17  # kProductValues in csrc/cpu/linear/gemm.h


def below_autograd(op):
    """The op as the Functions call it: past its own autograd, which is for torch.compile and costs 10 us."""

    def call(*args):
        if torch.compiler.is_compiling():  # compiled autograd traces the Functions' backward
            return op(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


if library.LOAD_ERROR is None:
    forward_op = torch.ops.kan_kernels.forward.default
    forward = below_autograd(forward_op)
    input = below_autograd(torch.ops.kan_kernels.input.default)
    weight = below_autograd(torch.ops.kan_kernels.weight.default)
    backward = below_autograd(torch.ops.kan_kernels.backward.default)


def can_run(case) -> str | None:
    """None if the library has kernels for this case, or why not."""
    if library.LOAD_ERROR is not None:
        return f"the library is not loaded: {library.LOAD_ERROR}"
    if case.device == "cuda":
        reason = cuda_support.why_not(case.index)
        if reason is None:
            reason = limits.without_basis(case, CUDA_BASES)
        if reason is not None:
            return reason
    elif case.device not in library.DEVICES:
        return f"the library has no kernels for {case.device} (it has them for: {', '.join(library.DEVICES)})"
    return limits.beyond(case)


def why(case) -> str:
    """What speaks for this backend where it is the first that can run."""
    if case.device == "cpu":
        return "compiled kernels for cpu, the fastest where they can run" + _products(case)
    if case.device == "cuda" and "cuda" in library.DEVICES:
        major = torch.cuda.get_device_capability(case.index)[0]
        return f"compiled kernels for cuda; with many rows, {cost_model.native_path(case, major)}"
    return f"compiled kernels for {case.device}"


def _products(case) -> str:
    """What csrc/cpu/linear/gemm.h decides, save the weights' layout: few rows, but many values."""
    functions = case.grid_size + case.spline_order
    least = max(64, PRODUCT_VALUES // max(1, case.in_features * functions) + 1)
    if (
        case.basis == "bspline"
        or case.in_features < 2
        or case.out_features < 128
        or case.dtype not in (torch.float32, torch.float64)
        or least > min(512, 2 * case.out_features)
    ):
        return ""
    return f"; for {least} rows to twice the outputs, values from our kernels and a library's matrix product"
