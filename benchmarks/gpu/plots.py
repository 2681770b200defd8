"""The plots of a GPU report: time relative to the same-parameter MLP, and the roofline."""

from __future__ import annotations

from pathlib import Path

from ..document import milliseconds, times
from ..plots import Panel, draw_panels
from ..workloads import TRAIN
from .table import GpuTable


def draw(table: GpuTable, result: Path) -> list[Path]:
    """Draw beside ``result``; the PNG files written. Needs matplotlib (MissingExtra without it)."""
    ratios, roofline = [], []
    for job in table.jobs:
        cells = [c for key in table.in_job(job) if (c := table.best(job, TRAIN, key))]
        title = f"{job}: {table.document['jobs'][job]['shape']}"
        mlp = table.best(job, TRAIN, "mlp-params")
        bars = []
        for c in cells if mlp is not None else ():
            ratio = c["median_ms"] / mlp["median_ms"]
            bars.append((c, ratio, f"{times(ratio)}  ({milliseconds(c['median_ms'])} ms, {c['execution']})"))
        ratios.append(Panel(title, bars, 1.0))
        fractions = [(c, 100 * c["roofline_fraction"]) for c in cells if "roofline_fraction" in c]
        roofline.append(Panel(title, [(c, v, f"{v:.0f}%, {c['execution']}") for c, v in fractions], 100.0))
    about = f"{table.meta['device']}, torch {table.meta['torch']}, log scale"
    compared = "Forward + backward relative to the MLP with the same number of parameters"
    title = f"{compared}, everyone in the fastest execution\n{about}"
    written = draw_panels(ratios, title, "x", result.with_name(f"{result.stem}-ratios.png"))
    title = f"Of the measured roofline (dense work), forward + backward\n{about}"
    return written + draw_panels(roofline, title, "%", result.with_name(f"{result.stem}-roofline.png"))
