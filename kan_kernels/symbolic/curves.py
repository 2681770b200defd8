"""What edges of a layer compute, on which data, and which of them take part."""

import torch
from torch import Tensor

from .._core.bases import BASE_CODES
from ..backends import reference
from ..inspection import active_edges, check_data
from ..nn import KANLinear, Products


def active_pairs(layer: KANLinear) -> list[tuple[int, int]]:
    """Return (input, output) of the edges that take part in forward: splines that are on, and formulas."""
    return [(i, o) for i, o in active_edges(layer).nonzero().tolist()]


def fixed_edges(layer: KANLinear) -> set[tuple[int, int]]:
    """Return (input, output) of the edges that have a formula."""
    return set() if layer.symbolic is None else {tuple(edge) for edge in layer.symbolic.index.tolist()}


class Curves:
    """The functions of some edges, in float64: curves(columns, points) for `fit`."""

    def __init__(self, layer: KANLinear, index: Tensor) -> None:
        self.layer, self.index = layer, index

    def __call__(self, columns: slice, points: Tensor) -> Tensor:
        layer = self.layer
        inputs, outputs = self.index[columns].unbind(1)
        spline = layer.spline_weight.detach()[inputs, :, outputs].double()
        grid = layer.grid[inputs].double()
        y = torch.cat(
            [  # a few columns at a time: the dense basis is G + k times larger than they are
                torch.einsum("ner,er->ne", reference.bspline_basis(p, g, layer.spline_order), s)
                for p, g, s in zip(points.split(64, 1), grid.split(64), spline.split(64), strict=True)
            ],
            1,
        )
        if layer.base_weight is not None:
            base = layer.base_weight.detach()[inputs, outputs].double()
            y += base * reference.base_activation(points, BASE_CODES[layer.base])
        if layer.edge_mask is not None:
            y *= layer.edge_mask[inputs, outputs].double()
        if layer.symbolic is not None:
            place = {edge[:2]: edge for edge in layer.symbolic.edges()}
            for n, pair in enumerate(self.index[columns].tolist()):
                edge = place.get(tuple(pair))
                if edge is not None:
                    y[:, n] += edge.curve(points[:, n])
        return y


@torch.no_grad()
def layer_inputs(layers: list[KANLinear], x: Tensor, products: list[Products]) -> list[Tensor]:
    """Return the input of each layer, (n, in), checked. products: of the nodes behind each layer."""
    inputs: list[Tensor] = []
    for layer, multiply in zip(layers, products, strict=True):
        x = x if inputs else rows(layer, x)
        if not x.isfinite().all():
            raise ValueError(f"x: layer {len(inputs)} gets NaN or inf from the layers before it")
        inputs.append(x)
        x = multiply(layer(x.to(x_dtype(layer))))
    return inputs


def x_dtype(layer: KANLinear) -> torch.dtype:
    """Return the dtype of x for the layer: its weights', or float32 beside 16-bit weights."""
    return torch.promote_types(layer.spline_weight.dtype, torch.float32)


def rows(layer: KANLinear, x: Tensor | None) -> Tensor:
    """Return x as checked rows (n, in), or without one evenly spaced points over the inside of the grid."""
    if x is None:
        k = layer.spline_order
        low, high = layer.grid[:, k].double(), layer.grid[:, layer.grid.shape[1] - 1 - k].double()
        t = torch.linspace(0, 1, 256, dtype=torch.float64, device=low.device)[:, None]
        return torch.lerp(low, high, t)
    return check_data(x, layer, any_dtype=True)
