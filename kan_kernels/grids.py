"""Grids that follow the data, and finer ones: the function of the model is kept.

Both check everything, then compute all layers in float64, then change the model, never half of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import replicas
from ._core import checks
from .composition import check_chain, check_plain, layers_of, products_of, spline_layers, why_no_chain
from .inspection import check_data, inputs_of
from .nn import KAN, KANLinear, Products
from .nn.heads import HeadFunctions
from .refit import insert_knots, refit

_Layer = KANLinear | HeadFunctions
_Change = tuple[Tensor, Tensor] | None  # of a layer: its new knots, its new coefficients, both float64
_Rule = Callable[[_Layer, Tensor], _Change]


@torch.no_grad()
def update_grid(
    model: nn.Module, x: Any, *, grid_eps: float = 0.02, margin: float = 0.01, group: Any = None
) -> None:
    """Move the knots of every layer to where its inputs are, and keep its function on them.

    The knots are those of efficient-kan: G+1 quantiles of the data (sample number floor(j (B-1) / G) of the
    sorted ones) are blended with G+1 uniform points on [min - margin, max + margin], grid_eps of these and
    1 - grid_eps of the quantiles; k more knots on each side continue by the uniform step. With margin=0 this
    is also pykan's blend. The coefficients become the least-squares fit to the old function on the data (see
    `refit.refit`): exact up to rounding if the new knots allow it. Where there is no data, in empty cells or
    with fewer samples than cells, the old function stays as closely as the new knots allow. A constant
    feature, one sample included, keeps its knots, moved as a whole if the value lies outside of them. Base
    weights, masks and symbolic edges are not touched, the parameters stay the same objects, and layers see
    what the layers before them computed before the change. An average of weights over steps (EMA, SWA) begins
    anew: coefficients of different knots have no mean.

    Args:
        model: a KAN or KANLinear, also in a DistributedDataParallel or sharded by fully_shard and
            parallelize_module; or any module with KANLinear, KANActivation or MultiHeadKANLinear layers, also
            in a DistributedDataParallel, which is run once on x in evaluation mode. So is a KAN with hooks or
            with a forward of its own. Layers that x does not reach stay as they are.
        x: (..., in) finite inputs of the model, at least one sample, in its dtype; of any other module, its
            argument, or a tuple of several.
        grid_eps: 0 for quantiles, 1 for uniform knots.
        margin: how far uniform knots reach beyond the data, in units of x, >= 0.
        group: where several ranks run, the process group whose ranks hold replicas and all make this call:
            the knots follow the rows of all of them, and all end with the same bits. "local" for the model
            and rows of this rank alone. None takes the group of a wrapped or sharded model, and is an error
            for others, and on a mesh of several dimensions: there it is the ranks that have rows of their
            own. Ranks that share layers must have the same rows.

    Raises:
        TypeError, ValueError: naming the argument; the model is as it was.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> update_grid(layer, torch.linspace(0, 10, 100)[:, None], margin=0)
        >>> layer.grid_range
        (0.0, 10.0)
    """
    checks.nonnegative("grid_eps", grid_eps, 1.0)
    checks.nonnegative("margin", margin)
    settings = {"grid_eps": grid_eps, "margin": margin}
    inner = replicas.unwrapped(model)

    def moved(layer: _Layer, rows: Tensor) -> _Change:
        knots = _placed_knots(layer, rows, grid_eps, margin)
        coefficients, old_knots = layer.spline_weight.double(), layer.grid.double()
        return knots, refit(coefficients, old_knots, knots, layer.spline_order, rows)

    if isinstance(inner, (KAN, KANLinear)) and _runs_in_turn(inner):
        _change_in_turn(model, x, moved, settings, group)
    else:
        _change_where_reached(model, x, moved, settings, group)


def _runs_in_turn(model: nn.Module) -> bool:
    """Return whether a KAN is its layers alone. Raise where it has to be, as a sharded one is not run."""
    if replicas.is_sharded(model):
        check_chain(model)
    return why_no_chain(model) is None


def _change_in_turn(model: nn.Module, x: Any, change: _Rule, settings: dict[str, Any], group: Any) -> None:
    """Replace what the layers of a KAN or KANLinear hold, each by what those before it make of x."""
    inner = replicas.unwrapped(model)
    layers, products = layers_of(inner, sharded=True), products_of(inner)
    ranks = replicas.resolve(model, group)
    whole = replicas.whole(model, layers)
    replicated = nn.ModuleList(whole)

    def changes(x: Tensor) -> list[_Change]:
        seen: dict[int, list[Tensor]] = {}
        for layer, rows in zip(layers, _inputs(whole, products, x), strict=True):
            seen.setdefault(id(layer), []).append(rows)  # of a layer that is there twice: all
        return [
            change(other, torch.cat(seen.pop(id(layer)))) if id(layer) in seen else None
            for layer, other in zip(layers, whole, strict=True)
        ]

    _apply(
        layers, replicas.everywhere(model, lambda: replicas.shared(ranks, replicated, settings, changes, x))
    )


def _change_where_reached(
    model: nn.Module, x: Any, change: _Rule, settings: dict[str, Any], group: Any
) -> None:
    """Replace what the layers of any module hold, each by all that reaches it while the module runs on x."""
    inner = replicas.unwrapped(model)
    named = spline_layers(inner)
    layers = list(named.values())

    def changes(*seen: Tensor) -> list[_Change]:
        return [_reached(*each, change) for each in zip(named, layers, seen, strict=True)]

    ranks = replicas.resolve(model, group)
    parts = inputs_of(inner, layers, x)
    _apply(layers, replicas.shared(ranks, nn.ModuleList(layers), settings, changes, *parts))


def _reached(name: str, layer: _Layer, rows: Tensor, change: _Rule) -> _Change:
    """Return the change of a layer by what reached it; nothing, if nothing did."""
    check_plain(layer)
    if len(rows) == 0:
        return None
    if not rows.isfinite().all():
        raise ValueError(
            f"model: the inputs of {name or 'it'} are not finite, expected an x that keeps them so"
        )
    return change(layer, rows)


@torch.no_grad()
def outside(model: nn.Module, x: Any) -> dict[str, float]:
    """Return which share of its inputs lies outside the inner knots of each layer, by the layer's name.

    There a spline fades to zero over the k extension cells, and the base carries value and gradient alone.
    NaN lies outside. `update_grid` moves the knots to the data.

    Args:
        model: a module with KANLinear, KANActivation or MultiHeadKANLinear layers, run once in evaluation
            mode.
        x: its argument, or a tuple of several.

    Returns:
        name in `model.named_modules()` -> share from 0 to 1; layers that x does not reach are left out.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> outside(KANLinear(1, 1), torch.tensor([[-2.0], [0.0], [0.5], [3.0]]))
        {'': 0.5}
    """
    named = spline_layers(replicas.unwrapped(model))
    layers = list(named.values())
    shares: dict[str, float] = {}
    seen = inputs_of(replicas.unwrapped(model), layers, x)
    for name, layer, rows in zip(named, layers, seen, strict=True):
        k = layer.spline_order
        inside = (rows >= layer.grid[:, k]) & (rows <= layer.grid[:, -k - 1])
        if rows.numel():
            shares[name] = 1.0 - float(inside.double().mean())
    return shares


@torch.no_grad()
def refine(model: nn.Module, new_grid_size: int, x: Tensor | None = None, *, group: Any = None) -> None:
    """Give every layer more cells, and keep its function.

    If the new grid size is a multiple of a layer's, each cell is divided into equal parts and the spline
    stays exactly what it was, everywhere, extension cells included (knot insertion; x is not used). Otherwise
    the new knots lie evenly between the old ones, where "evenly" counts cells, so that dense places stay
    dense, and the coefficients are the least-squares fit to the old function: on the data if there is x (see
    `update_grid`), else over the whole span. The k extension knots on each side stay. `spline_weight` becomes
    another Parameter: an optimizer, and DistributedDataParallel, must be built anew; fully_shard comes after.
    Under parallelize_module it is sharded as it was, and without x each rank computes its own edges.

    Args:
        model: a KAN or KANLinear, also sharded by parallelize_module; without x, any module with KANLinear,
            KANActivation or MultiHeadKANLinear.
        new_grid_size: at least the grid size of every layer; layers that have it stay as they are.
        x: (..., in) finite inputs of the model, at least one sample, in its dtype; or None.
        group: as for `update_grid`, where the data counts.

    Raises:
        TypeError, ValueError: naming the argument; the model is as it was.

    Example:
        >>> model, x = KAN([2, 1], grid_size=5), torch.linspace(-1, 1, 8).repeat(2, 1).t()
        >>> y = model(x)
        >>> refine(model, 10)
        >>> torch.allclose(model(x), y, atol=1e-5)
        True
    """
    plain = isinstance(model, (KAN, KANLinear))
    if isinstance(model, nn.Module) and replicas.unwrapped(model) is model and replicas.is_wrapped(model):
        raise ValueError(
            "model: fully_shard holds its parameters in the shapes they have, expected a model that it does "
            "not hold; gather the state (get_model_state_dict with full_state_dict=True), load it into a "
            "plain model, refine that, and shard it again"
        )
    layers: list[Any] = (
        layers_of(model, sharded=True)
        if plain or x is not None
        else list(spline_layers(model, sharded=True).values())
    )
    new_grid_size = checks.integer("new_grid_size", new_grid_size, 1)
    for n, layer in enumerate(layers):
        if new_grid_size < layer.grid_size:
            raise ValueError(
                f"new_grid_size: got {new_grid_size}, but layer {n} has {layer.grid_size} cells already, "
                f"expected {layer.grid_size} or more"
            )
    in_turn = x is None or _runs_in_turn(model)
    if x is not None and in_turn and (group is None or group == replicas.LOCAL):  # a rank may have no rows
        replicas.everywhere(model, lambda: check_data(x, layers[0]))
    exact = all(new_grid_size % layer.grid_size == 0 for layer in layers)

    if x is None or exact:
        _apply(layers, [_finer(layer, None, new_grid_size) for layer in layers])
        return

    def finer(layer: _Layer, rows: Tensor) -> _Change:
        return _finer(layer, rows, new_grid_size)

    by_rows = _change_in_turn if in_turn else _change_where_reached
    by_rows(model, x, finer, {"new_grid_size": new_grid_size}, group)


def _finer(layer: _Layer, rows: Tensor | None, size: int) -> _Change:
    """Return the knots of `refine` and the coefficients on them, of a DTensor this rank's part of these."""
    check_plain(layer)
    if layer.grid_size == size:
        return None
    order, old_knots = layer.spline_order, replicas.full(layer.grid).double()
    # float32 knots are rounded before the fit: it is made for the knots that the layer will have
    knots = _divided_knots(old_knots, order, size).to(layer.grid.dtype).double()

    def kept(coefficients: Tensor, old: Tensor, new: Tensor) -> Tensor:
        if size % layer.grid_size == 0:
            return insert_knots(coefficients, old, new, order)
        return refit(coefficients, old, new, order, rows)

    return knots, replicas.by_parts(layer.spline_weight, size + order, kept, old_knots, knots)


