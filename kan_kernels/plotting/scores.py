"""Scores as bars: which inputs, or which nodes of a row, matter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from ..attribution import edge_scores
from ..composition import layers_of
from ..inspection import edge_deviations
from .style import ACCENT, INK, matplotlib, new_figure, style


def plot_scores(
    scores: Tensor,
    names: Sequence[str] | None = None,
    *,
    threshold: float | None = None,
    sort: bool = True,
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw scores as bars, the largest on top.

    Args:
        scores: (n,) finite, such as `pruning.input_scores` or a row of `pruning.node_scores`.
        names: one for each; their numbers by default.
        threshold: drawn as a line; bars up to it are grey.
        sort: whether the largest comes first; else the first.
        title: above the picture.
        ax: matplotlib axes to draw in; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        TypeError, ValueError: naming the argument.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> figure = plot_scores(torch.tensor([0.1, 0.9]), ["mass", "speed"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['mass', 'speed']
    """
    checks.tensor("scores", scores, 1)
    if len(scores) == 0 or not scores.isfinite().all():
        raise ValueError(f"scores: got shape {tuple(scores.shape)}, expected at least one, all finite")
    sort = checks.boolean("sort", sort)
    count = len(scores)
    called = [str(n) for n in range(count)] if names is None else checks.names("names", names, count, "score")
    limit = None if threshold is None else checks.nonnegative("threshold", threshold)
    scores = scores.detach().double().cpu()
    order = scores.argsort(stable=True) if sort else torch.arange(count - 1, -1, -1)
    values = scores[order].tolist()
    matplotlib()
    with style():
        if ax is None:
            longest = max(len(name) for name in called)
            figure = new_figure(4.5 + 0.06 * longest, 0.8 + 0.24 * count, layout="constrained")
            ax = figure.subplots()
        colours = ["#999999" if limit is not None and value <= limit else ACCENT for value in values]
        ax.barh(range(count), values, color=colours, height=0.7)
        ax.set_yticks(range(count), [called[n] for n in order.tolist()])
        ax.tick_params(axis="y", length=0)
        if limit is not None:
            ax.axvline(limit, color=INK, linewidth=0.8, linestyle="--", zorder=0)
        for place, value in enumerate(values):
            ax.annotate(f"{value:.2g}", (max(value, 0.0), place), xytext=(3, 0), va="center",
                        textcoords="offset points", fontsize=8)  # fmt: skip
        ax.margins(x=0.12)
        ax.set_ylim(-0.6, count - 0.4)
        ax.set_xlabel("score")
        if title:
            ax.set_title(title, fontsize=11, weight="bold")
    return ax.figure


METRICS = {"l1": "mean magnitude", "std": "standard deviation", "attribution": "attribution score"}


def edge_metric(model: nn.Module, values: list[Tensor] | None, metric: str) -> Sequence[Tensor | None]:
    """Return what opacity shows of every layer's edges, where it is not their magnitudes."""
    layers = layers_of(model)
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, expected 'l1', 'std' or 'attribution'")
    if metric == "l1":
        return [None] * len(layers)
    if values is None:
        raise ValueError(f"x: got None, expected data for metric={metric!r}")
    if metric == "attribution":
        return edge_scores(model, values[0], kind="attribution")
    return [edge_deviations(layer, x) for layer, x in zip(layers, values[:-1], strict=True)]
