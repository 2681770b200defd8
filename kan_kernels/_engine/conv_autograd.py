"""The convolution by one kernel, differentiable: once by its own kernel, further by the composed path."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._core.bases import BASE_CODES, BASE_NAMES
from .._core.function import ComposedFunction
from ..backends import with_op
from . import decompositions, dispatch
from .autograd import asked
from .conv_composed import Axis, Form, channels_last, composed

Some = Tensor | None


def kan_conv(
    x: Tensor, spline_weight: Tensor, base_weight: Some, bias: Some, grid: Tensor, form: Form,
    backend: ModuleType,
) -> Tensor:  # fmt: skip
    """Return the convolution of images (N, C, *size): (N, O, *out). grid: in the type to compute in.

    backend: the one chosen for the op. Derivatives beyond the first run on what `form` asks for.
    """
    asked = form.backend or dispatch.forced_backend()
    tensors = x, spline_weight, base_weight, bias, grid
    y: Tensor = Convolution.run(*tensors, *numbers(form, x), backend, asked)
    return y


def numbers(form: Form, x: Tensor) -> tuple[Any, ...]:
    """Return what the op takes behind its tensors."""
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
    """The op `kan_conv`: its arguments, the backend that runs it, and the name of the one asked for."""

    INPUTS = 4

    @staticmethod
    def forward(*args):
        *given, backend, _ = args
        return backend.kan_conv(*given)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ComposedFunction.keep(ctx, inputs)

    @classmethod
    def compose(
        cls, x, spline_weight, base_weight, bias, grid, order, base, stride, padding, dilation, groups,
        last, backend, asked,
    ):  # fmt: skip
        if torch.compiler.is_compiling():
            numbers = (order, base, stride, padding, dilation, groups, False)
            return decompositions.kan_conv(x, spline_weight, base_weight, bias, grid, *numbers)
        sizes, taps = x.shape[2:], spline_weight.shape[2:-1]
        pairs = zip(padding[::2], padding[1::2], strict=True)
        axes = tuple(map(Axis, sizes, taps, stride, pairs, dilation))
        form = Form(axes, groups, order, BASE_NAMES[base], asked)
        return composed(x, spline_weight, grid, base_weight, bias, form)

    @classmethod
    def gradients(cls, ctx, g):
        (x, spline_weight, base_weight, _, grid, *numbers, backend, _), _ = cls.kept(ctx)
        need_x, need_spline, need_base, need_bias = ctx.needs_input_grad[:4]
        need_weight, base = need_spline or need_base, numbers[1]
        if need_x and need_weight:
            need_x, need_weight = asked(ctx, None, base)
        dx = d_spline = d_base = d_bias = None
        if need_x or need_weight:
            tensors = x, spline_weight, base_weight, g, grid
            found = backend.kan_conv_backward(*tensors, *numbers, need_x, need_weight)
            dx = found[0] if need_x else None
            d_spline, d_base = found[1:] if need_weight else (None, None)
        if need_bias:
            d_bias = g.sum((0, *range(2, g.dim())))
        return dx, d_spline, d_base if base else None, d_bias


for _backend in with_op("kan_conv"):
    Convolution.register(f"{_backend.NAMESPACE}::kan_conv", _backend, None)
