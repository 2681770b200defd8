"""What every layer and every edge of a KAN computes, for scores and pictures."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import functional as F
from ._core import checks
from ._core.bases import BASE_CODES
from .backends import reference
from .composition import layers_of, opened, products_of, why_no_chain
from .functional.edges import compute_dtype
from .nn import KANLinear, Products
from .nn.heads import HeadFunctions

__all__ = ["Activations", "activations"]


@torch.no_grad()
def inputs_of(model: nn.Module, layers: list[Any], x: Any) -> list[Tensor]:
    """Return `rows_of` without gradients."""
    return [rows.detach() for rows in rows_of(model, layers, x)]


def rows_of(model: nn.Module, layers: list[Any], x: Any) -> list[Tensor]:
    """Return what reaches each layer as rows (B, in) while the model, in evaluation mode, runs on x.

    x: the model's argument, or a tuple of several. Of a layer that is called several times: all its rows.
    A compiled model runs as it was written, since its graph knows nothing of hooks that come later.
    """
    seen: list[list[Tensor]] = [[] for _ in layers]

    def keep(n: int, layer: Any) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows = args[0] if args else named["x"]
            of = layer.function_rows(rows) if isinstance(layer, HeadFunctions) else rows
            seen[n].append(of.reshape(-1, layer.in_features).to(layer.spline_weight.dtype))

        return hook

    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_pre_hook(keep(n, layer), with_kwargs=True) for n, layer in enumerate(layers)
    ]
    try:
        model.eval()
        with _as_written():
            model(*x) if isinstance(x, tuple) else model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    empty = [layer.spline_weight.new_empty(0, layer.in_features) for layer in layers]
    return [torch.cat(rows) if rows else none for rows, none in zip(seen, empty, strict=True)]


def _as_written() -> Any:
    """Return a context in which compiled modules run their own code; within a graph all is traced anyway."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    try:
        return torch.compiler.set_stance("force_eager")
    except RuntimeError:  # in a function that is compiled in parts
        return contextlib.nullcontext()


class Activations(NamedTuple):
    """All that a layer computes on data.

    Attributes:
        inputs: (rows, in), what the layer gets.
        edges: (rows, in, out), the function of every edge at its input.
        outputs: (rows, out), their sums over the inputs, and the bias. Products of them are among the inputs
            of the next layer.

    Example:
        >>> Activations(*(torch.zeros(n) for n in (1, 2, 3))).outputs.shape
        torch.Size([3])
    """

    inputs: Tensor
    edges: Tensor
    outputs: Tensor


@torch.no_grad()
def activations(model: nn.Module, x: Tensor) -> list[Activations]:
    """Return what every node and every edge computes on data, layer by layer.

    Edges are dense, rows times in times out: for pictures and tables, not for a large batch.

    Args:
        model: a KAN or KANLinear, or `SelectedInputs` of one.
        x: (..., in) finite, in the model's dtype.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> first, second = activations(KAN([2, 5, 1]), torch.rand(8, 2))
        >>> first.edges.shape, torch.allclose(first.edges.sum(1), second.inputs, atol=1e-5)
        (torch.Size([8, 2, 5]), True)
    """
    model, x = opened(model, x)
    layers = layers_of(model)
    values, outputs = node_and_subnode_values(model, check_data(x, layers[0]))
    edges = [edge_values(layer, inside) for layer, inside in zip(layers, values, strict=False)]
    return [Activations(*each) for each in zip(values, edges, outputs, strict=False)]


def check_data(x: object, layer: Any, any_dtype: bool = False) -> Tensor:
    """Return `x` as rows (B, in) of finite numbers, B >= 1, that the layer can take, or cast to its dtype.

    The layer is a KANLinear, or any other with its in_features and a spline_weight.

    Raises:
        TypeError, ValueError: it has another type, dtype (unless `any_dtype`, floating), device or shape, is
            empty, or has NaN or inf.
    """
    checks.rows(x, layer.in_features)
    assert isinstance(x, Tensor)
    weight = layer.spline_weight
    if x.dtype != weight.dtype and not any_dtype:
        raise TypeError(f"x: got {x.dtype}, expected {weight.dtype} like the model's weights")
    if x.device != weight.device:
        raise ValueError(f"x: is on {x.device}, expected {weight.device} like the model's weights")
    rows = x.detach().reshape(-1, layer.in_features)
    if len(rows) == 0:
        raise ValueError(f"x: got no samples, shape {tuple(x.shape)}, expected at least one")
    if not rows.isfinite().all():
        sample, feature = (~rows.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"x: sample {sample} of feature {feature} is not finite, "
            f"expected a tensor (..., {layer.in_features}) of finite numbers"
        )
    return rows


def active_edges(layer: KANLinear) -> Tensor:
    """Return (in, out) bool: the edges that are not masked, or have a formula."""
    shape = (layer.in_features, layer.out_features)
    active = torch.ones(shape, dtype=torch.bool, device=layer.spline_weight.device)
    if layer.edge_mask is not None:
        active = layer.edge_mask != 0
    if layer.symbolic is not None:
        active[layer.symbolic.index.unbind(1)] = True
    return active


def node_values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the values of all nodes: x (B, in), then every layer's outputs, or products of them."""
    return node_and_subnode_values(model, x)[0]


