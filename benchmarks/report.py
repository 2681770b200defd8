"""Tables of a result document: rich on the terminal, Markdown for files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tools.extras import require

from .document import MODE_NAMES, Table, milliseconds, size, times
from .workloads import TRAIN

_STYLES = {"ours": "bold cyan", "mlp": "white", "unfused": "yellow", "peer": "magenta"}


def _time(cell: dict[str, Any] | None, spread: bool = False) -> str:
    if cell is None or "median_ms" not in cell:
        return "-"
    text = milliseconds(cell["median_ms"])
    if spread and cell["samples"] > 1:
        text += f" [{milliseconds(cell['p10_ms'])}..{milliseconds(cell['p90_ms'])}]"
    if cell["samples"] == 1:
        text += " (one run)"
    return text + ("*" if cell["status"] == "inexact" else "")


def _gate(cells: list[dict[str, Any]]) -> str:
    """The worst error over the modes, or what kind of check there was."""
    gates = [c["gate"] for c in cells if "gate" in c]
    if not gates:
        return "-"
    if gates[0]["kind"] == "finite":
        return "finite" if all(g["passed"] for g in gates) else "NaN"
    worst = max((e for g in gates for e in g["errors"].values()), default=float("inf"))
    return f"{'' if all(g['passed'] for g in gates) else 'OFF '}{worst:.0e}"


def _notes(cells: list[dict[str, Any]]) -> str:
    """The reasons of missing or inexact numbers, each once, with the modes they concern."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.get("reason"):
            reasons.setdefault(cell["reason"], []).append(MODE_NAMES[cell["mode"]])
    if len(reasons) == 1 and len(next(iter(reasons.values()))) == len(cells):
        return next(iter(reasons))
    return "; ".join(f"{', '.join(modes)}: {reason}" for reason, modes in reasons.items())


@dataclass(frozen=True)
class Row:
    """One provider on one workload: ``columns`` as in ``headings``, ``note`` says why figures are missing."""

    kind: str
    label: str
    columns: list[str]
    timed: bool
    note: str


def rows(table: Table, workload: str, threads: int) -> list[Row]:
    """Every provider on one workload, in the order of the registry."""
    modes = table.modes(workload, threads)
    result = []
    for key, label in table.providers().items():
        by_mode = {m: table.cell(workload, m, threads, key) for m in modes}
        cells = [c for c in by_mode.values() if c is not None]
        if not cells:
            continue
        train = by_mode.get(TRAIN) or {}
        count = next((c["parameters"] for c in cells if "parameters" in c), None)
        ratio = next((c["parameter_ratio"] for c in cells if "parameter_ratio" in c), None)
        columns = [label, "-" if count is None else f"{count:,} ({ratio:.2f})"]
        columns += [_time(by_mode[m], spread=m == TRAIN) for m in modes]
        columns += [
            times(train[k]) if k in train else "-" for k in ("ratio_same_parameters", "ratio_same_widths")
        ]
        columns += [size(train.get("peak_extra_bytes"))]
        columns += [f"{100 * train['peak_fraction']:.0f}%" if "peak_fraction" in train else "-"]
        timed = any("median_ms" in c for c in cells)
        result.append(Row(cells[0]["kind"], label, [*columns, _gate(cells)], timed, _notes(cells)))
    return result


def notes(lines: list[Row]) -> list[str]:
    """Why figures are missing or marked, one line a reason, the providers it concerns in front."""
    reasons: dict[str, list[str]] = {}
    for row in lines:
        if row.note:
            reasons.setdefault(row.note, []).append(row.label)
    return [f"{'; '.join(labels)}: {note}" for note, labels in reasons.items()]


def headings(table: Table, workload: str, threads: int) -> list[str]:
    return [
        "provider",
        "parameters (of KAN)",
        *(f"{MODE_NAMES[m]}, ms" for m in table.modes(workload, threads)),
        "x MLP params",
        "x MLP widths",
        "peak extra",
        "of FMA peak",
        "worst error",
    ]


FOOTNOTE = (
    "Medians, forward + backward with [p10..p90]; ratios and memory are of forward + backward, ratios below "
    "1 are faster than that MLP. Worst error: against float64, relative to the largest entry (finite: other "
    "mathematics, only checked for NaN). * inexact: misses the gate, timed all the same, a rival's only."
)


