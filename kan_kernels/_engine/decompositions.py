"""Our ops as plain operators, for exporters that have no others.

They are not entered in torch's own table: Inductor takes an op with an entry there for one to be taken apart,
and stops where the variable CI is set.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._core import fakes
from .._core.bases import BSPLINE, RBF
from .._core.products import by_layer, multiply
from ..backends import reference, with_op

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)

Some = Tensor | None


def kan_network(
    x: Tensor, tensors: Sequence[Tensor], layers: int, order: int, base: int, products: Sequence[int]
) -> list[Tensor]:
    """Return the output of all layers and, flat, what lies between them: the op `kan_network`."""
    weights, grids = tensors[:layers], tensors[-layers:]
    bases = tensors[layers : 2 * layers] if base else [None] * layers
    biased = len(tensors) == (3 + bool(base)) * layers
    biases = tensors[-2 * layers : -layers] if biased else [None] * layers
    hidden, nodes = [], by_layer(products, layers)
    for n, (weight, base_weight, bias, grid) in enumerate(zip(weights, bases, biases, grids, strict=True)):
        numbers = (weight.shape[1], order, base, 0, BSPLINE.code)
        x = reference.kan_linear(x, None, weight, base_weight, bias, grid, *numbers)
        sums, arities = nodes[n]
        if arities:
            hidden.append(x.flatten())
            x = multiply(x, sums, arities)
        if n < layers - 1:
            hidden.append(x.flatten())
    return [x, torch.cat(hidden) if hidden else tensors[0].new_empty(0)]


def kan_conv(
    x: Tensor, spline_weight: Tensor, base_weight: Some, bias: Some, grid: Tensor, order: int, base: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Return torch's convolution of the image of the bases, each a channel: the op `kan_conv`."""
    dims = x.dim() - 2
    rows = x.movedim(1, -1).to(grid.dtype)
    values = reference.basis_values(rows, grid, spline_weight.shape[1], order, 0)
    weight = spline_weight
    if base_weight is not None:
        activated = reference.base_activation(rows, base).unsqueeze(-1)
        values, weight = torch.cat((values, activated), -1), torch.cat((weight, base_weight.unsqueeze(1)), 1)
    # axes by their numbers: of -1 the exporter of traces makes no permutation
    image = values.flatten(-2).movedim(dims + 1, 1)
    inputs = weight.shape[0] // groups
    # (C, R, *kernel, O / groups) -> (O, C / groups * R, *kernel)
    weight = (
        weight.unflatten(0, (groups, inputs)).movedim(dims + 3, 1).flatten(2, 3).flatten(0, 1).to(grid.dtype)
    )
    pairs = list(pairwise(padding))[::2]
    if any(before != after for before, after in pairs):
        image = functional.pad(image, [n for pair in reversed(pairs) for n in pair])
        pairs = [(0, 0)] * dims
    shift = None if bias is None else bias.to(grid.dtype)
    around = [before for before, _ in pairs]
    y = _CONVOLUTIONS[dims - 1](image, weight, shift, list(stride), around, list(dilation), groups)
    y = y.to(spline_weight.dtype)
    if channels_last and dims > 1:
        return y.contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    return y


def layer_norm_rbf(
    x: Tensor, scale: Some, shift: Some, spline_weight: Tensor, base_weight: Some, bias: Some, grid: Tensor,
    epsilon: float, base: int,
) -> Tensor:  # fmt: skip
    """Return Gaussians of the layer norm, and the base of x: the op `layer_norm_rbf`."""
    features, functions = grid.shape[0], grid.shape[1] - 1
    z = functional.layer_norm(x, (features,), scale, shift, epsilon)
    weight = spline_weight.view(-1, features, functions).permute(1, 2, 0)
    y = reference.kan_linear(z, None, weight, None, bias, grid, functions, 0, 0, 0, RBF.code)
    return y if base_weight is None else y + reference.base_activation(x, base) @ base_weight.t()


def table() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return the function of every op that has one, in all fused backends."""
    functions = {name: getattr(reference, name) for name in fakes.LINEAR | fakes.ACTIVATION}
    functions |= {function.__name__: function for function in (kan_network, kan_conv, layer_norm_rbf)}
    return {
        getattr(getattr(torch.ops, backend.NAMESPACE), name).default: function
        for name, function in functions.items()
        for backend in with_op(name)
    }
