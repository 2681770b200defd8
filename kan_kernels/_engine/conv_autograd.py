"""The compiled library's convolution, differentiable: once by its own kernel, further by the composed path.

`composed` is `convolution_composed.composed` of the same form: of the operands and the grid, and
differentiable to any order.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._core import library
from .._core.tracing import tracing
from ..backends.native import below_autograd
from .autograd import asked

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # x, spline_weight, base_weight, bias


class Constants(NamedTuple):
    """What both ops take behind their tensors, in their order."""

    spline_order: int
    base: int  # its code
    stride: list[int]
    padding: list[int]  # before and behind, for each axis
    dilation: list[int]
    groups: int
    channels_last: bool


def convolution(
    operands: Operands, grid: Tensor, constants: Constants, composed: Callable[..., Tensor]
) -> Tensor:
    """(N, C, *size) -> (N, O, *out). grid: in the type that the kernels compute in."""
    if torch.compiler.is_compiling() or tracing():
        return convolution_op(*operands, grid, *constants)
    return Convolution.apply(*operands, grid, constants, composed)


class Convolution(Function):
    @staticmethod
    def forward(ctx, x, spline_weight, base_weight, bias, grid, constants, composed):
        ctx.save_for_backward(x, spline_weight, base_weight, bias, grid)
        ctx.constants, ctx.composed = constants, composed
        ctx.set_materialize_grads(False)
        return _forward(x, spline_weight, base_weight, bias, grid, *constants)

    @staticmethod
    def backward(ctx, g):
        if g is None:
            return (None,) * 7
        if not torch.is_grad_enabled():
            return *_gradients(ctx, g, _backward), *(None,) * 3
        *saved, grid = ctx.saved_tensors
        # partial derivatives: of aliases, for one operand may have been made of another
        operands = [None if t is None else t.view_as(t) for t in saved]
        wanted = [
            t
            for t, needed in zip(operands, ctx.needs_input_grad[:4], strict=True)
            if t is not None and needed
        ]
        with torch.autocast(grid.device.type, enabled=False):  # in the precision of the forward pass
            found = iter(torch.autograd.grad(ctx.composed(*operands, grid), wanted, g, create_graph=True))
        return *(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), *(None,) * 3


def _gradients(ctx, g, call):
    """Of x, spline_weight, base_weight and bias, each where it is needed."""
    x, spline_weight, base_weight, _, grid = ctx.saved_tensors
    need_x, need_spline, need_base, need_bias = ctx.needs_input_grad[:4]
    need_weight = need_spline or need_base
    if need_x and need_weight:
        need_x, need_weight = asked(ctx, None, ctx.constants.base)
    dx = d_spline = d_base = d_bias = None
    if need_x or need_weight:
        found = call(x, spline_weight, base_weight, g, grid, *ctx.constants, need_x, need_weight)
        dx = found[0] if need_x else None
        d_spline, d_base = found[1:] if need_weight else (None, None)
    if need_bias:
        d_bias = g.sum((0, *range(2, g.dim())))
    return dx, d_spline, d_base if ctx.constants.base else None, d_bias


if library.LOAD_ERROR is None:
    convolution_op = torch.ops.kan_kernels.convolution.default
    backward_op = torch.ops.kan_kernels.convolution_backward.default
    _forward = below_autograd(convolution_op)
    _backward = below_autograd(backward_op)

    def _setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.constants = Constants(*inputs[5:])

    def _compiled_backward(ctx, g):
        return *_gradients(ctx, g, backward_op), *(None,) * 8

    torch.library.register_autograd(
        "kan_kernels::convolution", _compiled_backward, setup_context=_setup_context
    )
