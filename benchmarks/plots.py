"""The plots of a result document, with the colours of Okabe and Ito (safe for colour-blind readers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.extras import require

from .document import Table, milliseconds, size, times
from .workloads import TRAIN

COLOURS = {"ours": "#0072B2", "mlp": "#5f5f5f", "unfused": "#E69F00", "peer": "#CC79A7"}
KINDS = {"ours": "kan_kernels", "mlp": "MLPs", "unfused": "plain torch", "peer": "other packages"}
_SHORT = {
    "ours": "kan_kernels",
    "ours-reference": "kan_kernels, reference",
    "mlp-params": "MLP, same parameters",
    "mlp-widths": "MLP, same widths",
    "mlp-x10": "MLP, hidden x10",
    "closed-form": "closed form, eager",
    "closed-form-compiled": "closed form, compiled",
    "textbook": "textbook Cox-de Boor",
}


def make_style() -> Any:
    matplotlib = require("matplotlib")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot")
    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "figure.dpi": 130,
            "hatch.linewidth": 0.6,
        }
    )
    return plt


def _cells(table: Table, workload: str, threads: int) -> list[dict[str, Any]]:
    found = [table.cell(workload, TRAIN, threads, key) for key in table.providers()]
    return [c for c in found if c is not None and "median_ms" in c]


def _panel(
    axes: Any, cells: list[dict[str, Any]], values: list[float], labels: list[str], low: float, unit: str
) -> None:
    """Horizontal bars growing from ``low`` on a log axis in ``unit``, the least on top."""
    order = sorted(range(len(cells)), key=lambda i: -values[i])
    for row, index in enumerate(order):
        cell = cells[index]
        axes.barh(
            row,
            values[index] - low,
            left=low,
            height=0.74,
            color=COLOURS[cell["kind"]],
            hatch="////" if cell["status"] == "inexact" else None,
            edgecolor="white",
            linewidth=0.4,
        )
        note = axes.text(values[index] * 1.06, row, labels[index], va="center", fontsize=7.5, color="#222222")
        note.set_path_effects(
            [require("matplotlib.patheffects").withStroke(linewidth=2.5, foreground="white")]
        )
    axes.set_yticks(range(len(order)), [_SHORT.get(cells[i]["provider"], cells[i]["label"]) for i in order])
    for tick, index in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if cells[index]["provider"] == "ours" else "normal")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(require("matplotlib.ticker").FuncFormatter(lambda v, _: f"{v:g}{unit}"))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(-0.6, len(order) - 0.4)


def make_figure(plt: Any, count: int, rows_in_panel: int) -> tuple[Any, list[Any]]:
    columns = min(2, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(5.9 * columns, (0.235 * rows_in_panel + 0.75) * rows + 0.9),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.axis("off")
    return figure, flat


def draw_legend(figure: Any, plt: Any, kinds: set[str], inexact: bool) -> None:
    patches = [
        plt.Rectangle((0, 0), 1, 1, color=COLOURS[k], label=name) for k, name in KINDS.items() if k in kinds
    ]
    if inexact:
        patches.append(
            plt.Rectangle(
                (0, 0),
                1,
                1,
                facecolor="#bbbbbb",
                hatch="////",
                edgecolor="white",
                label="misses the accuracy check",
            )
        )
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)


def _ratios(table: Table, plt: Any, path: Path, threads: int) -> None:
    names = [
        n for n in table.workloads if any("ratio_same_parameters" in c for c in _cells(table, n, threads))
    ]
    if not names:
        return
    most = max(len(_cells(table, n, threads)) for n in names)
    figure, panels = make_figure(plt, len(names), most)
    everything: list[dict[str, Any]] = []
    for axes, name in zip(panels, names, strict=False):
        cells = [c for c in _cells(table, name, threads) if "ratio_same_parameters" in c]
        everything += cells
        values = [c["ratio_same_parameters"] for c in cells]
        low = min(0.1, 0.6 * min(values))
        _panel(
            axes,
            cells,
            values,
            [f"{times(v)}  ({milliseconds(c['median_ms'])} ms)" for v, c in zip(values, cells, strict=True)],
            low,
            "x",
        )
        axes.set_xlim(low, max(values) * 8)
        axes.axvline(1.0, zorder=0.9, color="#222222", linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set_title(f"{table.workloads[name]['shape']}", loc="left")
    draw_legend(
        figure, plt, {c["kind"] for c in everything}, any(c["status"] == "inexact" for c in everything)
    )
    figure.suptitle(
        "Forward + backward, time relative to the MLP with the same number of parameters "
        f"(left of the dashed line is faster)\n{table.meta['cpu']}, {threads} thread(s), float32, log scale",
        fontsize=10,
    )
    figure.savefig(path)
    plt.close(figure)


def _memory(table: Table, plt: Any, path: Path, threads: int) -> None:
    """Peak extra memory of forward + backward, where anything measurable was needed."""
    wanted = {
        n: [c for c in _cells(table, n, threads) if (c.get("peak_extra_bytes") or 0) > 0]
        for n in table.workloads
    }
    names = [n for n, cells in wanted.items() if cells]
    if not names:
        return
    figure, panels = make_figure(plt, len(names), max(len(wanted[n]) for n in names))
    for axes, name in zip(panels, names, strict=False):
        cells = wanted[name]
        values = [c["peak_extra_bytes"] / 2**20 for c in cells]
        low = 0.5 * min(values)
        _panel(axes, cells, values, [size(c["peak_extra_bytes"]) for c in cells], low, "")
        axes.set_xlim(low, max(values) * 4)
        axes.axvline(
            table.workloads[name]["signal_bytes"] / 2**20,
            color="#222222",
            linewidth=1.0,
            linestyle=(0, (4, 2)),
        )
        axes.set_title(f"{table.workloads[name]['shape']}", loc="left")
    draw_legend(figure, plt, {c["kind"] for n in names for c in wanted[n]}, False)
    figure.suptitle(
        "Peak extra memory of forward + backward in MiB, log scale "
        "(dashed: the bytes of x, y and their gradients)",
        fontsize=10,
    )
    figure.savefig(path)
    plt.close(figure)


def draw(table: Table, result: Path) -> list[Path]:
    """Draw ratios and memory beside ``result``; returns the PNG files written."""
    plt = make_style()
    ratios, memory = (
        result.with_name(f"{result.stem}-ratios.png"),
        result.with_name(f"{result.stem}-memory.png"),
    )
    _ratios(table, plt, ratios, table.threads[0])
    _memory(table, plt, memory, table.threads[0])
    return [path for path in (ratios, memory) if path.exists()]
