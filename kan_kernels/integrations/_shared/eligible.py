"""Whether the kernels can take the tensors of a peer's layer, and what it is called with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as nn_module
from torch.nn.modules.module import _has_any_global_hook

from ..._core import checks

_AUTOCAST = (torch.float32, *checks.HALF_DTYPES)  # what F.linear casts under autocast
_PLAIN = (Tensor, nn.Parameter)


def why_not_like(x: Tensor, weight: Tensor) -> str | None:
    """Return why x does not go with the weight, by device or dtype, or None."""
    if x.device != weight.device:
        return f"x is on {x.device}, the weights are on {weight.device}"
    if x.dtype != weight.dtype:
        makes_fit = (
            torch.is_autocast_enabled(x.device.type) and x.dtype in _AUTOCAST and weight.dtype in _AUTOCAST
        )
        if not makes_fit:
            return f"x is {x.dtype}, the weights are {weight.dtype}"
    return None


def why_not_rows(x: object, weight: Tensor, features: int) -> str | None:
    """Return why the kernels do not take x as (..., features) beside this weight, or None."""
    if not isinstance(x, Tensor):
        return f"x is no tensor but {type(x).__name__}"
    if x.dim() == 0 or x.shape[-1] != features:
        return f"x has shape {tuple(x.shape)}, expected (..., {features})"
    return why_not_like(x, weight)


def why_not_tensors(weight: Tensor, tensors: Iterable[Tensor]) -> str | None:
    """Return why the kernels do not take a layer with this weight and all these tensors, or None."""
    dtype, device, compiling = weight.dtype, weight.device, torch.compiler.is_compiling()
    if dtype not in checks.DTYPES:
        return f"the weights are {dtype}, the kernels have float32, float64, bfloat16 and float16"
    for tensor in tensors:
        if tensor.dtype != dtype or tensor.device != device:
            return f"its tensors are {dtype} on {device} and {tensor.dtype} on {tensor.device}"
        if not compiling and type(tensor) not in _PLAIN and not isinstance(tensor, FakeTensor):
            return f"its tensors are of the class {type(tensor).__name__}"
    return None


def watched(module: nn.Module) -> bool:
    """Return whether somebody would miss a call of this module: hooks, or a forward or call of its own."""
    if type(module).__call__ is not nn.Module.__call__:
        return True
    hooks = module._forward_hooks or module._forward_pre_hooks
    backward_hooks = module._backward_hooks or module._backward_pre_hooks
    return bool(hooks or backward_hooks) or watched_everywhere() or "forward" in module.__dict__


def watched_everywhere() -> bool:
    """Return whether somebody sees the calls of all modules; torch's flop counter only keeps their names."""
    if not _has_any_global_hook():
        return False
    hooks = (
        nn_module._global_forward_pre_hooks,
        nn_module._global_forward_hooks,
        nn_module._global_backward_pre_hooks,
        nn_module._global_backward_hooks,
    )
    owners = (type(getattr(hook, "__self__", None)) for found in hooks for hook in found.values())
    return any(owner.__module__ != "torch.utils.module_tracker" for owner in owners)
