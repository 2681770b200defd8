"""The convolution by one kernel, differentiable: once by its own kernel, further by the composed path."""

from typing import Any

import torch
from torch import Tensor

from .._core.bases import BASE_CODES
from .._core.function import ComposedFunction, plain_call
from ..backends import BACKENDS, native
from .autograd import asked
from .conv_composed import Form, channels_last, composed

Some = Tensor | None


def kan_conv(
    x: Tensor, spline_weight: Tensor, base_weight: Some, bias: Some, grid: Tensor, form: Form
) -> Tensor:
    """Return the convolution of images (N, C, *size): (N, O, *out). grid: in the type to compute in."""
    y: Tensor
    if plain_call():  # ops, no Functions
        y = native.CONV_OP(x, spline_weight, base_weight, bias, grid, *constants(form, x))
    else:
        y = Convolution.run(x, spline_weight, base_weight, bias, grid, form)
    return y


def constants(form: Form, x: Tensor) -> tuple[Any, ...]:
    """Return what both ops take behind their tensors, in their order."""
    return (
        form.order,
        BASE_CODES[form.base],
        [axis.stride for axis in form.axes],
        [number for axis in form.axes for number in axis.padding],
        [axis.dilation for axis in form.axes],
        form.groups,
        channels_last(x),
    )


class Convolution(ComposedFunction):
    """`kan_conv`."""

    INPUTS = 4

    @staticmethod
    def forward(x, spline_weight, base_weight, bias, grid, form):
        return native.kan_conv(x, spline_weight, base_weight, bias, grid, *constants(form, x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(cls, x, spline_weight, base_weight, bias, grid, form):
        return composed(x, spline_weight, grid, base_weight, bias, form)

    @classmethod
    def gradients(cls, ctx, g):
        (x, spline_weight, base_weight, _, grid, form), _ = cls.kept(ctx)
        tensors = x, spline_weight, base_weight, grid
        return _gradients(ctx, g, tensors, constants(form, x), native.kan_conv_backward)


def _gradients(ctx, g, tensors, numbers, call):
    """Of x, spline_weight, base_weight and bias, each where it is needed."""
    x, spline_weight, base_weight, grid = tensors
    need_x, need_spline, need_base, need_bias = ctx.needs_input_grad[:4]
    need_weight, base = need_spline or need_base, numbers[1]
    if need_x and need_weight:
        need_x, need_weight = asked(ctx, None, base)
    dx = d_spline = d_base = d_bias = None
    if need_x or need_weight:
        found = call(x, spline_weight, base_weight, g, grid, *numbers, need_x, need_weight)
        dx = found[0] if need_x else None
        d_spline, d_base = found[1:] if need_weight else (None, None)
    if need_bias:
        d_bias = g.sum((0, *range(2, g.dim())))
    return dx, d_spline, d_base if base else None, d_bias


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], inputs[4])
    ctx.numbers = inputs[5:]


def _op_backward(ctx, g):
    call = torch.ops.kan_kernels.kan_conv_backward.default
    return *_gradients(ctx, g, ctx.saved_tensors, ctx.numbers, call), *(None,) * 8


if BACKENDS["native"].NAMESPACE is not None:
    torch.library.register_autograd("kan_kernels::kan_conv", _op_backward, setup_context=_setup_context)
