"""Bars of the cells of a result document, in the colours of Okabe and Ito (safe for colour-blind readers)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.extras import require

from .document import Table, milliseconds, size, times
from .workloads import TRAIN

COLOURS = {"ours": "#0072B2", "mlp": "#5f5f5f", "unfused": "#E69F00", "peer": "#CC79A7"}
KINDS = {"ours": "kan_kernels", "mlp": "MLPs", "unfused": "plain torch", "peer": "other packages"}
DASHED = {"color": "#222222", "linewidth": 1.0, "linestyle": (0, (4, 2))}


@dataclass
class Panel:
    """``bars``: (cell, value, note). ``mark``: the value of the dashed line."""

    title: str
    bars: list[tuple[dict[str, Any], float, str]]
    mark: float


def draw_panels(panels: list[Panel], title: str, unit: str, path: Path) -> list[Path]:
    """Save horizontal bars on log axes, the least on top, as PNG; [] where there is nothing to draw.

    Needs matplotlib; raises tools.extras.MissingExtra without it.
    """
    matplotlib = require("matplotlib")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot")
    panels = [panel for panel in panels if panel.bars]
    if not panels:
        return []
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = (0.235 * max(len(panel.bars) for panel in panels) + 0.75) * rows + 0.9
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context({"font.size": 9, **spines, "hatch.linewidth": 0.6}):
        figure = plt.figure(figsize=(5.9 * columns, height), dpi=130, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for one, panel in zip(axes, panels, strict=False):
            _draw_panel(one, panel, unit)
        for unused in axes[len(panels) :]:
            unused.axis("off")
        cells = [cell for panel in panels for cell, _, _ in panel.bars]
        patch = matplotlib.patches.Patch
        patches = [patch(color=COLOURS[k], label=KINDS[k]) for k in KINDS if k in {c["kind"] for c in cells}]
        if any(c["status"] == "inexact" for c in cells):
            look = {"facecolor": "#bbbbbb", "hatch": "////", "edgecolor": "white"}
            patches.append(patch(**look, label="misses the accuracy check"))
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(path)
        plt.close(figure)
    return [path]


def _draw_panel(axes: Any, panel: Panel, unit: str) -> None:
    bars = sorted(panel.bars, key=lambda bar: -bar[1])
    values = [value for _, value, _ in bars]
    low = 0.6 * min(*values, panel.mark)
    for row, (cell, value, note) in enumerate(bars):
        hatch = "////" if cell["status"] == "inexact" else None
        look = {"color": COLOURS[cell["kind"]], "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
        axes.barh(row, value - low, left=low, height=0.74, **look)
        axes.text(value * 1.06, row, note, va="center", fontsize=7.5)
    axes.set_yticks(range(len(bars)), [cell["label"] for cell, _, _ in bars])
    axes.set_xscale("log")
    axes.set_xlim(low, max(values) * 10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(panel.mark, zorder=0.9, **DASHED)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")


def draw(table: Table, result: Path) -> list[Path]:
    """Draw ratios and memory beside ``result``; returns the PNG files written."""
    threads = table.threads[0]
    ratios, memory = [], []
    for name, workload in table.workloads.items():
        cells = [c for key in table.providers() if (c := table.timed(name, TRAIN, threads, key))]
        compared = [(c, c["ratio_same_parameters"]) for c in cells if "ratio_same_parameters" in c]
        bars = [(c, ratio, f"{times(ratio)}  ({milliseconds(c['median_ms'])} ms)") for c, ratio in compared]
        ratios.append(Panel(workload["shape"], bars, 1.0))
        peaks = [(c, c["peak_extra_bytes"]) for c in cells if (c.get("peak_extra_bytes") or 0) > 0]
        bars = [(c, peak / 2**20, size(peak)) for c, peak in peaks]
        memory.append(Panel(workload["shape"], bars, workload["signal_bytes"] / 2**20))
    about = f"{table.meta['cpu']}, {threads} thread(s), float32, log scale"
    title = f"Forward + backward, time relative to the MLP with the same number of parameters\n{about}"
    written = draw_panels(ratios, title, "x", result.with_name(f"{result.stem}-ratios.png"))
    title = (
        "Peak extra memory of forward + backward in MiB, log scale "
        "(dashed: the bytes of x, y and their gradients)"
    )
    return written + draw_panels(memory, title, "", result.with_name(f"{result.stem}-memory.png"))
