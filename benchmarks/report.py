"""Tables of a result document: Markdown for files, which rich shows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tools.extras import require

from .document import MODE_NAMES, Table, milliseconds, size, times
from .workloads import TRAIN

Cell = dict[str, Any]
RATIOS = ("ratio_same_parameters", "ratio_same_widths")
FOOTNOTE = (
    "Medians, forward + backward with [p10..p90]; ratios and memory are of forward + backward, ratios below "
    "1 are faster than that MLP. Worst error: against float64, relative to the largest entry (finite: other "
    "mathematics, only checked for NaN). * inexact: misses the gate, timed all the same, a rival's only."
)


def time_text(cell: Cell | None, spread: tuple[str, str] | None = None) -> str:
    """Return a cell's median in ms, with these percentiles, or "-"."""
    if cell is None or "median_ms" not in cell:
        return "-"
    text = milliseconds(cell["median_ms"])
    if cell["samples"] == 1:
        text += " (one run)"
    elif spread:
        text += " [{}..{}]".format(*(milliseconds(cell[f"{key}_ms"]) for key in spread))
    return text + ("*" if cell["status"] == "inexact" else "")


def worst_error(cells: Iterable[Cell]) -> str:
    """Return the worst error over the modes, or what kind of check there was."""
    gates = [c["gate"] for c in cells if "gate" in c]
    if not gates:
        return "-"
    passed = all(g["passed"] for g in gates)
    if gates[0]["kind"] == "finite":
        return "finite" if passed else "NaN"
    worst = max((e for g in gates for e in g["errors"].values()), default=float("inf"))
    return f"{'' if passed else 'OFF '}{worst:.0e}"


def ratios(cell: Cell) -> list[str]:
    """Return the ratios to both MLPs."""
    return [times(cell[key]) if key in cell else "-" for key in RATIOS]


def notes(results: list[Cell], detail: Callable[[Cell], str]) -> list[str]:
    """Return why figures are missing or marked, an item a reason, with whom and what it concerns."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for r in results:
        if r.get("reason"):
            where = reasons.setdefault(f"{r['status']}: {r['reason']}", {})
            where.setdefault(r["label"], []).append(detail(r))
    of = Counter(r["label"] for r in results)
    return [
        f"- {reason}: "
        + "; ".join(
            label + ("" if len(d) == of[label] else f" ({', '.join(d)})") for label, d in where.items()
        )
        for reason, where in reasons.items()
    ]


def markdown_table(head: list[str], body: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Return a Markdown table; the columns ``left`` are left-aligned."""

    def line(columns: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in columns) + " |"

    rule = line([":--" if i in left else "--:" for i in range(len(head))])
    return "\n".join([line(head), rule, *(line(row) for row in body)])


def show(text: str) -> None:
    """Print Markdown as a terminal can."""
    console = require("rich.console").Console()
    if not console.is_terminal:
        console.width = 240
    console.print(require("rich.markdown").Markdown(text))


def memory_method(results: list[Cell]) -> str:
    return "; ".join(sorted({r["memory_method"] for r in results if "memory_method" in r})) or "not measured"


def markdown(table: Table) -> str:
    """Return the whole document: every workload, thread count, provider and reason."""
    parts = [
        f"# Benchmark results: {table.document['name']}",
        table.machine_line() + ".",
        f"Command: `{table.document['command']}`. {FOOTNOTE}",
        f"Rule: {table.meta['mlp_rule']}.",
        f"Memory: {memory_method(table.results)}.",
    ]
    for threads in table.threads:
        for name, workload in table.workloads.items():
            modes = table.modes(name, threads)
            if modes:
                parts.append(f"## {name}: {workload['shape']}, {threads} thread(s)")
                parts.append(_workload(table, name, threads, modes))
                here = [r for r in table.results if (r["workload"], r["threads"]) == (name, threads)]
                parts.append("\n".join(notes(here, lambda r: MODE_NAMES[r["mode"]])))
    return "\n\n".join(part for part in parts if part) + "\n"


