"""Suggest, fix, unfix: what a user does with the edges of a layer."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import replicas
from .._core import checks
from ..head_functions import functions_of
from ..nn import KANLinear
from ..nn import function_library as functions
from ..nn.heads import HeadFunctions
from ..nn.symbolic_edges import Edge, SymbolicEdges
from .curves import Curves, rows, x_dtype
from .fit import FINE, fit, samples

_EDGES = 1024  # fitted at a time
R2_FLOOR = 1e-5  # pykan's: fits with less than this unexplained are equally good


class Candidate(NamedTuple):
    """A function fitted to one edge.

    Attributes:
        name: of the function in the library.
        r2: how well it fits, 1 at best.
        complexity: of the function.
        score: complexity against r2, the smaller the better.
        affine: (a, b, c, d) of c f(a x + b) + d.

    Example:
        >>> fix(KANLinear(1, 1), 0, 0, "sin", torch.rand(8, 1)).name
        'sin'
    """

    name: str
    r2: float
    complexity: float
    score: float
    affine: tuple[float, float, float, float]


def suggest(
    layer: KANLinear | HeadFunctions,
    i: int,
    o: int,
    x: Tensor | None = None,
    top: int = 5,
    *,
    library: Iterable[str] | None = None,
    complexity_weight: float = 0.7,
) -> list[Candidate]:
    """Return the `top` functions that come closest to what an edge computes now, the best score first.

    The score is pykan's, complexity_weight * complexity + (1 - complexity_weight) * log2(1 + 1e-5 - r2).
    At 0.7 a point of complexity must leave 5 times less unexplained; at pykan's 0.8, 16 times. Candidates
    that are NaN or inf somewhere on x come last, whatever their score.

    Args:
        layer, i, o: the edge from input i to output o; of a KANActivation or MultiHeadKANLinear, the function
            of input i and head o.
        x: (..., in), the layer's own input: for a deeper layer, the output of the one before. None: evenly
            spaced over the grid.
        top: how many.
        library: names of the candidates; None: all functions.
        complexity_weight: 0 (only r2 counts) to 1 (only simplicity).

    Raises:
        TypeError, ValueError: naming the argument; x that is empty, or has NaN or inf, too.

    Example:
        >>> layer = KANLinear(1, 1, base="identity")
        >>> _ = layer.spline_weight.data.zero_()  # phi(x) = w x
        >>> suggest(layer, 0, 0, library=["x", "exp"])[0].name
        'x'
    """
    if isinstance(layer, HeadFunctions):
        x = None if x is None else layer.function_rows(x)
        layer = functions_of(layer)
    _check_edge(layer, i, o)
    top = checks.integer("top", top, 1)
    _check_share("complexity_weight", complexity_weight)
    candidates = functions.resolve(library)
    x = rows(layer, x)
    ranked = _fit_edges(layer, [(i, o)], x, candidates, complexity_weight)[0]
    column = x[:, i].to(x_dtype(layer))
    return sorted(ranked, key=lambda candidate: not _finite(candidate, column))[:top]


def fix(
    layer: KANLinear,
    i: int,
    o: int,
    name: str,
    x: Tensor | None = None,
    params: Sequence[float] | None = None,
    *,
    group: Any = None,
) -> Candidate | None:
    """Give an edge a formula, c f(a x + b) + d with trainable a, b, c, d, in place of its spline.

    The spline stays underneath, switched off by the edge mask: `unfix` brings it back. The layer gets a new
    parameter, so optimizers have to be built anew.

    Args:
        layer, i, o: the edge from input i to output o. One that has a formula already gets the new one.
        name: of a function in the library.
        x: (..., in), the layer's own input, which the fit looks at; None: evenly spaced over the grid.
        params: (a, b, c, d), instead of a fit.
        group: as for `grids.update_grid` where x is given: the rows of all ranks count, and all get the same.

    Returns:
        The fit with its r2, or None where params were given.

    Raises:
        TypeError, ValueError: naming the argument; x that is empty, or has NaN or inf, too; a function whose
            fit is not finite on x.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> fix(layer, 0, 0, "cos", params=(1, 0, 2, 0))  # 2 cos(x)
        >>> layer(torch.zeros(1, 1)).item()
        2.0
    """
    _check_edge(layer, i, o)
    function = functions.get(name)
    if params is not None:
        _set(layer, {(i, o): (function.name, _affine(params))})
        return None
    if x is not None and (ranks := replicas.resolve(layer, group)) is not None:

        def fixed(x: Tensor) -> Candidate | None:
            return fix(copy.deepcopy(layer), i, o, name, x, group=replicas.LOCAL)

        found = replicas.shared(ranks, layer, ("fix", i, o, function.name), fixed, x)
        assert found is not None
        _set(layer, {(i, o): (function.name, found.affine)})
        return found
    x = rows(layer, x)
    best = _fit_edges(layer, [(i, o)], x, [function], 0.0)[0][0]
    if not _finite(best, x[:, i].to(x_dtype(layer))):
        raise ValueError(f"name: no fit of {function.name!r} is finite on x, expected another function")
    _set(layer, {(i, o): (function.name, best.affine)})
    return best


def unfix(layer: KANLinear, i: int, o: int) -> None:
    """Take an edge's formula away and switch its spline on again, if it was on before.

    Args:
        layer, i, o: the edge from input i to output o.

    Raises:
        ValueError: the edge has no formula.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> fix(layer, 0, 0, "cos", params=(1, 0, 2, 0))
        >>> unfix(layer, 0, 0)
        >>> layer.symbolic is None
        True
    """
    _check_edge(layer, i, o)
    edges = [] if layer.symbolic is None else layer.symbolic.edges()
    if not any((edge.input, edge.output) == (i, o) for edge in edges):
        raise ValueError(f"i, o: edge {i} -> {o} has no formula, expected one that was fixed")
    _set(layer, {(i, o): None})


@torch.no_grad()
def _finite(candidate: Candidate, column: Tensor) -> bool:
    """Return whether a layer of the column's dtype gets finite values from the formula on all of it.

    The fit has seen quantiles, in float64.
    """
    a, b, c, d = column.new_tensor(candidate.affine)
    y = c * functions.get(candidate.name).torch(a * column + b) + d
    return bool(y.isfinite().all())


def _set(
    layer: KANLinear,
    changes: Mapping[tuple[int, int], tuple[str, tuple[float, float, float, float]] | None],
) -> None:
    """Set formulas for some edges, None to take one away; edge mask and symbolic edges change together."""
    if not changes:
        return
    edges = {} if layer.symbolic is None else {edge[:2]: edge for edge in layer.symbolic.edges()}
    shape = layer.in_features, layer.out_features
    mask = (
        torch.ones(shape, dtype=torch.float64) if layer.edge_mask is None else layer.edge_mask.double().cpu()
    )
    for (i, o), change in changes.items():
        before = edges.pop((i, o), None)
        was = mask[i, o].item() if before is None else before.mask
        if change is not None:
            edges[i, o] = Edge(i, o, *change, was)
        mask[i, o] = was if change is None else 0.0
    weight, symbolic = layer.spline_weight, None
    if edges and layer.symbolic is not None:
        symbolic = layer.symbolic.renewed(edges.values(), *shape)
    elif edges:
        symbolic = SymbolicEdges(*shape, edges.values(), device=weight.device, dtype=weight.dtype)
    layer.set_symbolic(None)  # as long as a formula is there, its edge's mask is not the caller's
    layer.set_edge_mask(None if bool(mask.all()) else mask)
    layer.set_symbolic(symbolic)


def _fit_edges(layer, edges, x: Tensor, candidates, complexity_weight: float) -> list[list[Candidate]]:
    """Rank each edge's candidates from the best score to the worst. x: (n, in), checked."""
    if not edges:
        return []
    x = samples(x, FINE)
    eps = torch.finfo(torch.promote_types(layer.spline_weight.dtype, torch.float32)).eps
    fits = [
        fit(x[:, index[:, 0]], Curves(layer, index), candidates, eps)
        for index in torch.tensor(edges, device=x.device).split(_EDGES)
    ]
    r2, affine = (torch.cat(parts).cpu() for parts in list(zip(*fits, strict=True))[:2])
    complexity = torch.tensor([float(f.complexity) for f in candidates], dtype=torch.float64)
    unexplained = torch.log2((1 + R2_FLOOR - r2).clamp(min=R2_FLOOR))
    score = complexity_weight * complexity + (1 - complexity_weight) * unexplained
    ranked = []
    for r, s, a in zip(r2.tolist(), score.tolist(), affine.tolist(), strict=True):
        edge = [Candidate(f.name, r[n], f.complexity, s[n], tuple(a[n])) for n, f in enumerate(candidates)]
        # twins such as sin and cos fit equally well: the one with the smaller shift is the plainer
        ranked.append(sorted(edge, key=lambda c: (round(c.score, 6), abs(c.affine[1]))))
    return ranked


def _affine(params: Sequence[float]) -> tuple[float, float, float, float]:
    expected = "four finite numbers (a, b, c, d)"
    try:
        a, b, c, d = (float(value) for value in params)
    except (TypeError, ValueError):
        raise TypeError(f"params: got {params!r}, expected {expected}") from None
    if not torch.tensor([a, b, c, d]).isfinite().all():
        raise ValueError(f"params: got {params!r}, expected {expected}")
    return a, b, c, d


def _check_edge(layer: object, i: object, o: object) -> None:
    if not isinstance(layer, KANLinear):
        expected = "a KANLinear"
        if isinstance(layer, HeadFunctions):
            expected += "; head_functions.untied makes one of a MultiHeadKANLinear"
        raise TypeError(f"layer: got {type(layer).__name__}, expected {expected}")
    checks.integer("i", i, 0, layer.in_features - 1)
    checks.integer("o", o, 0, layer.out_features - 1)


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: got {value!r}, expected a number from 0 to 1")