def _inputs(layers: list[KANLinear], products: list[Products], x: Tensor) -> Iterator[Tensor]:
    """Yield the inputs (B, in) of each layer, through the layers before it as they are now."""
    rows = check_data(x, layers[0])
    for n, layer in enumerate(layers):
        check_plain(layer)
        if n > 0 and not rows.isfinite().all():
            raise ValueError(
                f"model: the inputs of layer {n} are not finite, expected weights that keep them so"
            )
        yield rows
        if n + 1 < len(layers):
            rows = products[n](layer(rows))


def _placed_knots(layer: _Layer, x: Tensor, grid_eps: float, margin: float) -> Tensor:
    """Return the knots of `update_grid` for inputs x (B, in), float64, as the layer's grid can hold them."""
    k, size = layer.spline_order, layer.grid_size
    points = _sorted(x.t().contiguous()).t()
    sample = torch.linspace(0, len(x) - 1, size + 1, dtype=torch.int64, device=x.device)
    points = points[sample].double()
    low, high = points[0], points[-1]
    step = (high - low + 2 * margin) / size
    steps = torch.arange(-k, size + k + 1, dtype=torch.float64, device=x.device).unsqueeze(1)
    inner = grid_eps * (low - margin + step * steps[k : k + size + 1]) + (1 - grid_eps) * points
    knots = torch.cat(
        [inner[:1] + step * steps[:k], inner, inner[-1:] + step * (steps[k + size + 1 :] - size)]
    )
    knots = knots.t().to(layer.grid.dtype).double()
    # the last cell must hold the largest sample: with k = 0, or where extension cells are lost in rounding
    above = torch.nextafter(high.to(layer.grid.dtype), torch.full_like(layer.grid[:, 0], torch.inf)).double()
    knots[:, -1] = knots[:, -1].maximum(above)
    old = layer.grid.double()
    first, last = old[:, k], old[:, k + size]
    inside = (first <= low) & (low <= last)
    moved = old + torch.where(inside, 0.0, low - (first + last) / 2).unsqueeze(1)
    knots = torch.where((low == high).unsqueeze(1), moved.to(layer.grid.dtype).double(), knots)
    if not knots.isfinite().all():
        raise ValueError(f"x: its range is too large for knots in {layer.grid.dtype}")
    return knots


