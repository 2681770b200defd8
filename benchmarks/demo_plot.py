"""The picture of the demo: what the small KAN learnt on every edge, how well, and at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tools.extras import require

from .demo_tasks import DEEP_NAME, KAN_NAME, MLP_NAME, Result, toy_function
from .document import milliseconds, times

COLOURS = {KAN_NAME: "#0072B2", MLP_NAME: "#5f5f5f", DEEP_NAME: "#E69F00"}
INK, FAINT = "#222222", "#dddddd"


STYLE = {
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
}


def _maps(figure: Any, panels: list[Any], toy: list[Result]) -> None:
    """The fitted surface of the KAN, then the error of the KAN and of the best MLP on one colour scale."""
    side = torch.linspace(-0.999, 0.999, 161)
    grid = torch.cartesian_prod(side, side)
    kan = next(r for r in toy if r.candidate.name == KAN_NAME)
    rival = min((r for r in toy if r is not kan), key=lambda r: r.mean)
    truth = toy_function(grid).reshape(161, 161).T
    fits = {}
    with torch.no_grad():
        for r in (kan, rival):
            fits[r.candidate.name] = r.best.model(grid).reshape(161, 161).T
    look: dict[str, Any] = {"origin": "lower", "extent": (-1.0, 1.0, -1.0, 1.0), "aspect": "equal"}
    bar: dict[str, Any] = {"orientation": "horizontal", "shrink": 0.85, "pad": 0.03}
    surface = panels[0].imshow(fits[KAN_NAME], cmap="cividis", **look)
    panels[0].contour(side, side, truth, levels=8, colors="white", linewidths=0.6, alpha=0.8)
    panels[0].set_title("KAN's fit (lines: truth)")
    figure.colorbar(surface, ax=panels[0], aspect=24, **bar)
    errors = {name: (fit - truth).abs().clamp_min(1e-5) for name, fit in fits.items()}
    colours = require("matplotlib.colors").LogNorm(1e-4, max(float(e.max()) for e in errors.values()))
    for axes, r in ((panels[1], kan), (panels[2], rival)):
        image = axes.imshow(errors[r.candidate.name], cmap="magma", norm=colours, **look)
        axes.set_title(f"|error|, {r.candidate.name}\nRMSE {r.best.scores[-1]:.1e}")
    figure.colorbar(image, ax=panels[1:], aspect=48, **bar)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)


def _curves(axes: Any, group: list[Result]) -> None:
    """Test score against seconds of training: every seed thin, labels where the curves end."""
    classify = group[0].task.classify
    for r in group:
        colour = COLOURS[r.candidate.name]
        for run in r.runs:
            values = [max(100 - s, 0.1) for s in run.scores] if classify else run.scores
            width, alpha = (2.2, 1.0) if run is r.best else (0.9, 0.4)
            axes.plot(run.seconds, values, color=colour, linewidth=width, alpha=alpha)
        axes.plot([], [], color=colour, linewidth=2.2, label=r.candidate.text)
    axes.set_yscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test error, %" if classify else "test RMSE")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    if classify:
        ticker = require("matplotlib.ticker")
        axes.yaxis.set_major_locator(ticker.FixedLocator([1, 2, 3, 5, 10, 20, 50, 90]))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    seeds = len(group[0].runs)
    best = f"bold: the best of {seeds} seeds" if seeds > 1 else None
    axes.legend(frameon=False, fontsize=9.5, title=best, title_fontsize=9.5, alignment="left")
    axes.set_title(f"{group[0].task.name}: error against time", fontsize=11)


def _bars(axes: Any, results: list[Result]) -> None:
    """Time of a training step relative to the same-parameter MLP, with the 10th to 90th percentile."""
    base = {r.task.name: r.step_ms for r in results if r.candidate.name == MLP_NAME}
    place, ticks = 0.0, []
    for index, r in enumerate(results):
        if index and results[index - 1].task is not r.task:
            place -= 0.6
        unit = base[r.task.name]
        value, low, high = (r.step[f"{key}_ms"] / unit for key in ("median", "p10", "p90"))
        axes.barh(place, value, color=COLOURS[r.candidate.name], height=0.72)
        axes.plot([low, high], [place, place], color=INK, linewidth=1.0)
        label = f"{times(value)}  ({milliseconds(r.step_ms)} ms)"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # over the line of the MLP
        axes.text(max(value, high) + 0.03, place, label, va="center", fontsize=9.5, bbox=paper)
        ticks.append((place, f"{r.task.name}\n{r.candidate.text}"))
        place -= 1.0
    axes.axvline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1.5)
    axes.set_yticks([t[0] for t in ticks], [t[1] for t in ticks], fontsize=9)
    axes.tick_params(axis="y", length=0)
    largest = max(max(r.step_ms, r.step["p90_ms"]) / base[r.task.name] for r in results)
    axes.set_xlim(0, largest * 1.45)
    axes.set_xlabel("time of a training step / that of the MLP")
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title("One training step")


def draw(results: list[Result], path: Path, subtitle: str) -> Path:
    """Save the picture as PNG and return its path; folders are made."""
    from kan_kernels.plotting import plot

    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    plt.rcParams.update(STYLE)
    toy = [r for r in results if not r.task.classify]
    digits = [r for r in results if r.task.classify]
    kan = next(r for r in toy if r.candidate.name == KAN_NAME)
    figure = plt.figure(figsize=(17, 10), dpi=130, layout="constrained")
    title = "kan_kernels: KANs beside MLPs with the same number of parameters"
    figure.suptitle(title, fontsize=15, weight="bold")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.12, 1.0), hspace=0.03)
    left, right = upper.subfigures(1, 2, width_ratios=(0.86, 1.14))
    learnt = "What the KAN learnt for exp(sin(πx)+y²): one function on every edge"
    plot(kan.best.model, kan.task.split.x, inputs=["x", "y"], outputs=["f"], title=learnt, ax=left.subplots())
    _maps(right, list(right.subplots(1, 3)), toy)
    panels = lower.subplots(1, 3)
    _curves(panels[0], toy)
    _curves(panels[1], digits)
    _bars(panels[2], results)
    lower.supxlabel(subtitle, fontsize=9, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    image = require("PIL.Image")  # matplotlib has it; 256 colours are a third of the bytes
    image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    return path
