"""A small layer of FastKAN's kind in one op: layer norm, Gaussians, base activation, GEMMs and bias.

Alone each of its parts costs its call, which on few features is more than its arithmetic. First derivatives
are one op too; higher ones come from the same formula in parts. torch.func and forward mode are not for it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional

from ..._core import checks, library
from ..._core.bases import BASE_CODES
from ..._core.tracing import tracing
from ..._engine import dispatch
from ...functional import basis_linear

MOST_OUTPUTS, MOST_FEATURES = 8, 64  # as csrc/ops/layer_norm_rbf.cpp has them

_transforming = torch._C._are_functorch_transforms_active


def why_not_layer(weight: Tensor, features: int, scale: Tensor | None, backend: str | None) -> str | None:
    """Return why a layer with this spline_weight (out, in * R) and layer norm is none for the op, or None."""
    asked = dispatch.forced_backend() if backend is None else backend
    if asked not in (None, "native") or "cpu" not in library.DEVICES:
        return "the op is the native backend's"
    if weight.shape[0] > MOST_OUTPUTS or features > MOST_FEATURES:
        return f"it has more than {MOST_OUTPUTS} outputs or {MOST_FEATURES} features"
    if weight.dtype not in (torch.float32, torch.float64) or weight.device.type != "cpu":
        return "the op takes float32 and float64 on the CPU"
    if scale is not None and (scale.dtype != weight.dtype or scale.device != weight.device):
        return "the layer norm has another dtype or device"
    return None


def why_not_call(x: Tensor, weight: Tensor) -> str | None:
    """Return why this x, or what runs around the call, is no case for the op, or None."""
    if x.dtype != weight.dtype or torch._C._is_any_autocast_enabled():
        return "x has another dtype, or there is autocast"
    if not torch.compiler.is_compiling() and (_transforming() or forward_ad._current_level >= 0):
        return "torch.func or forward mode"
    return None


def normed_rbf(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    spline_weight: Tensor,
    base_weight: Tensor | None,
    bias: Tensor | None,
    grid: Tensor,
    epsilon: float,
    base: str | None,
) -> Tensor:
    """Compute a small FastKANLayer in one op: layer norm, Gaussians, base and bias.

    y[b,o] = sum_i (sum_r spline_weight[o, i, r] B_r(z[b,i]) + base_weight[o,i] base(x[b,i])) + bias[o]

    z is layer_norm(x) with scale, shift and epsilon, B_r as for `basis_linear` (FastKAN, arXiv 2405.06721).

    Args:
        x: (..., in), float32 or float64 on the CPU, as all tensors here; in at most 64.
        scale, shift: (in,) or None.
        spline_weight: (out, in * R), out at most 8.
        base_weight: (out, in), present exactly if there is a base: "silu" or "identity".
        bias: (out,) or None.
        grid: (in, R + 1), finite centres and positive widths. No gradient flows to it.

    Returns:
        (..., out), differentiable to any order.

    Raises:
        ValueError: of the centres. RuntimeError: of shapes and dtypes.
    """
    checks.centres(grid)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    code = BASE_CODES[base]
    args = (rows, scale, shift, spline_weight, base_weight, bias, grid, epsilon, code)
    if torch.compiler.is_compiling() or tracing():
        y: Tensor = torch.ops.kan_kernels.normed_rbf(*args)
    elif torch.is_grad_enabled():
        y = _Normed.apply(*args)
    else:
        y = _run(*args)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[1])


def _composed(x, scale, shift, spline_weight, base_weight, bias, grid, epsilon, base) -> Tensor:
    """Compute the same of parts differentiable to any order, which torch 2.13's layer_norm is not."""
    centred = x - x.mean(1, keepdim=True)
    z = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + epsilon)
    z = z if scale is None else z * scale
    z = z if shift is None else z + shift
    weight = spline_weight.view(spline_weight.shape[0], *grid[:, 1:].shape).permute(1, 2, 0)
    y = basis_linear(z, weight, grid, basis="rbf", bias=bias, backend="native")
    if not base:
        return y
    activated = functional.silu(x) if base == BASE_CODES["silu"] else x
    return torch.addmm(y, activated, base_weight.t())


def _run(*args: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        y: Tensor = torch.ops.kan_kernels.normed_rbf.default(*args)
        return y


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.constants = inputs[7:]


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of the op."""
    tensors, (epsilon, base) = ctx.saved_tensors, ctx.constants
    needs = ctx.needs_input_grad[:6]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # partial derivatives: of aliases, for one operand may have been made of another
        aliases = [None if t is None else t.view_as(t) for t in tensors]
        asked = [t for t, need in zip(aliases, needs, strict=False) if t is not None and need]
        arguments: tuple[Any, ...] = (*aliases, epsilon, base)
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward pass
            found = iter(torch.autograd.grad(_composed(*arguments), asked, g, create_graph=True))
        return (*(next(found) if need else None for need in needs), None, None, None)
    x, scale, shift, spline_weight, base_weight, _, grid = tensors
    args = (x, scale, shift, spline_weight, base_weight, g, grid, epsilon, base, needs[0])
    if torch.compiler.is_compiling():
        made = torch.ops.kan_kernels.normed_rbf_backward(*args)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            made = torch.ops.kan_kernels.normed_rbf_backward.default(*args)
    return (*(t if need else None for t, need in zip(made, needs, strict=True)), None, None, None)


class _Normed(Function):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Call without Function.apply's inspect.signature().bind; transforms never come here."""
        return super(Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        y = _run(*args)
        _save(ctx, args, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, g)


def _fake(x, scale, shift, spline_weight, base_weight, bias, grid, epsilon, base) -> Tensor:
    return x.new_empty(x.shape[0], spline_weight.shape[0])


def _fake_backward(x, scale, shift, spline_weight, base_weight, g, grid, epsilon, base, need_x):
    features, out = x.shape[1], spline_weight.shape[0]
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(features),
        x.new_empty(features),
        x.new_empty(spline_weight.shape),
        x.new_empty((out, features) if base else (0,)),
        x.new_empty(out),
    )


if library.LOAD_ERROR is None:
    torch.library.register_fake("kan_kernels::normed_rbf", _fake)
    torch.library.register_fake("kan_kernels::normed_rbf_backward", _fake_backward)
    torch.library.register_autograd("kan_kernels::normed_rbf", _gradients, setup_context=_save)
