"""The table of a science result, in Markdown, between markers in docs/training.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..document import size, times
from ..report import markdown_table
from .contests import SAME_R2, contests

PAGE = Path(__file__).absolute().parents[2] / "docs" / "training.md"


def markdown(document: dict[str, Any]) -> str:
    """Return one row a contest, what was compared below it, and the machine."""
    meta, results = document["meta"], document["results"]
    version = meta["providers"].get("pykan", "")
    head = ["work", "kan_kernels", f"pykan {version}", "times faster", "aim", "peak memory", "the same?"]
    loads = [value for row in results for value in row["load"] if value is not None]
    load = (
        f"{min(loads):.1f} to {max(loads):.1f} on {meta['threads_available']} cores" if loads else "unknown"
    )
    there = {row["key"] for row in results}
    missing = [] if meta.get("quick") else [key for key in contests(False) if key not in there]
    command = f"python -m benchmarks science --workloads {','.join(missing)}"
    parts = [
        markdown_table(head, [_row(row) for row in results], (0, 6)),
        "float64, one thread, medians of interleaved runs from the same network (how many in brackets), load "
        f"average {load}. Peak memory: what a call needs beyond models and data, ours and then pykan's.",
        f"Not measured yet: {', '.join(missing)} (`{command}`)." if missing else "",
        f"Machine: {meta['cpu']}, torch {meta['torch']}, kan_kernels ISA {meta['isa_kan_kernels']}, "
        f"Python {meta['python']}; {', '.join(sorted({row['date'] for row in results}))}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _row(row: dict[str, Any]) -> list[str]:
    aim = f"{row['wanted']:g}x"
    if "times_faster" not in row:
        return [row["what"], "-", "-", "-", aim, "-", f"no: {row['reason']}"]
    peaks = " and ".join(size(value) for value in row["peak_extra_bytes"])
    same = _same(row) if row["status"] == "ok" else f"no: {row['reason']}"
    timed = [_seconds(row["ours"]), _seconds(row["theirs"]), f"**{times(row['times_faster'])}**"]
    return [row["what"], *timed, aim, peaks, same]


def _seconds(cell: dict[str, Any]) -> str:
    seconds = cell["median_ms"] / 1e3
    return f"{seconds:.3g} s ({cell['samples']})"


def _same(row: dict[str, Any]) -> str:
    if "rmse" in row:
        (a, b), (n, m) = row["rmse"], row["evaluations"]
        return f"RMSE {a:.6g} and {b:.6g} after {n} and {m} evaluations"
    if "change" in row:
        a, b = row["change"]
        return f"outputs moved by {a:.1e} and {b:.1e} of their size"
    edges = row["edges"]
    least = min(edges, key=lambda e: e["ours"]["r2"] - e["theirs"]["r2"])
    text = (
        f"best r2 at least pykan's less {SAME_R2:.0e} on all {len(edges)} edges (smallest lead "
        f"{least['ours']['r2'] - least['theirs']['r2']:.1e}); single functions: pykan's r2 is higher in "
        f"{row['fits_better_with_pykan']} of {row['fits']} fits"
    )
    cancel = row.get("fits_that_cancel")  # results from before they were judged have none
    if cancel:
        text += f"; {cancel} of pykan's are large terms that cancel, judged as `symbolic` judges its own"
    return text
