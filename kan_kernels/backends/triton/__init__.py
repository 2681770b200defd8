"""Fused kernels in Triton, for the GPUs that it compiles for. Triton is imported when the first kernel runs.

basis.py full_support.py place.py tiles.py cell_polynomials.py    device functions
forward_kernels.py gradient_kernels.py gather_kernels.py activation_kernels.py    kernels
blocking.py tiling.py tuning.py    which kernel, tile and split
knots.py                        uniform knots
launch.py activation_launch.py guard.py    the four contractions: check, allocate, choose, launch
compile_only.py                 machine code for GPUs that are not here
"""

import importlib.util
import os

import torch

from ..._core import checks, cuda_support, fakes, library
from ..._core.bases import BASES, BY_CODE
from ..._core.problem import FAMILIES, Problem, beyond_limits, without_kernel

NAME = "triton"
DIFFERENTIABLE = False
STACKS = False
_INSTALLED = importlib.util.find_spec("triton") is not None
NAMESPACE = "kan_kernels_triton" if _INSTALLED else None


def interpreting() -> bool:
    """Return whether Triton's kernels run in its interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def can_run(problem: Problem) -> str | None:
    """Return why these kernels cannot run this problem, or None."""
    if not _INSTALLED:
        return "Triton is not installed (pip install triton)"
    if problem.device not in ("cuda", "cpu"):
        return f"no kernels for {problem.device}, only for CUDA and ROCm GPUs"
    if problem.device == "cpu" and not interpreting():
        seen = "" if torch.cuda.is_available() else "; torch sees no GPU here"
        return f"Triton's kernels run on a GPU, or on the CPU in its interpreter (TRITON_INTERPRET=1){seen}"
    if problem.device == "cuda":
        if not torch.cuda.is_available():
            return cuda_support.no_gpu()
        if torch.version.hip is None:
            reason = cuda_support.too_old(torch.cuda.get_device_capability(problem.index))
            if reason is not None:
                return reason
        if torch.version.hip is not None and problem.dtype == torch.float64:
            return "no float64 kernels on ROCm"
    return without_kernel(problem, NAME, FAMILIES, tuple(BASES)) or beyond_limits(problem)


def why(problem: Problem) -> str:
    """Return what speaks for this backend where it is the first that can run: the kernels it takes."""
    if problem.op == "kan_activation":
        return _why_activation(problem)
    from . import launch, tiling

    rows = problem.functions
    shape = tiling.Case(
        problem.device,
        problem.dtype,
        1,
        problem.in_features,
        problem.out_features,
        rows,
        problem.order,
        basis=BASES[problem.basis].code,
    )
    number = launch.precision(problem.dtype)
    if problem.dtype == torch.float64:
        kernels = "coefficient rows are gathered: float64 has no matrix kernel"
    elif tiling.gathers(shape, number):
        limit = tiling.GATHER_ROWS["half" if shape.half else number]
        kernels = (
            f"coefficient rows are gathered: {problem.out_features} outputs, {rows} basis rows "
            f"(up to {tiling.GATHER_WIDTH} outputs, or from {limit} rows on)"
        )
    else:
        kernels = f"products of {'16-bit' if shape.half else number} operands on matrix units"
    return f"fused kernels, compiled by Triton for this GPU; {kernels}"


def _why_activation(problem: Problem) -> str:
    from . import activation_launch

    if problem.dtype == torch.float64:
        kernels = "float64 bases are evaluated in place, and gradients summed row by row"
    elif BASES[problem.basis].local and problem.order <= activation_launch.LOOKED_UP:
        kernels = "each x looks up the polynomial of its cell"
    else:
        kernels = "the basis is evaluated in place"
    return f"fused kernels, compiled by Triton for this GPU; {kernels}"


def _entry(op: str):
    """Return what the Functions call: the op where something traces, else what is past the dispatcher."""

    def call(*args):
        if (
            type(args[0]) in _PLAIN
            and not torch.compiler.is_compiling()
            and not torch._C._len_torch_dispatch_stack()
            and torch._C._get_tracing_state() is None
        ):
            if args[0].is_cpu:  # in the interpreter; a GPU is not waited for
                count = fakes.TENSORS[op]
                checks.grid_values(args[count - 1], BY_CODE[args[count + 4]])
            return launcher(op)(*args)
        return getattr(torch.ops.kan_kernels_triton, op).default(*args)

    return call


def launcher(op: str):
    """Return the function that launches an op's kernels."""
    from . import activation_launch, launch

    return getattr(launch if op.startswith("kan_linear") else activation_launch, op)


def _kernel(op: str):
    def run(*args):
        from . import guard

        guard.check(op, args)
        return launcher(op)(*args)

    return run


_PLAIN = (torch.Tensor, torch.nn.Parameter)
if NAMESPACE is not None:
    _library = library.define(NAMESPACE, {op: _kernel(op) for op in library.SCHEMAS}, ("CUDA", "CPU"))
    LINEAR_OP = torch.ops.kan_kernels_triton.kan_linear.default
    kan_linear, kan_linear_grad_input, kan_linear_grad_weight, kan_linear_backward = map(_entry, fakes.LINEAR)
    ACTIVATION_OP = torch.ops.kan_kernels_triton.kan_activation.default
    kan_activation, kan_activation_grad_input, kan_activation_grad_weight, kan_activation_backward = map(
        _entry, fakes.ACTIVATION
    )
