"""The compiled library: SIMD kernels on the CPU, CUDA C++ on NVIDIA GPUs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..._core import checks, cuda_support, library
from ..._core.bases import BASES
from ..._core.problem import OPS, Problem, beyond_limits, without_kernel

NAME = "native"
DIFFERENTIABLE = False
NAMESPACE = "kan_kernels" if library.LOAD_ERROR is None else None  # of its torch ops
STACKS = "stacks" not in library.OFF
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # at the place of their codes
_DEVICES = {op: library.devices_of(op) for op in OPS}


def _below_autograd(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the op as the Functions call it: past its own autograd, for torch.compile, which costs 10 us."""

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # compiled autograd traces the Functions' backward
            return op(*args)
        try:
            if torch._C._get_tracing_state() is not None:  # a trace holds ops with gradients of their own
                return op(*args)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        except RuntimeError as error:  # the kernel looks at the knots that it reads
            raise checks.explained(error) from None

    return call


if library.LOAD_ERROR is None:
    _ops = torch.ops.kan_kernels
    LINEAR_OP = _ops.kan_linear.default
    kan_linear = _below_autograd(LINEAR_OP)
    kan_linear_grad_input = _below_autograd(_ops.kan_linear_grad_input.default)
    kan_linear_grad_weight = _below_autograd(_ops.kan_linear_grad_weight.default)
    kan_linear_backward = _below_autograd(_ops.kan_linear_backward.default)
    ACTIVATION_OP = _ops.kan_activation.default
    kan_activation = _below_autograd(ACTIVATION_OP)
    kan_activation_grad_input = _below_autograd(_ops.kan_activation_grad_input.default)
    kan_activation_grad_weight = _below_autograd(_ops.kan_activation_grad_weight.default)
    kan_activation_backward = _below_autograd(_ops.kan_activation_backward.default)
    kan_network = _below_autograd(_ops.kan_network.default)
    kan_network_backward = _below_autograd(_ops.kan_network_backward.default)
    kan_network_error = _below_autograd(_ops.kan_network_error.default)
    kan_network_lbfgs = _below_autograd(_ops.kan_network_lbfgs.default)
    kan_conv = _below_autograd(_ops.kan_conv.default)
    kan_conv_backward = _below_autograd(_ops.kan_conv_backward.default)
    edge_gram = _below_autograd(_ops.edge_gram.default)
    edge_gram_grad_input = _below_autograd(_ops.edge_gram_grad_input.default)
    edge_cross_gram = _below_autograd(_ops.edge_cross_gram.default)
    edge_moments = _below_autograd(_ops.edge_moments.default)
    edge_moments_backward = _below_autograd(_ops.edge_moments_backward.default)
    edge_l1 = _below_autograd(_ops.edge_l1.default)
    edge_l1_backward = _below_autograd(_ops.edge_l1_backward.default)
    layer_norm_rbf = _below_autograd(_ops.layer_norm_rbf.default)
    layer_norm_rbf_backward = _below_autograd(_ops.layer_norm_rbf_backward.default)


def can_run(problem: Problem) -> str | None:
    """Return why the library has no kernel for this problem, or None."""
    if problem.op in library.OFF:
        return "KAN_KERNELS_OFF names it"
    if library.LOAD_ERROR is not None:
        return f"the library is not loaded: {library.LOAD_ERROR}"
    if problem.device == "cuda":
        reason = cuda_support.why_not(problem.index)
        if reason is not None:
            return reason
    elif problem.device not in library.DEVICES:
        known = ", ".join(library.DEVICES)
        return f"the library has no kernels for {problem.device} (it has them for: {known})"
    ops = tuple(op for op, devices in _DEVICES.items() if problem.device in devices)
    bases = tuple(name for name, basis in BASES.items() if problem.device == "cpu" or basis.cuda)
    reason = without_kernel(problem, NAME, ops, bases) or beyond_limits(problem)
    if reason is None and problem.op == "layer_norm_rbf":
        sizes = problem.in_features, problem.out_features
        reason = _asked("layer_norm_rbf_reason", *sizes, _DTYPES.index(problem.dtype)) or None
    return reason


def _asked(question: str, *numbers: int) -> Any:
    """Return what the library answers: a question is no part of what make_fx records."""
    with _disable_current_modes():
        return getattr(torch.ops.kan_kernels, question)(*numbers)


def why(problem: Problem) -> str:
    """Return what speaks for this backend where it is the first that can run."""
    if problem.device == "cpu":
        if problem.op != "kan_linear":
            return f"a compiled kernel for cpu: {OPS[problem.op]}"
        return "compiled kernels for cpu, the fastest where they can run"
    return f"compiled kernels for {problem.device}"
