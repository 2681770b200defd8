"""What every layer and every edge of a KAN computes, for scores and pictures."""

from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F
from .backends import reference
from .contract import BASE_CODES
from .nn import KAN, KANLinear
from .statistics import compute_dtype


def layers_of(model: nn.Module) -> list[KANLinear]:
    """The layers of a KAN, or the KANLinear itself.

    Raises:
        TypeError: `model` is neither.
    """
    if isinstance(model, KANLinear):
        return [model]
    if isinstance(model, KAN):
        return list(model.layers)  # type: ignore[arg-type]
    raise TypeError(f"model: got {type(model).__name__}, expected a KAN or a KANLinear")


def check_data(x: object, layer: Any) -> Tensor:
    """`x` as rows (B, in) of finite numbers, B >= 1, that the layer can take: a KANLinear, or any other with
    its in_features and a spline_weight.

    Raises:
        TypeError, ValueError: it has another type, dtype, device or shape, is empty, or has NaN or inf.
    """
    expected = f"a tensor (..., {layer.in_features}) of finite numbers"
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected {expected}")
    if x.dim() == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {layer.in_features})")
    weight = layer.spline_weight
    if x.dtype != weight.dtype:
        raise TypeError(f"x: got {x.dtype}, expected {weight.dtype} like the model's weights")
    if x.device != weight.device:
        raise ValueError(f"x: is on {x.device}, expected {weight.device} like the model's weights")
    rows = x.detach().reshape(-1, layer.in_features)
    if len(rows) == 0:
        raise ValueError(f"x: got no samples, shape {tuple(x.shape)}, expected at least one")
    if not rows.isfinite().all():
        sample, feature = (~rows.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"x: sample {sample} of feature {feature} is not finite, expected {expected}")
    return rows


def active_edges(layer: KANLinear) -> Tensor:
    """(in, out) bool: the edges that are not masked, or have a formula."""
    shape = (layer.in_features, layer.out_features)
    active = torch.ones(shape, dtype=torch.bool, device=layer.spline_weight.device)
    if layer.edge_mask is not None:
        active = layer.edge_mask != 0
    if layer.symbolic is not None:
        active[layer.symbolic.index.unbind(1)] = True
    return active


@torch.no_grad()
def node_values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The values of all nodes: x (B, in), then every layer's output (B, out)."""
    values = [x]
    for layer in layers_of(model):
        values.append(layer(values[-1]))
    return values


@torch.no_grad()
def edge_values(layer: KANLinear, x: Tensor) -> Tensor:
    """phi[i,o](x[n,i]) of every edge, dense: for a few hundred points, not for a batch.

    Args:
        x: (n, in), the layer's dtype.

    Returns:
        (n, in, out) float32, or float64 in a layer of that dtype. Masked edges without a formula are zero.
    """
    dtype = compute_dtype(layer.spline_weight)
    x = x.to(dtype)
    basis = F.bspline_basis(x, layer.grid.to(dtype), layer.spline_order)
    values = torch.einsum("nir,iro->nio", basis, layer.spline_weight.to(dtype))
    if layer.base_weight is not None:
        base = reference.base_activation(x, BASE_CODES[layer.base])
        values += base.unsqueeze(2) * layer.base_weight.to(dtype)
    if layer.edge_mask is not None:
        values *= layer.edge_mask.to(dtype)
    if layer.symbolic is not None:
        for edge in layer.symbolic.edges():
            values[:, edge.input, edge.output] += edge.curve(x[:, edge.input])
    return values


@torch.no_grad()
def edge_statistics(layer: KANLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean magnitude and standard deviation over the batch of every edge's function.

    The mean magnitude is the L1 norm of arXiv 2404.19756, eq. 2.17: the mean of |phi[i,o](x[b,i])| over b.

    Args:
        x: (B, in), B >= 1, the layer's dtype.

    Returns:
        l1 and the standard deviation (divided by B), both (in, out) float64. Memory O(in out + B).
    """
    spline_weight, base_weight = layer.masked_weights()
    mask = layer.edge_mask
    options: dict[str, Any] = {"spline_order": layer.spline_order, "base": layer.base}
    l1 = F.edge_l1(x, spline_weight, layer.grid, base_weight=base_weight, **options).double()
    moments = F.edge_moments(x, spline_weight, layer.grid, base_weight=base_weight, correction=0, **options)
    deviation = moments[1].double()
    if layer.symbolic is not None:
        for edge in layer.symbolic.edges():
            i, o = edge.input, edge.output
            phi = edge.curve(x[:, i].double())
            if mask is None or mask[i, o] != 0:  # a spline beside the formula
                base = None if base_weight is None else base_weight[i : i + 1, o : o + 1]
                weight, grid = spline_weight[i : i + 1, :, o : o + 1], layer.grid[i : i + 1]
                phi = phi + F.kan_linear(x[:, i : i + 1], weight, grid, base_weight=base, **options)[:, 0]
            l1[i, o], deviation[i, o] = phi.abs().mean(), phi.std(correction=0)
    return l1, deviation
