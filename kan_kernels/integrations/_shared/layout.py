"""Peers' weights in the kernels' layout, contiguous (in, G+k, out), from a view that has those axes.

On large layers the copies are bound by fresh memory, so that each temporary shows in a training step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..._core import library
from ..._core.tracing import tracing
from ..._engine import dispatch

_SMALL = 2**15  # elements: below it, a Function of Python costs more than temporaries do


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return weight[i,r,o] * scale[i,o], contiguous and differentiable to any order.

    Args:
        weight: (in, G+k, out), any strides, usually a view. scale: (in, out), any strides, the same dtype.
    """
    if (
        torch.compiler.is_compiling()
        or weight.numel() < _SMALL
        or tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__
    ):
        return (weight * scale.unsqueeze(1)).contiguous()
    return _Scaled.apply(weight, scale)


class _Scaled(Function):
    """A Function of one pass over the weight each way, without a temporary: by a kernel or by torch."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Call without Function.apply's inspect.signature().bind."""
        return super(Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        if _by_kernel(weight, scale):
            return torch.ops.kan_kernels.edge_scale(weight.permute(2, 0, 1), scale.t())
        out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        return torch.mul(weight, scale.unsqueeze(1), out=out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, scale = ctx.saved_tensors
        need_weight, need_scale = ctx.needs_input_grad
        d_weight = d_scale = None
        if _by_kernel(weight, scale) and not torch.is_grad_enabled() and not _is_batch(g):
            d_weight, d_scale = torch.ops.kan_kernels.edge_scale_backward(
                weight.permute(2, 0, 1), scale.t(), g, need_weight, need_scale
            )
            return d_weight.permute(1, 2, 0) if need_weight else None, d_scale.t() if need_scale else None
        if need_weight:
            if torch.is_grad_enabled() or _is_batch(g):
                d_weight = g * scale.unsqueeze(1)
            else:  # with the strides of the weight, so that it becomes .grad as it is
                d_weight = torch.mul(g, scale.unsqueeze(1), out=torch.empty_like(weight))
        if need_scale:
            d_scale = (g * weight).sum(1)
        return d_weight, d_scale


def _by_kernel(weight: Tensor, scale: Tensor) -> bool:
    """Return whether the compiled library scales it: on the CPU, the functions of an edge side by side."""
    return (
        library.LOAD_ERROR is None
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and scale.dtype == weight.dtype
        and weight.permute(2, 0, 1).is_contiguous()
        and dispatch.forced_backend() != "reference"
    )


def _is_batch(g: Tensor) -> bool:
    """Return whether g stands for many cotangents (`is_grads_batched`, torch.vmap): there is no out= then."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(g) or functorch.is_functorch_wrapped_tensor(g)
