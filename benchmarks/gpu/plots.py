"""The plots of a GPU report: time relative to the same-parameter MLP, and the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..document import milliseconds, times
from ..plots import COLOURS, draw_legend, make_figure, make_style
from ..workloads import TRAIN
from .plan import EXECUTIONS
from .table import GpuTable


def draw(table: GpuTable, result: Path) -> list[Path]:
    """Draw beside ``result``; the PNG files written. Needs matplotlib (extras.MissingExtra without it)."""
    plt = make_style()
    ratios = result.with_name(f"{result.stem}-ratios.png")
    roofline = result.with_name(f"{result.stem}-roofline.png")
    return [path for path in (_ratios(table, plt, ratios), _roofline(table, plt, roofline)) if path]


def _bests(table: GpuTable, job: str) -> list[dict[str, Any]]:
    """Each provider's fastest execution, the slowest provider first."""
    cells = [table.best(job, TRAIN, provider) for provider in table.providers(job)]
    return sorted((c for c in cells if c is not None), key=lambda c: -float(c["median_ms"]))


def _ratios(table: GpuTable, plt: Any, path: Path) -> Path | None:
    jobs = [job for job in table.jobs if table.best(job, TRAIN, "mlp-params") is not None]
    if not jobs:
        return None
    figure, panels = make_figure(plt, len(jobs), max(len(_bests(table, job)) for job in jobs))
    kinds = set()
    for axes, job in zip(panels, jobs, strict=False):
        cells = _bests(table, job)
        mlp = table.best(job, TRAIN, "mlp-params")
        assert mlp is not None
        values = [c["median_ms"] / mlp["median_ms"] for c in cells]
        low = min(0.1, 0.6 * min(values))
        kinds |= {c["kind"] for c in cells}
        for row, (cell, value) in enumerate(zip(cells, values, strict=True)):
            axes.barh(row, value - low, left=low, height=0.74, color=COLOURS[cell["kind"]])
            note = f"{times(value)}  ({milliseconds(cell['median_ms'])} ms, {cell['execution']})"
            axes.text(value * 1.06, row, note, va="center", fontsize=7)
        axes.set_yticks(range(len(cells)), [c["label"] for c in cells])
        axes.set_xscale("log")
        axes.set_xlim(low, max(values) * 30)
        axes.axvline(1.0, color="#222222", linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set_title(f"{job}: {table.document['jobs'][job]['shape']}", loc="left")
    draw_legend(figure, plt, kinds, False)
    figure.suptitle(
        "Forward + backward relative to the MLP with the same number of parameters, everyone in the fastest "
        f"execution\n{table.meta['device']}, torch {table.meta['torch']}, log scale",
        fontsize=10,
    )
    figure.savefig(path)
    plt.close(figure)
    return path


def _roofline(table: GpuTable, plt: Any, path: Path) -> Path | None:
    """The fraction of the roofline that our backends reach in each job."""
    bars: dict[str, dict[str, float]] = {}
    for job in table.jobs:
        for provider in table.providers(job):
            cell = table.best(job, TRAIN, provider, EXECUTIONS)
            if cell is not None and cell["kind"] == "ours" and "roofline_fraction" in cell:
                bars.setdefault(provider.removeprefix("ours-"), {})[job] = 100 * cell["roofline_fraction"]
    if not bars:
        return None
    jobs = [job for job in table.jobs if any(job in values for values in bars.values())]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(jobs) + 1.6), layout="constrained")
    height = 0.8 / len(bars)
    shades = ["#0072B2", "#56B4E9", "#009E73", "#999999"]
    for n, (name, values) in enumerate(bars.items()):
        places = [row + n * height for row, job in enumerate(jobs) if job in values]
        axes.barh(
            places,
            [values[job] for job in jobs if job in values],
            height=0.9 * height,
            color=shades[n % len(shades)],
            label=name,
        )
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(jobs))], jobs)
    axes.invert_yaxis()
    axes.axvline(100, color="#222222", linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set_xlabel("% of the measured roofline (dense work), forward + backward")
    axes.set_title(f"{table.meta['device']}, torch {table.meta['torch']}", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return path