def _workload(table: Table, name: str, threads: int, modes: list[str]) -> str:
    """Return every provider that was timed, in the order of the registry."""
    head = ["provider", "parameters (of KAN)", *(f"{MODE_NAMES[m]}, ms" for m in modes)]
    head += ["x MLP params", "x MLP widths", "peak extra", "of FMA peak", "worst error"]
    body = []
    for key, label in table.providers().items():
        by_mode = {m: table.cell(name, m, threads, key) for m in modes}
        cells = [c for c in by_mode.values() if c is not None]
        if not any("median_ms" in c for c in cells):
            continue
        train = by_mode.get(TRAIN) or {}
        built = next(c for c in cells if "parameters" in c)
        row = [f"**{label}**" if built["kind"] == "ours" else label]
        row += [f"{built['parameters']:,} ({built['parameter_ratio']:.2f})"]
        row += [time_text(by_mode[m], ("p10", "p90") if m == TRAIN else None) for m in modes]
        row += [*ratios(train), size(train.get("peak_extra_bytes"))]
        row += [f"{100 * train['peak_fraction']:.0f}%" if "peak_fraction" in train else "-"]
        body.append([*row, worst_error(cells)])
    return markdown_table(head, body) if body else ""


def summary(table: Table) -> str:
    """The tables of docs/benchmarks.md: forward + backward of everybody, then our own efficiency."""
    threads = table.threads[0]
    names = [n for n in table.workloads if TRAIN in table.modes(n, threads)]
    shapes = [table.workloads[n]["shape"].replace(" ", "<br>", 1) for n in names]
    head = ["forward + backward, ms (x same-parameter MLP)", *shapes]
    body = []
    for key, label in table.providers().items():
        cells = [table.cell(n, TRAIN, threads, key) for n in names]
        if not any(c is not None and "median_ms" in c for c in cells):
            continue
        columns = []
        for cell in cells:
            text = time_text(cell)
            if cell is not None and "ratio_same_parameters" in cell and key != "mlp-params":
                text += f" ({times(cell['ratio_same_parameters'])})"
            columns.append(text)
        if key == "ours":
            label, *columns = (c if c == "-" else f"**{c}**" for c in (label, *columns))
        body.append([label, *columns])
    parts = [markdown_table(head, body), _own_table(table, names)]
    absent = [r for r in table.results if r["status"] == "absent" and "not installed" in r["reason"]]
    missing = sorted({f"{r['label']} ({r['reason']})" for r in absent})
    lines = [
        f"float32, k=3, {threads} thread(s), medians of interleaved runs, each provider checked against "
        "float64 in the same run before it was timed (MLPs and RBF networks are other functions: checked for "
        "NaN only). * misses that check."
    ]
    lines += [f"MLP rule: {table.meta['mlp_rule']}."]
    lines += [f"Absent: {', '.join(missing)}."] if missing else []
    parts += [" ".join(lines), f"Machine: {table.machine_line()}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _own_table(table: Table, names: list[str]) -> str:
    """Our forward + backward at each thread count: ms, ratio, fraction of peak, memory."""
    body = []
    for threads in table.threads:
        columns = []
        for cell in (table.ours(name, TRAIN, threads) for name in names):
            parts = [time_text(cell)]
            if cell is not None:
                parts += [times(cell[RATIOS[0]])] if RATIOS[0] in cell else []
                parts += [f"{100 * cell['peak_fraction']:.0f}% of peak"] if "peak_fraction" in cell else []
                parts += [size(cell.get("peak_extra_bytes"))]
            columns.append("<br>".join(parts))
        body.append([f"kan_kernels, {threads} thread(s)", *columns])
    head = ["ms, x same-parameter MLP, of measured FMA peak, peak extra memory", *names]
    return markdown_table(head, body) if any(c != "-" for row in body for c in row[1:]) else ""
