"""Auto: every edge of a model gets a formula, and the report says what that does to the whole."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import replicas
from .._core import checks
from ..composition import layers_of, opened, products_of
from ..inspection import check_calls
from ..nn import KANLinear, Products
from ..nn import function_library as functions
from .actions import R2_FLOOR, Candidate, _check_share, _finite, _fit_edges, _set
from .curves import active_pairs, fixed_edges, layer_inputs, rows, x_dtype
from .polish import error_of, polish

POLISH = 20  # steps, before the error of the whole is judged
ROUNDING = 1e-12  # of the size of y: no error is worse than another below that


@dataclass(frozen=True)
class EdgeReport:
    """An edge, with the candidate that `auto` fixed it to, or the closest where none was good enough.

    Attributes:
        layer, input, output: the edge.
        best: the candidate.
        fixed: whether the edge became it.

    Example:
        >>> edges = auto(KAN([1, 1]), torch.rand(64, 1), library=["x"]).edges
        >>> [(edge.layer, edge.input, edge.output) for edge in edges]
        [(0, 0, 0)]
    """

    layer: int
    input: int
    output: int
    best: Candidate
    fixed: bool


@dataclass(frozen=True)
class Report:
    """A record of what `auto` did; prints as a table.

    Attributes:
        edges: a report for each edge that had no formula.
        change: how far the outputs moved on x, as a share of their spread: the root of the mean square change
            over that of the outputs' deviation from their mean. 0.1 is an r2 of 0.99.
        before, after: the error of the whole on (x, y), where y was given.
        fixed, left: those that got one, and those for which no candidate was good enough.

    Example:
        >>> report = auto(KAN([2, 5, 1]), torch.rand(64, 2), library=["x"])
        >>> len(report.fixed) + len(report.left)
        15
    """

    edges: tuple[EdgeReport, ...]
    change: float = 0.0
    before: float | None = None
    after: float | None = None

    @property
    def fixed(self) -> tuple[EdgeReport, ...]:
        """Return the edges that got a formula."""
        return tuple(edge for edge in self.edges if edge.fixed)

    @property
    def left(self) -> tuple[EdgeReport, ...]:
        """Return the edges that stay splines: nothing reached the threshold, or the whole would suffer."""
        return tuple(edge for edge in self.edges if not edge.fixed)

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            whole = f"outputs moved by {self.change:.2g} of their spread; their error needs y"
        else:
            whole = f"error of the whole was {self.before:.3g} and is {self.after:.3g}"
        lines = [f"{len(self.fixed)} of {len(self.edges)} edges fixed; {whole}"]
        for edge in self.edges:
            state = "fixed to" if edge.fixed else "a spline; closest is"
            lines.append(
                f"  layer {edge.layer}, {edge.input} -> {edge.output}: {state} {edge.best.name}"
                f"  r2 {edge.best.r2:.8f}  complexity {edge.best.complexity:g}"
            )
        return "\n".join(lines)


def auto(
    model: torch.nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    worsening: float = 1.1,
    library: Iterable[str] | None = None,
    r2_threshold: float = 0.9,
    complexity_weight: float = 0.7,
    group: Any = None,
) -> Report:
    """Fix the edges of a model that are switched on and have no formula yet, and return what became of it.

    An edge gets the best score among the candidates that explain enough and are finite on every row, in the
    layer's dtype; where none is it stays a spline. All edges are fitted to the model as it was, on the data
    that reaches their layer; then all are fixed. The rows are those, and what the formulas of the layers
    before make of them.

    With y, the whole decides: the formulas are polished together, and while the error on (x, y) is more than
    `worsening` times what it was, the edge with the least r2 goes back to its spline. Without y nothing is
    known about the error, and the report says so, beside how far the outputs moved; there edges go back while
    the formulas explain less of the outputs than `r2_threshold`, as one edge has to.

    Args:
        model: a KAN or a KANLinear, or `SelectedInputs` of one.
        x: (..., in), input of the model.
        y: what the model should give, (..., out), or what the loss takes.
        loss: of (prediction, y), a scalar; the mean squared error by default, whose root is reported.
        worsening: at least 1; how many times larger the error may become.
        library: names of the candidates; None: all functions.
        r2_threshold: 0 to 1; candidates that explain less are out of the question, of an edge and, without y,
            of the whole. At 0 are those that explain nothing of an edge, r2 <= 1e-5, such as the constant.
        complexity_weight: as for `suggest`.
        group: as for `grids.update_grid`: the rows of all ranks count, and all get the same.

    Raises:
        TypeError, ValueError: naming the argument; x that is empty, or has NaN or inf, too; y where the
            model's error is not finite.

    Example:
        >>> layer = KANLinear(1, 1, base="identity")
        >>> _ = layer.spline_weight.data.zero_()  # phi(x) = w x
        >>> auto(layer, torch.rand(64, 1), library=["x", "exp"]).fixed[0].best.name
        'x'
    """
    model, x = opened(model, x)
    layers = layers_of(model)
    candidates = functions.resolve(library)
    _check_share("complexity_weight", complexity_weight)
    _check_share("r2_threshold", r2_threshold)
    checks.above("worsening", worsening, 0.0)
    if worsening < 1:
        raise ValueError(f"worsening: got {worsening}, expected a number >= 1")
    if loss is not None and y is None:
        raise ValueError("y: got None with a loss, expected what the loss takes")
    if (ranks := replicas.resolve(model, group)) is not None:
        options = {"library": [f.name for f in candidates], "r2_threshold": r2_threshold,
                   "complexity_weight": complexity_weight, "worsening": worsening}  # fmt: skip

        def found(x: Tensor, y: Tensor | None = None) -> tuple[Report, dict[str, Tensor]]:
            other = copy.deepcopy(model)
            report = auto(other, x, y, loss=loss, **options, group=replicas.LOCAL)  # type: ignore[arg-type]
            return report, {name: value.cpu() for name, value in other.state_dict().items()}

        given = (x,) if y is None else (x, y)
        report, state = replicas.shared(ranks, model, ("auto", options), found, *given)
        for n, layer in enumerate(layers):
            _set(layer, _formulas(report.edges, n))
        model.load_state_dict(state)
        return report
    check_calls(model, rows(layers[0], x).to(x_dtype(layers[0])))
    reports = _chosen(layers, products_of(model), x, candidates, r2_threshold, complexity_weight)
    original = _outputs(model, x)
    before, allowed = None, 1 - r2_threshold
    if y is not None:
        before = error_of(model, x, y, loss)
        allowed = worsening * before
        if loss is None:
            allowed += ROUNDING * float(y.double().square().mean().sqrt())

    def worse(trial: torch.nn.Module) -> float:
        """Return the error of the whole, polished, or without y what the formulas leave unexplained of it."""
        if y is None:
            return _change(original, _outputs(trial, x)) ** 2
        try:
            return polish(trial, x, y, loss=loss, steps=POLISH, group=replicas.LOCAL)
        except ValueError:  # not finite
            return torch.inf

    while True:
        trial = copy.deepcopy(model)
        _apply(layers_of(trial), reports)
        after = before
        if not any(report.fixed for report in reports) or (after := worse(trial)) <= allowed:
            break
        least = min((r for r in reports if r.fixed), key=lambda report: report.best.r2)
        reports = [replace(r, fixed=False) if r is least else r for r in reports]
    _apply(layers, reports)
    model.load_state_dict(trial.state_dict())
    change = _change(original, _outputs(model, x))
    return Report(tuple(reports), change, before, None if y is None else after)


def _chosen(
    layers: list[KANLinear],
    products: list[Products],
    x: Tensor,
    candidates: list,
    r2_threshold: float,
    complexity_weight: float,
) -> list[EdgeReport]:
    """Return what each edge would become by itself."""
    reports: list[EdgeReport] = []
    reached = rows(layers[0], x)
    for n, (layer, inputs) in enumerate(zip(layers, layer_inputs(layers, x, products), strict=True)):
        edges = [edge for edge in active_pairs(layer) if edge not in fixed_edges(layer)]
        for (i, o), ranked in zip(
            edges, _fit_edges(layer, edges, inputs, candidates, complexity_weight), strict=True
        ):
            columns = [part[:, i].to(x_dtype(layer)) for part in (inputs, reached)[: 1 + (n > 0)]]
            enough = [candidate for candidate in ranked if candidate.r2 >= max(r2_threshold, R2_FLOOR)]
            best = next((c for c in enough if all(_finite(c, column) for column in columns)), None)
            closest = best or max(ranked, key=lambda candidate: candidate.r2)
            reports.append(EdgeReport(n, i, o, closest, best is not None))
        if layer is not layers[-1]:
            reached = products[n](_output_when_fixed(layer, reached, _formulas(reports, n)))
    return reports


_Formulas = dict[tuple[int, int], tuple[str, tuple[float, float, float, float]]]


def _formulas(reports: Sequence[EdgeReport], layer: int) -> _Formulas:
    fixed = (report for report in reports if report.layer == layer and report.fixed)
    return {(report.input, report.output): (report.best.name, report.best.affine) for report in fixed}


def _apply(layers: list[KANLinear], reports: Sequence[EdgeReport]) -> None:
    for n, layer in enumerate(layers):
        _set(layer, _formulas(reports, n))


@torch.no_grad()
def _output_when_fixed(layer: KANLinear, x: Tensor, formulas: _Formulas) -> Tensor:
    changed = copy.deepcopy(layer)
    _set(changed, formulas)
    return changed(x.to(x_dtype(layer)))


@torch.no_grad()
def _outputs(model: torch.nn.Module, x: Tensor) -> Tensor:
    layers = layers_of(model)
    return model(rows(layers[0], x).to(x_dtype(layers[0]))).double()


def _change(before: Tensor, after: Tensor) -> float:
    """Return the root mean square of the change over that of the deviation from the mean."""
    spread = (before - before.mean(0)).square().mean().sqrt()
    moved = (after - before).square().mean().sqrt()
    return float(moved / spread) if float(spread) > 0 else float(moved)
