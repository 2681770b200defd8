"""Convolution by learnable univariate functions: one on every edge from a channel, at a tap, to an output.

    y[b, o, p] = sum_{c, t} phi[c, t, o](x[b, c, p * stride + t * dilation - padding]) + bias[o]

Positions beyond the edges are no positions: they add nothing, as if the bases were padded with zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._core import checks
from .._core.problem import Spec
from .._core.tracing import tracing, untraced
from .._engine import conv_autograd, decompositions, dispatch
from .._engine.conv_composed import Axis, Form, composed
from .._engine.layer import autocast, spec_of
from ..backends import reference


def kan_conv(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolve in 1, 2 or 3 dimensions with univariate functions as weights.

    Args:
        x: (N, C, *size) or (C, *size). dtypes as for `functional.kan_linear`.
        spline_weight: (C, G+k, *kernel, O / groups).
        grid: (C, G+2k+1) knots, a row for each channel, shared by all taps.
        spline_order, base, backend: as for `functional.kan_linear`.
        base_weight: (C, *kernel, O / groups), present exactly if there is a base.
        bias: (O,).
        stride, padding, dilation: an int or one for each dimension. padding may also be "valid" (none) or
            "same" (the output has x's size; stride 1 only). Padded positions contribute zero, whatever
            the functions are at zero.
        groups: channel c meets the outputs of group c // (C / groups) only.

    Returns:
        (N, O, *out) or (O, *out) with out as torch's convolutions have it, in the weights' dtype; of the
        memory format that x has.

    Raises:
        TypeError, ValueError: naming the argument, before any kernel runs.

    Example:
        >>> weight, grid = torch.ones(1, 3, 2, 1), torch.linspace(-2, 2, 5)[None]  # two taps, G = 2, k = 1
        >>> kan_conv(torch.zeros(1, 1, 4), weight, grid, spline_order=1, base=None)
        tensor([[[2., 2., 2.]]])
    """
    form = untraced(
        _form, x, spline_weight, grid, spline_order, base_weight, base, bias, stride, padding, dilation,
        groups, backend,
    )  # fmt: skip
    batched = x.dim() == len(form.axes) + 2
    if torch._C._is_any_autocast_enabled():
        x, spline_weight, base_weight, bias = autocast(x, spline_weight, base_weight, bias)
    if not batched:
        x = x.unsqueeze(0)

    exporting = torch.compiler.is_exporting() or (tracing() and dispatch.exporting_to_onnx())
    if exporting and _on_reference(form):  # its blocks have one batch size
        dtype = torch.float64 if spline_weight.dtype == torch.float64 else torch.float32
        tensors = x, spline_weight, base_weight, bias, grid.to(dtype)
        y = decompositions.kan_conv(*tensors, *conv_autograd.numbers(form, x))
    else:
        spec = untraced(_spec, x, spline_weight, base_weight, grid, form)
        if spec.composed:
            y = composed(x, spline_weight, grid, base_weight, bias, form)
        else:
            dtype = torch.float64 if spline_weight.dtype == torch.float64 else torch.float32
            tensors = x, spline_weight, base_weight, bias, grid.to(dtype)
            y = conv_autograd.kan_conv(*tensors, form, spec.backend)
    return y if batched else y.squeeze(0).contiguous()


def _form(
    x, spline_weight, grid, spline_order, base_weight, base, bias, stride, padding, dilation, groups, backend
) -> Form:
    """Return the constants of a convolution, once what `_spec` will not see is known to fit."""
    dims = _check(x, spline_weight, grid, spline_order, base_weight, bias, groups)
    kernel = tuple(spline_weight.shape[2:-1])
    size = tuple(x.shape[-dims:])
    steps, spread = checks.each("stride", stride, dims, 1), checks.each("dilation", dilation, dims, 1)
    axes = [
        Axis(*numbers)
        for numbers in zip(size, kernel, steps, _padding(padding, kernel, steps, spread), spread, strict=True)
    ]
    for axis, number in zip(axes, size, strict=True):
        if axis.out < 1:
            raise ValueError(
                f"x: got size {size}, expected at least {(axis.kernel - 1) * axis.dilation + 1} with padding "
                f"where the size is {number}, the kernel {axis.kernel} and the dilation {axis.dilation}"
            )
    order = checks.spline_order(spline_order)
    return Form(tuple(axes), checks.integer("groups", groups, 1), order, base, backend)


def _spec(x, spline_weight, base_weight, grid, form: Form) -> Spec:
    """Return which backend runs it, whether by a kernel of its own, and operands as kernels see them."""
    flat_base = None if base_weight is None else base_weight.flatten(1)
    rows, weight = x.movedim(1, -1), spline_weight.flatten(2)
    given = (rows, weight, grid, flat_base, None, form.order, form.base, 0, form.backend)
    return spec_of(*given, op="kan_conv")


def _on_reference(form: Form) -> bool:
    return (form.backend or dispatch.forced_backend()) == reference.NAME


def check_image(x: Tensor, channels: int, dims: int) -> None:
    """Raise unless x is a batch of images of so many channels and spatial dimensions, or a single one."""
    checks.tensor("x", x)
    if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
        names = ("length", "height, width", "depth, height, width")[dims - 1]
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (batch, {channels}, {names}) or without batch"
        )


def _check(x, spline_weight, grid, spline_order, base_weight, bias, groups) -> int:
    """Check what `kan_linear` will not see as it was given; return the number of spatial dimensions."""
    checks.tensor("spline_weight", spline_weight)
    dims = spline_weight.dim() - 3
    if not 1 <= dims <= 3:
        raise ValueError(
            f"spline_weight: got shape {tuple(spline_weight.shape)}, "
            "expected (channels, G+k, *kernel, out / groups) with a kernel of 1 to 3 dimensions"
        )
    if 0 in spline_weight.shape[2:]:
        raise ValueError(
            f"spline_weight: got shape {tuple(spline_weight.shape)}, expected at least one tap and one output"
        )
    checks.integer("groups", groups, 1)
    channels = spline_weight.shape[0]
    if channels % groups:
        raise ValueError(f"groups: got {groups}, expected a divisor of the {channels} channels")
    check_image(x, channels, dims)
    checks.spline_order(spline_order)
    checks.grid_shape(grid, spline_order, channels)
    if base_weight is not None:
        expected = (channels, *spline_weight.shape[2:])
        checks.operand("base_weight", base_weight, expected, spline_weight.dtype, spline_weight.device)
    if bias is not None:
        shape = (spline_weight.shape[-1] * groups,)
        checks.operand("bias", bias, shape, spline_weight.dtype, spline_weight.device)
    return dims


def _padding(value, kernel, stride, dilation) -> list[tuple[int, int]]:
    """Return (before, after) for each dimension; "same" puts the odd one behind, as torch does."""
    value = checks.padding(value, len(kernel), stride)
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(n, n) for n in value]