@torch.no_grad()
def node_and_subnode_values(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the values of all nodes, and every layer's outputs before any are multiplied.

    Raises:
        ValueError: in the model as it is called, layers get something else.
    """
    nodes, subnodes = [x], []
    layers = layers_of(model)
    for layer, products in zip(layers, products_of(model), strict=True):
        subnodes.append(layer(nodes[-1]))
        nodes.append(products(subnodes[-1]))
    if (why := why_no_chain(model)) is not None:
        _check_others(model, x, nodes, subnodes, why)
    return nodes, subnodes


def check_calls(model: nn.Module, x: Tensor) -> None:
    """Raise ValueError where layers of the model as it is called get something else than those of a KAN."""
    if why_no_chain(model) is not None:
        node_and_subnode_values(model, x)


def _check_others(model: nn.Module, x: Tensor, nodes: list[Tensor], subnodes: list[Tensor], why: str) -> None:
    """Raise where what somebody else put around the layers changes what they get or return."""
    layers = layers_of(model)
    calls = {id(layer): layer for layer in layers}
    try:
        seen = dict(zip(calls, inputs_of(model, [*calls.values()], x), strict=True))
    except Exception as error:  # its forward takes something else than the inputs of the first layer
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"model: {why}, and cannot be called with x of its first layer ({said})") from error
    for n, (layer, got, products) in enumerate(zip(layers, subnodes, products_of(model), strict=True)):
        chained = torch.cat([node for node, other in zip(nodes, layers, strict=False) if other is layer])
        what = None
        if _differ(seen[id(layer)], chained):
            what = "gets something else than x through the layers before it"
        elif _differ(KANLinear.forward(getattr(layer, "_orig_mod", layer), nodes[n]), got):
            what = "returns something else than its edges make"
        elif _differ(Products.forward(products, got), nodes[n + 1]):
            what = "hands on something else than products of its nodes"
        if what is not None:
            raise ValueError(f"model: {why}, and layers[{n}] {what}, expected a KAN whose weights say all")


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.allclose(a, b, equal_nan=True)


@torch.no_grad()
def edge_values(layer: KANLinear, x: Tensor) -> Tensor:
    """Return phi[i,o](x[n,i]) of every edge, dense: for a few hundred points, not for a batch.

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
def formula_agreement(layer: KANLinear, x: Tensor) -> dict[tuple[int, int], float]:
    """Return r2 of every formula against the spline underneath, which it took the place of, on x (n, in).

    NaN where that spline is constant on x.
    """
    found: dict[tuple[int, int], float] = {}
    for edge in [] if layer.symbolic is None else layer.symbolic.edges():
        i, o = edge.input, edge.output
        base = layer.base_weight
        spline = F.kan_linear(
            x[:, i : i + 1].double(),
            layer.spline_weight[i : i + 1, :, o : o + 1].double(),
            layer.grid[i : i + 1].double(),
            spline_order=layer.spline_order,
            base_weight=None if base is None else base[i : i + 1, o : o + 1].double(),
            base=layer.base,
        )[:, 0]
        unexplained = (spline - edge.curve(x[:, i].double())).square().mean()
        found[i, o] = float(1 - unexplained / spline.var(correction=0))
    return found


def edge_arguments(layer: KANLinear | HeadFunctions) -> dict[str, Any]:
    """Return a layer's splines, or functions of heads, as arguments of the functional statistics.

    Masked ones are zero.
    """
    weights = layer.spline_weight, layer.base_weight
    spline_weight, base_weight = layer.masked_weights() if isinstance(layer, KANLinear) else weights
    return {
        "spline_weight": spline_weight,
        "grid": layer.grid,
        "spline_order": layer.spline_order,
        "base_weight": base_weight,
        "base": layer.base,
    }


@torch.no_grad()
def edge_magnitudes(layer: KANLinear, x: Tensor) -> Tensor:
    """Return the mean over b of |phi[i,o](x[b,i])| of every edge: arXiv 2404.19756, eq. 2.17.

    Args:
        x: (B, in), B >= 1, the layer's dtype.

    Returns:
        (in, out) float64. Memory O(in out + B).
    """
    l1 = F.edge_l1(x, **edge_arguments(layer)).double()
    return _with_formulas(l1, layer, x, lambda phi: phi.abs().mean())


@torch.no_grad()
def edge_deviations(layer: KANLinear, x: Tensor) -> Tensor:
    """Return the standard deviation (divided by B) of every edge's function over the batch.

    Arguments, result and memory as for `edge_magnitudes`.
    """
    deviation = F.edge_moments(x, **edge_arguments(layer), correction=0)[1].double()
    return _with_formulas(deviation, layer, x, lambda phi: phi.std(correction=0))


def _with_formulas(
    values: Tensor, layer: KANLinear, x: Tensor, statistic: Callable[[Tensor], Tensor]
) -> Tensor:
    """Put `statistic` of the whole curve into `values` (in, out), on edges that have a formula."""
    if layer.symbolic is None:
        return values
    splines = edge_arguments(layer)
    for edge in layer.symbolic.edges():
        i, o = edge.input, edge.output
        phi = edge.curve(x[:, i].double())
        if layer.edge_mask is None or layer.edge_mask[i, o] != 0:  # a spline beside the formula
            base = splines["base_weight"]
            one = {
                "spline_weight": splines["spline_weight"][i : i + 1, :, o : o + 1],
                "grid": layer.grid[i : i + 1],
                "base_weight": None if base is None else base[i : i + 1, o : o + 1],
            }
            phi = phi + F.kan_linear(x[:, i : i + 1], **{**splines, **one})[:, 0]
        values[i, o] = statistic(phi)
    return values