def _sorted(rows: Tensor) -> Tensor:
    """Sort each row. On the CPU by NumPy, whose sort takes a tenth of the time of torch's."""
    if rows.is_cpu and rows.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(1).values


def _divided_knots(knots: Tensor, order: int, size: int) -> Tensor:
    """Return inner knots at equal steps of the cell number; the old ones stay where a step meets them."""
    old_size = knots.shape[1] - 2 * order - 1
    steps = torch.arange(size + 1, device=knots.device) * old_size
    cell, share = steps // size, (steps % size) / size
    inner = knots[:, order : order + old_size + 1]
    left, right = inner[:, cell], inner[:, (cell + 1).clamp_max(old_size)]
    inner = left + share.to(knots.dtype) * (right - left)
    return torch.cat([knots[:, :order], inner, knots[:, order + old_size + 1 :]], 1)


def _apply(layers: Sequence[_Layer], changes: list[_Change]) -> None:
    owners: dict[int, _Layer] = {}
    for layer in layers:
        for shared in (layer.spline_weight, layer.grid):
            plain = not hasattr(shared, "device_mesh") and shared.numel() and not shared.is_meta
            if owners.setdefault(shared.data_ptr() if plain else id(shared), layer) is not layer:
                raise ValueError(
                    "model: layers share a spline_weight or a grid, expected each to have its own"
                )
    for layer, change in zip(layers, changes, strict=True):
        if change is None:
            continue
        knots, coefficients = change
        if layer.spline_weight.shape[1] != coefficients.shape[1]:
            layer._resize(coefficients.shape[1] - layer.spline_order)
        replicas.write(layer.spline_weight, coefficients)
        replicas.write(layer.grid, knots)
        layer.keep_ranges()
