"""Single edges with axes and the density of the data; the course of a training, the front of a search."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._core import checks
from ..inspection import (
    active_edges,
    check_data,
    edge_deviations,
    edge_magnitudes,
    edge_values,
    formula_agreement,
)
from ..nn import KANLinear
from ..training.history import History
from .style import ACCENT, ALARM, FAINT, FORMULA, INK, formula_label, matplotlib, new_figure, style

PAGE = 16  # edges on a page that were not chosen
POINTS = 401
BINS = 40


def plot_edges(
    layer: KANLinear,
    x: Tensor,
    edges: Iterable[Sequence[int]] | None = None,
    *,
    columns: int = 4,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Any:
    """Draw edges of one layer, each with its axes, its knots and the density of the data below it.

    A formula stands with its r2 against the spline underneath, which it took the place of.

    Args:
        layer: a KANLinear.
        x: (..., in) finite inputs of this layer, in its dtype.
        edges: pairs (input, output); None takes the 16 with the largest mean magnitude on x.
        columns: of the page.
        inputs, outputs: names, one for each; their numbers by default.

    Returns:
        The matplotlib figure.

    Raises:
        TypeError, ValueError: naming the argument.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> len(plot_edges(KANLinear(2, 1), torch.rand(8, 2)).axes)
        2
    """
    if not isinstance(layer, KANLinear):
        raise TypeError(f"layer: got {type(layer).__name__}, expected a KANLinear")
    rows = check_data(x, layer)
    l1, deviation = edge_magnitudes(layer, rows), edge_deviations(layer, rows)
    shape = layer.in_features, layer.out_features
    if edges is None:
        there = active_edges(layer).flatten().nonzero().flatten()
        order = there[l1.flatten()[there].argsort(descending=True, stable=True)][:PAGE]
        edges = [divmod(n, shape[1]) for n in order.tolist()]
    if isinstance(edges, str) or not isinstance(edges, Iterable):
        raise TypeError(f"edges: got {edges!r}, expected pairs (input, output)")
    edges = [edge.tolist() if hasattr(edge, "tolist") else edge for edge in edges]
    if not all(isinstance(edge, Sequence) for edge in edges):
        raise TypeError(f"edges: got {edges!r}, expected pairs (input, output)")
    if not edges:
        raise ValueError("edges: there are none to draw, expected at least one pair (input, output)")
    for edge in edges:
        whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in edge)
        if len(edge) != 2 or not whole or not all(0 <= n < m for n, m in zip(edge, shape, strict=True)):
            raise ValueError(f"edges: got {tuple(edge)}, expected (input, output) below {shape}")
    checks.integer("columns", columns, 1)
    for argument, names, count in (("inputs", inputs, shape[0]), ("outputs", outputs, shape[1])):
        if names is not None and (isinstance(names, str) or len(names) != count):
            got = repr(names) if isinstance(names, str) else f"{len(names)} names"
            raise ValueError(f"{argument}: got {got}, expected {count} names")
    low, high = rows.amin(0), rows.amax(0)
    pad = torch.where(high > low, 0.03 * (high - low), 0.5)
    steps = torch.linspace(0, 1, POINTS, dtype=x.dtype, device=x.device).unsqueeze(1)
    points = low - pad + (high - low + 2 * pad) * steps
    curves = edge_values(layer, points).double().cpu().numpy()
    places = points.double().cpu().numpy()
    formulas = {} if layer.symbolic is None else {(e.input, e.output): e.name for e in layer.symbolic.edges()}
    agreement = formula_agreement(layer, rows)
    knots = layer.grid.double().cpu().numpy()
    samples = rows.double().cpu().numpy()
    columns = min(columns, len(edges))
    count = math.ceil(len(edges) / columns)
    with style():
        figure = new_figure(3.0 * columns, 2.3 * count, layout="constrained")
        panels = figure.subplots(count, columns, squeeze=False).ravel()
        for panel, (i, o) in zip(panels, edges, strict=False):
            name = formulas.get((i, o))
            colour = FORMULA if name else ACCENT
            _density(panel, samples[:, i])
            panel.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
            panel.plot(places[:, i], curves[:, i, o], color=colour, linewidth=1.6, zorder=3)
            shown = knots[i][(knots[i] >= places[0, i]) & (knots[i] <= places[-1, i])]
            panel.vlines(shown, 0, 0.05, color=INK, linewidth=0.9, transform=panel.get_xaxis_transform())
            panel.set_xlim(places[0, i], places[-1, i])
            first = inputs[i] if inputs else f"input {i}"
            second = outputs[o] if outputs else f"output {o}"
            note = f"{formula_label(name, agreement[i, o])}, " if name else ""
            size = f"mean |φ| {l1[i, o]:.2g}, std {deviation[i, o]:.2g}"
            panel.set_title(f"{first} → {second}\n{note}{size}", fontsize=8)
        for panel in panels[len(edges) :]:
            panel.axis("off")
    return figure


def _density(panel: Any, values: np.ndarray) -> None:
    """Draw the histogram of the data, grey, in the lower quarter."""
    heights, borders = np.histogram(values, bins=BINS)
    scaled = np.append(heights, heights[-1]) / max(heights.max(), 1) * 0.25
    panel.fill_between(borders, scaled, step="post", color="#e4e4e4", linewidth=0,
                       transform=panel.get_xaxis_transform(), zorder=0)  # fmt: skip


def plot_history(history: History, *, title: str | None = None, ax: Any = None) -> Any:
    """Draw the losses of a training over its steps; mark grid updates, refinements and the end.

    Args:
        history: what `kan_kernels.training.fit` returned.
        title: above the picture.
        ax: matplotlib axes to draw in; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        TypeError: `history` is no History.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> plot_history(History(train_loss=[1.0, 0.1])).axes[0].get_yscale()
        'log'
    """
    if not isinstance(history, History):
        raise TypeError(f"history: got {type(history).__name__}, expected a History")
    matplotlib()
    with style():
        if ax is None:
            figure = new_figure(7.0, 4.0, layout="constrained")
            ax = figure.subplots()
        ax.plot(history.train_loss, color=INK, linewidth=1.2, label="training loss", zorder=3)
        if history.test_loss:
            ax.plot(
                history.evaluated, history.test_loss, color=ACCENT, linewidth=1.6, label="test loss", zorder=4
            )
        marks = {"grid_update": ("#999999", ":", "grid update"), "refine": ("#777777", "--", "refinement")}
        ends = {"diverged": "diverged", "interrupted": "interrupted", "early_stop": "early stop"}
        labelled: set[str] = set()
        for event in history.events:
            kind, step = event["kind"], event["step"]
            if kind in marks:
                colour, line, label = marks[kind]
                ax.axvline(step, color=colour, linestyle=line, linewidth=1.0, zorder=1,
                           label=None if kind in labelled else label)  # fmt: skip
                labelled.add(kind)
            if kind == "refine":
                ax.annotate(f"G={event['grid_size']}", (step, 1), xycoords=("data", "axes fraction"),
                            xytext=(3, -2), textcoords="offset points", va="top", fontsize=8)  # fmt: skip
            if kind in ends:
                ax.axvline(event["restored"], color=ALARM, linewidth=1.0, zorder=1, label=ends[kind])
        positive = [v for v in (*history.train_loss, *history.test_loss) if math.isfinite(v)]
        if positive and min(positive) > 0:
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.grid(axis="y", color="#eeeeee", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.legend(loc="upper right")
        if title:
            ax.set_title(title, fontsize=11, weight="bold")
    return ax.figure


def plot_front(laws: Sequence[Any], best: Any, *, ax: Any = None) -> Any:
    """Draw formulas by complexity and validation error, and the networks that they were read from.

    Args:
        laws: of a `kan_kernels.symbolic.Discovery`, its `front`. best: the one to mark.
        ax: matplotlib axes to draw in; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> found = symbolic.discover(torch.rand(40), torch.ones(40))
        >>> plot_front(found.front, found.best).axes[0].get_ylabel()
        'validation error'
    """
    matplotlib()
    with style():
        if ax is None:
            figure = new_figure(7.0, 4.0, layout="constrained")
            ax = figure.subplots()
        places = [law.complexity for law in laws]
        losses = [best.loss, *(n for law in laws for n in (law.loss, law.network) if n is not None)]
        least = 1e-17 if min(losses) >= 0 else -math.inf  # a likelihood may be below 0: no logarithms then
        errors = [max(law.loss, least) for law in laws]
        read = [(law.complexity, law.network) for law in laws if law.network is not None]
        ax.step(places, errors, where="post", color=FAINT, linewidth=1.2, zorder=1)
        if read:
            ax.scatter(*zip(*read, strict=True), marker="_", color=INK, label="its network", zorder=2)
        for worse, colour, label in ((False, FORMULA, "formula"), (True, ALARM, "worse than its network")):
            chosen = [n for n, law in enumerate(laws) if law.worse_than_network is worse]
            if chosen:
                x, y = [places[n] for n in chosen], [errors[n] for n in chosen]
                ax.scatter(x, y, s=22, color=colour, label=label, zorder=3)
        ax.scatter([best.complexity], [max(best.loss, least)], s=90, facecolors="none", edgecolors=ACCENT,
                   linewidths=1.6, label="best", zorder=4)  # fmt: skip
        ax.set_yscale("log" if least > 0 else "linear")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("complexity")
        ax.set_ylabel("validation error")
        ax.grid(axis="y", color="#eeeeee", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.legend(loc="upper right")
    return ax.figure