def show(table: Table) -> None:
    """Print one rich table for each workload and thread count."""
    rich_table, console = require("rich.table"), require("rich.console").Console()
    escape = require("rich.markup").escape
    if not console.is_terminal:
        console.width = 240
    for threads in table.threads:
        for name, workload in table.workloads.items():
            lines = rows(table, name, threads)
            if not lines:
                continue
            grid = rich_table.Table(
                title=f"{name}: {workload['shape']} k={workload['spline_order']}, {threads} "
                f"thread(s), {workload['kan_parameters']:,} parameters",
                title_justify="left",
                caption=escape("\n".join(notes(lines))),
                caption_justify="left",
            )
            for index, heading in enumerate(headings(table, name, threads)):
                grid.add_column(heading, justify="right" if index else "left", overflow="fold")
            for row in lines:
                if row.timed:
                    grid.add_row(*map(escape, row.columns), style=_STYLES[row.kind])
            console.print(grid)
    console.print(escape(FOOTNOTE), style="dim")
    console.print(f"Rule: {table.meta['mlp_rule']}.", style="dim")
    console.print(f"Memory: {memory_method(table)}.", style="dim")
    console.print(table.machine_line(), style="dim")


def memory_method(table: Table) -> str:
    methods = {r["memory_method"] for r in table.document["results"] if "memory_method" in r}
    return "; ".join(sorted(methods)) or "not measured"


def markdown_table(head: list[str], body: list[list[str]]) -> str:
    def line(columns: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in columns) + " |"

    rule = line([":--" if i == 0 else "--:" for i in range(len(head))])
    return "\n".join([line(head), rule, *(line(row) for row in body)])


def markdown(table: Table) -> str:
    """The whole document as Markdown: every workload, thread count, provider and reason."""
    parts = [
        f"# Benchmark results: {table.document['name']}",
        table.machine_line() + ".",
        f"Command: `{table.document['command']}`. {FOOTNOTE}",
        f"Rule: {table.meta['mlp_rule']}.",
        f"Memory: {memory_method(table)}.",
    ]
    for threads in table.threads:
        for name, workload in table.workloads.items():
            lines = rows(table, name, threads)
            if lines:
                parts.append(f"## {name}: {workload['shape']}, {threads} thread(s)")
                body = [row.columns for row in lines if row.timed]
                parts.append(markdown_table(headings(table, name, threads), body))
                parts += ["\n".join(f"- {note}" for note in notes(lines))] if notes(lines) else []
    return "\n\n".join(parts) + "\n"


def summary(table: Table) -> str:
    """The README's tables: forward + backward of every provider and workload, then our own efficiency."""
    threads = table.threads[0]
    names = [
        n
        for n in table.workloads
        if any(table.cell(n, TRAIN, threads, p) is not None for p in table.providers())
    ]
    head = [
        "forward + backward, ms (x same-parameter MLP)",
        *(
            f"[{','.join(map(str, table.workloads[n]['widths']))}]<br>B={table.workloads[n]['batch']} "
            f"G={table.workloads[n]['grid_size']}"
            for n in names
        ),
    ]
    body = []
    for key, label in table.providers().items():
        cells = [table.cell(n, TRAIN, threads, key) for n in names]
        if not any(c is not None and "median_ms" in c for c in cells):
            continue
        columns = []
        for cell in cells:
            text = _time(cell)
            if cell is not None and "ratio_same_parameters" in cell and key != "mlp-params":
                text += f" ({times(cell['ratio_same_parameters'])})"
            columns.append(text)
        bold = cells[0] is not None and key == "ours"
        body.append(
            [f"**{label}**" if bold else label, *(f"**{c}**" if bold and c != "-" else c for c in columns)]
        )
    parts = [markdown_table(head, body), _own_table(table, names)]
    missing = sorted(
        {
            f"{r['label']} ({r['reason']})"
            for r in table.document["results"]
            if r["status"] == "absent" and "not installed" in r["reason"]
        }
    )
    lines = [
        f"float32, k=3, {threads} thread(s), medians of interleaved runs, each provider checked against "
        "float64 in the same run before it was timed (MLPs and RBF networks are other functions: checked for "
        "NaN only). * misses that check."
    ]
    lines += [f"MLP rule: {table.meta['mlp_rule']}."]
    lines += [f"Absent: {', '.join(missing)}."] if missing else []
    return (
        "\n\n".join([*(p for p in parts if p), " ".join(lines), f"Machine: {table.machine_line()}."]) + "\n"
    )


def _own_table(table: Table, names: list[str]) -> str:
    """Our forward + backward at each thread count: ms, ratio, fraction of peak, memory."""
    body = []
    for threads in table.threads:
        columns = []
        for name in names:
            cell = table.ours(name, TRAIN, threads)
            if cell is None:
                columns.append("-")
                continue
            parts = [
                _time(cell),
                times(cell["ratio_same_parameters"]) if "ratio_same_parameters" in cell else "",
                f"{100 * cell['peak_fraction']:.0f}% of peak" if "peak_fraction" in cell else "",
                size(cell.get("peak_extra_bytes")),
            ]
            columns.append("<br>".join(p for p in parts if p))
        body.append([f"kan_kernels, {threads} thread(s)", *columns])
    head = ["ms, x same-parameter MLP, of measured FMA peak, peak extra memory", *names]
    return markdown_table(head, body) if any(c != "-" for row in body for c in row[1:]) else ""
