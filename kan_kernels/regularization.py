"""Sparsity: the paper's L1 norm and entropy of the edges, pykan's and efficient-kan's forms, smoothness."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F
from ._core import checks
from ._engine.penalties import EdgePenalty, Penalty, RowColumnPenalty
from .composition import layers_of, products_of, spline_layers, why_no_chain
from .functional.edges import compute_dtype
from .inspection import edge_arguments, rows_of
from .nn import KAN, KANLinear, MultiHeadKANLinear
from .nn.heads import HeadFunctions

_Layer = KANLinear | HeadFunctions
_Norms = Callable[[_Layer, Any], Tensor]


def regularization(
    model: nn.Module,
    x: Any = None,
    *,
    kind: str = "l1",
    lamb_l1: float = 1.0,
    lamb_entropy: float = 2.0,
    lamb_coef: float = 0.0,
    lamb_coefdiff: float = 0.0,
) -> Tensor:
    """Return the penalty that makes a KAN sparse, summed over its layers: a scalar to add to the loss.

    Each layer gives `lamb_l1 * sum(norm) + lamb_entropy * entropy(norm)
    + lamb_coef * sum_ir mean_o |c[i,r,o]| + lamb_coefdiff * sum_ir mean_o |c[i,r+1,o] - c[i,r,o]|`,
    with `norm` (in, out), the size of its edges, and the spline coefficients c. The kinds of norm:

    "l1"             mean_b |phi[i,o](x[b,i])|, with the entropy of the layer's distribution over its edges:
                     arXiv 2404.19756, eq. 2.17 to 2.19. mu_1 and mu_2 of eq. 2.20 are lamb_l1 and
                     lamb_entropy.
    "std"            standard deviation of phi over the rows (pykan's reg_metric "edge_forward_spline_u").
    "std_normalized" the same, divided by 0.1 + the standard deviation of the input (pykan's default,
                     "edge_forward_spline_n").
    "coefficient"    mean_r |c[i,r,o]| with the entropy of "l1" (efficient-kan). It needs no x.

    The entropy of both "std" kinds is pykan's: the mean entropy, in bits, of rows and of columns, with its
    constants 1 and 1e-4. The terms of the coefficients are pykan's "lamb_coef" and "lamb_coefdiff". Only
    splines and base activations are penalised; symbolic edges and products of nodes take part in what later
    layers see, and edges that are masked count as 0. "std" kinds need two rows.

    Any module with KANLinear, MultiHeadKANLinear or KANActivation layers has a penalty too, the sum of those
    that x reaches, each on all rows that it gets; it runs once, in evaluation mode. So has a KAN with hooks
    or with a forward of its own; a compiled step is then no single graph. The edges of a MultiHeadKANLinear
    are those of the KANLinear with the same edges, of size |mix[i,o]| times that of their function, at the
    cost of the functions alone; those of a KANActivation are its functions.

    Args:
        model: a KAN or KANLinear, or any module with layers as above.
        x: (..., in), the inputs of the model; of other modules their argument, or a tuple of several.
            Gradients flow to it and through it.
        kind: see above.
        lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff: finite weights, >= 0.

    Returns:
        A scalar, float64 for a float64 model and else float32, differentiable with respect to every parameter
        and x to any order. First derivatives take O(in out) memory a layer beside the nodes' activations.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> regularization(KANLinear(2, 5), torch.rand(8, 2)) > 0
        tensor(True)
    """
    layers: list[_Layer]
    chained = isinstance(model, (KAN, KANLinear)) and why_no_chain(model) is None
    layers = [*layers_of(model)] if chained else list(spline_layers(model).values())
    weights = {
        "lamb_l1": lamb_l1,
        "lamb_entropy": lamb_entropy,
        "lamb_coef": lamb_coef,
        "lamb_coefdiff": lamb_coefdiff,
    }
    _check_penalty(kind, weights)
    norms, penalty = _KINDS[kind]
    sized = lamb_l1 != 0 or lamb_entropy != 0
    seen = sized and kind != "coefficient"
    if seen and x is None:
        raise ValueError(f"x: got None, expected inputs of the model for kind={kind!r}")
    first = layers[0].spline_weight
    total: Any = torch.zeros((), dtype=compute_dtype(first), device=first.device)
    inputs: list[Any] = [None] * len(layers)
    if seen:
        inputs = _in_turn(model, layers, x) if chained else rows_of(model, layers, x)
    for layer, x in _once(layers, inputs):
        if seen and not chained and len(x) == 0:
            continue
        if sized:
            norm = _of_edges(layer, norms(layer, x))
            total = total + penalty.run(norm, lamb_l1, lamb_entropy)[0]
        if lamb_coef or lamb_coefdiff:
            coefficients = edge_arguments(layer)["spline_weight"].to(total.dtype)
            for lamb, of in ((lamb_coef, coefficients), (lamb_coefdiff, coefficients.diff(dim=1))):
                if lamb:
                    total = total + lamb * _of_edges(layer, of.abs()).mean(2).sum()
    return total


def _check_penalty(kind: object, weights: Mapping[str, object]) -> None:
    """Raise TypeError or ValueError, naming the option, unless `regularization` takes these."""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(map(repr, _KINDS))}")
    for name, value in weights.items():
        checks.nonnegative(name, value)


def _in_turn(model: nn.Module, layers: list[_Layer], x: Any) -> list[Any]:
    """Return what each layer of a KAN gets."""
    inputs = [x]
    for layer, products in zip(layers[:-1], products_of(model), strict=False):
        inputs.append(products(layer(inputs[-1])))
    return inputs


def _once(layers: list[_Layer], inputs: list[Any]) -> list[tuple[_Layer, Any]]:
    """Return each layer with its inputs; one that is there twice with all of them."""
    found: dict[int, tuple[_Layer, list[Any]]] = {}
    for layer, x in zip(layers, inputs, strict=True):
        found.setdefault(id(layer), (layer, []))[1].append(x)
    return [
        (layer, x[0] if len(x) == 1 or x[0] is None else torch.cat([part.flatten(0, -2) for part in x]))
        for layer, x in found.values()
    ]


def _of_edges(layer: _Layer, sizes: Tensor) -> Tensor:
    """Return sizes (in, ..., out) of edges from those of functions (in, ..., heads), if these are tied."""
    if not isinstance(layer, MultiHeadKANLinear):
        return sizes
    mix = layer.mix.abs().to(sizes.dtype)
    if sizes.dim() == 3:
        mix = mix.unsqueeze(1)
    return sizes.repeat_interleave(layer.out_features // layer.heads, -1) * mix


def _l1(layer: _Layer, x: Any) -> Tensor:
    return F.edge_l1(x, **edge_arguments(layer))


def _std(layer: _Layer, x: Any) -> Tensor:
    return F.edge_moments(x, **edge_arguments(layer))[1]


def _std_normalized(layer: _Layer, x: Any) -> Tensor:
    std = _std(layer, x)
    return std / (x.to(std.dtype).flatten(0, -2).std(0) + 0.1).unsqueeze(1)


def _coefficient(layer: _Layer, x: Any) -> Tensor:
    coefficients = edge_arguments(layer)["spline_weight"]
    return coefficients.to(compute_dtype(coefficients)).abs().mean(1)


_KINDS: dict[str, tuple[_Norms, type[Penalty]]] = {
    "l1": (_l1, EdgePenalty),
    "std": (_std, RowColumnPenalty),
    "std_normalized": (_std_normalized, RowColumnPenalty),
    "coefficient": (_coefficient, EdgePenalty),
}
