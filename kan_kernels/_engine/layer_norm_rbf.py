"""A small layer of FastKAN's kind in one op: layer norm, Gaussians, base activation, GEMM and bias.

Alone each of its parts costs its call, which on few features is more than its arithmetic. First derivatives
are one op too; higher ones come from the same formula in parts.
"""

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from .._core.bases import BASE_CODES, RBF
from .._core.function import ComposedFunction, func_or_forward_mode
from .._core.problem import Problem
from ..backends import with_op
from . import dispatch, layer

Some = Tensor | None


def backend_of(
    weight: Tensor, features: int, scale: Some, base: str | None, backend: str | None
) -> ModuleType | str:
    """Return the backend that runs the op for a layer, or why the layer is no case for the op.

    weight: its spline_weight (out, in * R). scale: of its layer norm. backend: the one that was asked for.
    """
    if scale is not None and (scale.dtype != weight.dtype or scale.device != weight.device):
        return "the layer norm has another dtype or device"
    asked = dispatch.forced_backend() if backend is None else backend
    sizes = features, weight.shape[0], weight.shape[1] // max(1, features)
    device = weight.device
    return _chosen(*sizes, device.type, device.index, weight.dtype, base, asked)


@lru_cache(maxsize=1024)
def _chosen(
    features: int, outputs: int, functions: int, device: str, index: int | None, dtype: torch.dtype,
    base: str | None, asked: str | None,
) -> ModuleType | str:  # fmt: skip
    facts = device, dtype, dtype, features, outputs, functions
    problem = Problem(*facts, base=base, basis=RBF.name, index=index, op="layer_norm_rbf")
    try:
        module, composed = dispatch.run_on(problem, asked)
    except RuntimeError as error:  # which the layer will raise
        return str(error)
    return f"the backend {module.NAME!r} composes it" if composed else module


def why_not_call(x: Tensor, weight: Tensor) -> str | None:
    """Return why this x, or what runs around the call, is no case for the op, or None."""
    if x.dtype != weight.dtype or torch._C._is_any_autocast_enabled():
        return "x has another dtype, or there is autocast"
    if func_or_forward_mode():
        return "torch.func or forward mode"
    return None


def layer_norm_rbf(
    x: Tensor,
    scale: Some,
    shift: Some,
    spline_weight: Tensor,
    base_weight: Some,
    bias: Some,
    grid: Tensor,
    epsilon: float,
    base: str | None,
    backend: ModuleType,
    asked: str | None = None,
) -> Tensor:
    """Return sum_i ( sum_r spline_weight[o, i, r] B_r(z[b,i]) + base_weight[o,i] base(x[b,i]) ) + bias[o].

    z is layer_norm(x) with scale, shift and epsilon, B_r as for `basis_linear` (FastKAN, arXiv 2405.06721).

    Args:
        x: (..., in), float32 or float64 on the CPU, as all tensors here; in at most 64.
        scale, shift: (in,) or None.
        spline_weight: (out, in * R), out at most 8.
        base_weight: (out, in), present exactly if there is a base: "silu" or "identity".
        bias: (out,) or None.
        grid: (in, R + 1), finite centres and positive widths. No gradient flows to it.
        backend: the one that runs the op: `backend_of`.
        asked: the name of the one that was asked for, which runs the parts where derivatives are of parts.

    Returns:
        (..., out), differentiable to any order.

    Raises:
        ValueError: of the centres. RuntimeError: of shapes and dtypes.
    """
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    args = (rows, scale, shift, spline_weight, base_weight, bias, grid, epsilon, BASE_CODES[base])
    y: Tensor
    if torch.is_grad_enabled():
        y = LayerNormRbf.run(*args, backend, dispatch.forced_backend() if asked is None else asked)
    else:
        y = backend.layer_norm_rbf(*args)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[1])


class LayerNormRbf(ComposedFunction):
    """The op `layer_norm_rbf` of rows: its arguments, the backend, and the name of the one asked for."""

    INPUTS = 6

    @staticmethod
    def forward(*args):
        *given, backend, _ = args
        return backend.layer_norm_rbf(*given)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(cls, x, scale, shift, spline_weight, base_weight, bias, grid, epsilon, base, backend, asked):
        """Return it from parts that are differentiable to any order, which torch's own layer_norm is not: its
        third derivatives take the moments for constants (seen in torch 2.13).
        """
        centred = x - x.mean(1, keepdim=True)
        z = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + epsilon)
        z = z if scale is None else z * scale
        z = z if shift is None else z + shift
        weight = spline_weight.view(spline_weight.shape[0], *grid[:, 1:].shape).permute(1, 2, 0)
        y = layer.call(z, weight, grid, None, bias, 0, None, 0, asked, RBF)
        if not base:
            return y
        activated = functional.silu(x) if base == BASE_CODES["silu"] else x
        return torch.addmm(y, activated, base_weight.t())

    @classmethod
    def gradients(cls, ctx, g):
        (x, scale, shift, spline_weight, base_weight, _, grid, *rest, backend, _), _ = cls.kept(ctx)
        needs = ctx.needs_input_grad[:6]
        operands = x, scale, shift, spline_weight, base_weight, g, grid
        made = backend.layer_norm_rbf_backward(*operands, *rest, needs[0])
        return [t if need else None for t, need in zip(made, needs, strict=True)]


for _backend in with_op("layer_norm_rbf"):
    LayerNormRbf.register(f"{_backend.NAMESPACE}::layer_norm_rbf", _backend, None)
