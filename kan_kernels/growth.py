"""Larger KANs that compute what a smaller one did: more nodes in a row, more layers."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._core import checks
from .composition import check_plain, layers_of, products_of
from .inspection import check_data, node_values
from .nn import KAN, KANLinear, Products

Model = TypeVar("Model", bound=KAN)


@torch.no_grad()
def expand_width(model: Model, row: int, count: int = 1) -> Model:
    """Return a KAN with more nodes in a hidden row, and the same function up to rounding; `model` stays.

    The new nodes are sums, behind those that are there and before products. Edges to them start as those of a
    new layer, edges away from them at zero, from where training takes them. New parameters: build the
    optimizer anew.

    Args:
        model: a KAN of at least two layers.
        row: the hidden row, 1 for the outputs of the first layer.
        count: how many nodes it gets.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> model, x = KAN([2, 3, 1]), torch.rand(8, 2)
        >>> wide = expand_width(model, 1, count=2)
        >>> wide.layers[0].out_features, torch.allclose(wide(x), model(x))
        (5, True)
    """
    layers = _layers(model)
    if len(layers) < 2:
        raise ValueError(f"model: got {len(layers)} layer, expected at least two, with a hidden row")
    row = checks.integer("row", row, 1, len(layers) - 1)
    count = checks.integer("count", count, 1)
    products = products_of(model)
    sums, arities = products[row - 1].sums, products[row - 1].arities
    before, after = layers[row - 1], layers[row]
    layers[row - 1] = _joined(before, _fresh(before, before.in_features, count), 1, sums)
    away = _fresh(after, count, after.out_features)
    for weight in away.parameters():
        weight.zero_()
    layers[row] = _joined(after, away, 0, sums)
    products[row - 1] = Products(sums + count, arities)
    return _with_layers(model, layers, products)


@torch.no_grad()
def expand_depth(model: Model, at: int | None = None, x: Tensor | None = None) -> Model:
    """Return a KAN with one more layer, which hands on what it gets, and the same function; `model` stays.

    Its base is the identity, once from each node to itself, and its splines are zero: exact where
    all that it hands on is finite. New parameters: build the optimizer anew. A KAN of layers with different
    bases runs layer by layer.

    Args:
        model: a KAN.
        at: the index of the new layer, 0 for the first; None puts it last.
        x: (..., in), input of the model: the new knots span what the layer gets on it. None: -1 to 1.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> model, x = KAN([2, 3, 1]), torch.rand(8, 2)
        >>> deep = expand_depth(model, at=1, x=x)
        >>> len(deep.layers), torch.equal(deep(x), model(x))
        (3, True)
    """
    layers = _layers(model)
    at = len(layers) if at is None else checks.integer("at", at, 0, len(layers))
    beside, products = layers[min(at, len(layers) - 1)], products_of(model)
    width = beside.in_features if at < len(layers) else products[-1].nodes
    span = (-1.0, 1.0)
    if x is not None:
        values = node_values(model, check_data(x, layers[0]))[at]
        if not values.isfinite().all():
            raise ValueError(f"x: layer {at} would get NaN or inf, expected x on which the model is finite")
        low, high = float(values.min()), float(values.max())
        if low < high:
            span = (low, high)
    new = _fresh(beside, width, width, base="identity", bias=False, grid_range=span)
    new.spline_weight.zero_()
    assert new.base_weight is not None
    new.base_weight.copy_(torch.eye(width))
    products.insert(at, Products(width, ()))
    return _with_layers(model, [*layers[:at], new, *layers[at:]], products)


def _layers(model: object) -> list[KANLinear]:
    if not isinstance(model, KAN):
        raise TypeError(f"model: got {type(model).__name__}, expected a KAN")
    return layers_of(model)


def _fresh(like: KANLinear, fan_in: int, fan_out: int, **options: Any) -> KANLinear:
    """Return a new layer with the options of another."""
    weight = like.spline_weight
    given = {
        "grid_range": like.grid_range,
        "base": like.base,
        "bias": like.bias is not None,
        "noise_scale": like.noise_scale,
        "backend": like.backend,
        "device": weight.device,
        "dtype": weight.dtype,
    }
    new = KANLinear(fan_in, fan_out, like.grid_size, like.spline_order, **{**given, **options})
    return new.train(like.training)


def _joined(layer: KANLinear, other: KANLinear, side: int, at: int) -> KANLinear:
    """Return both as one: with all inputs (side 0) or all outputs (side 1), the other's from `at` on.

    Formulas and masks stay.
    """

    def within(whole: Tensor, part: Tensor, dim: int) -> Tensor:
        low, high = whole.tensor_split([at], dim)
        return torch.cat([low, part, high], dim)

    check_plain(layer, "spline_weight", "base_weight", "bias")
    count = other.out_features if side else other.in_features
    new = copy.deepcopy(layer)
    new.set_symbolic(None)
    new.set_edge_mask(None)
    new.in_features += other.in_features if side == 0 else 0
    new.out_features += other.out_features if side else 0
    if side == 0:
        new.place_grid(within(layer.grid, other.grid.to(layer.grid), 0))
    names = {"spline_weight": 2 * side, "base_weight": side}
    if side:
        names["bias"] = 0
    for name, dim in names.items():
        part = getattr(layer, name)
        if part is not None:
            value = within(part.detach(), getattr(other, name).detach(), dim)
            setattr(new, name, nn.Parameter(value, requires_grad=part.requires_grad))
    mask, symbolic = layer.edge_mask, layer.symbolic
    if mask is not None:
        new.set_edge_mask(within(mask, mask.new_ones(other.in_features, other.out_features), side))
    if symbolic is not None:
        away = [count * (e[:2][side] >= at) for e in symbolic.edges()]
        edges = [
            e._replace(input=e.input + n * (1 - side), output=e.output + n * side)
            for e, n in zip(symbolic.edges(), away, strict=True)
        ]
        new.set_symbolic(symbolic.renewed(edges, new.in_features, new.out_features))
    return new


def _with_layers(model: Model, layers: list[KANLinear], products: list[Products]) -> Model:
    """Return a copy of the model with these layers and products, of which none is the model's own."""
    own, copied = {id(layer) for layer in model.layers}, {}  # type: ignore[var-annotated]
    new = nn.ModuleList(copy.deepcopy(layer, copied) if id(layer) in own else layer for layer in layers)
    new.training = model.layers.training  # of the list alone: each layer has its own
    memo = {id(model.layers): new, id(model._modules.get("products")): None}  # copy all but these
    grown = copy.deepcopy(model, memo)
    grown.set_products(copy.deepcopy(products))
    return grown
