"""Fused kernels in Triton, for the GPUs that it compiles for. Triton is imported when the first kernel runs.

basis.py full_support.py place.py tiles.py    device functions
forward_kernels.py gradient_kernels.py gather_kernels.py    kernels
blocking.py tiling.py tuning.py    which kernel, tile and split
knots.py                        uniform knots
launch.py guard.py              the four contractions: check, allocate, choose, launch
compile_only.py                 machine code for GPUs that are not here
"""

import importlib.util
import os

import torch

from ..._core import cuda_support, library, limits
from ..._core.bases import BASIS_CODES

NAME = "triton"
DIFFERENTIABLE = False
_INSTALLED = importlib.util.find_spec("triton") is not None
NAMESPACE = "kan_kernels_triton" if _INSTALLED else None


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def can_run(case) -> str | None:
    """None if these kernels can run this case, or why not."""
    if not _INSTALLED:
        return "Triton is not installed (pip install triton)"
    if case.device not in ("cuda", "cpu"):
        return f"no kernels for {case.device}, only for CUDA and ROCm GPUs"
    if case.device == "cpu" and not interpreting():
        seen = "" if torch.cuda.is_available() else "; torch sees no GPU here"
        return f"Triton's kernels run on a GPU, or on the CPU in its interpreter (TRITON_INTERPRET=1){seen}"
    if case.device == "cuda":
        if not torch.cuda.is_available():
            return cuda_support.no_gpu()
        if torch.version.hip is None:
            reason = cuda_support.too_old(torch.cuda.get_device_capability(case.index))
            if reason is not None:
                return reason
        if torch.version.hip is not None and case.dtype == torch.float64:
            return "no float64 kernels on ROCm"
    return limits.beyond(case)


def why(case) -> str:
    """What speaks for this backend where it is the first that can run, and which of its kernels it takes."""
    from . import launch, tiling

    rows = case.grid_size + case.spline_order
    shape = tiling.Case(
        case.device,
        case.dtype,
        1,
        case.in_features,
        case.out_features,
        rows,
        case.spline_order if case.basis == "bspline" else 0,
        basis=BASIS_CODES[case.basis],
    )
    number = launch.precision(case.dtype)
    if case.dtype == torch.float64:
        kernels = "coefficient rows are gathered: float64 has no matrix kernel"
    elif tiling.gathers(shape, number):
        limit = tiling.GATHER_ROWS["half" if shape.half else number]
        kernels = (
            f"coefficient rows are gathered: {case.out_features} outputs, {rows} basis rows "
            f"(up to {tiling.GATHER_WIDTH} outputs, or from {limit} rows on)"
        )
    else:
        kernels = f"products of {'16-bit' if shape.half else number} operands on matrix units"
    return f"fused kernels, compiled by Triton for this GPU; {kernels}"


def _entry(op: str):
    """The contraction as the Functions call it: the op where something traces, else past the dispatcher."""

    def call(*args):
        if (
            type(args[0]) in _PLAIN
            and not torch.compiler.is_compiling()
            and not torch._C._len_torch_dispatch_stack()
            and torch._C._get_tracing_state() is None
        ):
            from . import launch

            return getattr(launch, op)(*args)
        return getattr(torch.ops.kan_kernels_triton, op).default(*args)

    return call


def _kernel(op: str):
    def run(*args):
        from . import guard, launch

        guard.check(op, args)
        return getattr(launch, op)(*args)

    return run


_PLAIN = (torch.Tensor, torch.nn.Parameter)
if NAMESPACE is not None:
    _library = library.define(NAMESPACE, {op: _kernel(op) for op in library.SCHEMAS}, ("CUDA", "CPU"))
    forward_op = torch.ops.kan_kernels_triton.forward.default
    forward, input, weight, backward = map(_entry, ("forward", "input", "weight", "backward"))
