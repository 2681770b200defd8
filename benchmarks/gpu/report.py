"""The GPU report as Markdown."""

from __future__ import annotations

from typing import Any

from ..document import milliseconds, size, times
from ..orchestrate import RULE
from ..report import markdown_table
from ..workloads import FORWARD, TRAIN
from .plan import PRECISIONS
from .table import GpuTable
from .targets import check

FOOTNOTE = (
    "Medians in ms with [quartiles] of interleaved runs, launches included, caches warm. Ratios compare the "
    "same execution of the same job, below 1 is faster than that MLP. Every figure passed a comparison of "
    "outputs and gradients with the float64 reference in the same process (MLPs are other functions: checked "
    "for NaN only). Roofline: the larger of dense work over the measured matrix rate and least traffic over "
    "the measured copy bandwidth, over the time; sparse kernels may exceed 100%."
)


def markdown(table: GpuTable, plots: list[str], no_plots: str | None) -> str:
    """The whole document: machine, targets, stages, tests, sanitizer, every job and every missing figure.

    plots: file names beside the report. no_plots: why there are none, or None.
    """
    parts = [f"# GPU report: {table.meta['device']}", machine_line(table) + "."]
    if not table.document["is_gpu"]:
        parts.append("**No GPU was used: this exercises the report's code and says nothing about speed.**")
    parts += ["## Targets", _targets(table), "## What ran", _stages(table.document)]
    parts += _tests(table.document)
    parts += _cost_model(table.document)
    parts += _peaks(table)
    parts += [f"## Timings\n\n{FOOTNOTE}", f"Rule: {RULE}. {_memory_method(table)}"]
    for job in table.jobs:
        parts += _job(table, job)
    parts += [f"No plots: {no_plots}."] if no_plots else [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def machine_line(table: GpuTable) -> str:
    """Card, clocks and versions in one line."""
    m = table.meta
    parts = [m["device"]]
    if "capability" in m:
        parts.append(
            f"compute capability {m['capability']}, {m['multiprocessors']} multiprocessors, "
            f"{m['memory_bytes'] / 2**30:.0f} GiB"
        )
    smi = m.get("nvidia_smi")
    if smi:
        parts.append(
            f"driver {smi['driver_version']}, SM clock at most {smi['clocks.max.sm']}, "
            f"power limit {smi['power.limit']}"
        )
    runtime = f"CUDA {m['cuda']}" if m["cuda"] else f"ROCm {m['hip']}" if m["hip"] else "no CUDA"
    parts.append(
        f"torch {m['torch']} ({runtime}), Triton {m['triton'] or 'not installed'}, Python {m['python']}"
    )
    parts.append(f"kan_kernels {m['kan_kernels'] or 'not importable'}")
    parts.append(f"{m['cpu']}, {m['system']}; {m['date']}; {m.get('seconds', 0):.0f} s in all")
    return "; ".join(parts)


def _targets(table: GpuTable) -> str:
    return "\n".join(f"- {outcome.line()}" for outcome in check(table))


def _stages(document: dict[str, Any]) -> str:
    body = [
        [s["name"], s["status"], f"{s['seconds']:.0f} of {s['limit']:.0f}", s["note"] or ""]
        for s in document["stages"]
    ]
    lines = [markdown_table(["stage", "outcome", "seconds", "note"], body)]
    cut = [f"{s['name']}: {what}" for s in document["stages"] for what in s["cut"]]
    if cut:
        lines.append("Cut for time:\n" + "\n".join(f"- {line}" for line in cut))
    faults = [f"{s['name']}: {what}" for s in document["stages"] for what in s["faults"]]
    if faults:
        lines.append("Went wrong:\n" + "\n".join(f"- {line}" for line in faults))
    backends = document.get("probe", {}).get("backends", {})
    if backends:
        said = [f"- {name}: {reason or 'runs'}" for name, reason in backends.items()]
        lines.append("Backends on this device:\n" + "\n".join(said))
    return "\n\n".join(lines)


def _tests(document: dict[str, Any]) -> list[str]:
    parts = []
    for title, s in document.get("tests", {}).items():
        counts = ", ".join(f"{s[key]} {key}" for key in ("passed", "failed", "crashed", "skipped", "not_run"))
        lines = [f"## Tests: {title}", f"{', '.join(s['files'])} on {', '.join(s['backends'])}: {counts}."]
        listed = [f"- FAILED `{f['id']}`: {f['reason']}" for f in s["failures"]]
        listed += [f"- problem: {problem}" for problem in s["problems"]]
        listed += [f"- skipped ({count}): {reason}" for reason, count in s["skips"].items()]
        parts.append("\n\n".join([*lines, *(["\n".join(listed)] if listed else [])]))
    sanitizer = document.get("sanitizer")
    if sanitizer:
        lines = [f"- {tool}: {s['status']}; {s['summary']}" for tool, s in sanitizer.items()]
        parts.append("## compute-sanitizer\n\n" + "\n".join(lines))
    return parts


def _cost_model(document: dict[str, Any]) -> list[str]:
    found = document.get("cost_model")
    if not found or not found["rows"]:
        return []
    body = [
        [
            row["layer"], row["backend"], row["path"],
            milliseconds(1e3 * row["seconds"]), f"{row['cycles']:.4f}",
            "-" if row["counted"] is None else f"{row['counted']:.4f}",
            "-" if row["counted"] is None else times(row["cycles"] / row["counted"]),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    columns = ["layer", "backend", "path", "forward, ms", "cycles an edge", "counted", "measured / counted"]
    lines = [
        f"- {name}: {times(f['median'])} ({times(f['least'])} to {times(f['most'])} over {f['of']} layers)"
        for name, f in found["factors"].items()
    ]
    lines += [
        f"- {w['layer']}: {w['chosen']}, counted cheapest, takes {times(w['loss'])} the time of {w['best']}"
        for w in found["wrong"]
    ]
    return ["## Cost model: measured over counted", "\n".join(lines), markdown_table(columns, body)]


def _peaks(table: GpuTable) -> list[str]:
    peaks = table.document.get("peaks")
    if not peaks:
        return []
    n = peaks["matrix_size"]
    rates = [f"{name} {1e-12 * flops:.3g} TFLOP/s" for name, flops in peaks["matrix_flops"].items()]
    bandwidth = f"copy {1e-9 * peaks['copy_bytes_per_s']:.4g} GB/s read and written"
    return ["## Measured peaks", f"torch.mm {n}x{n}x{n}: {', '.join(rates)}; {bandwidth}."]


def _memory_method(table: GpuTable) -> str:
    methods = sorted({r["memory_method"] for r in table.results if "memory_method" in r})
    return f"Memory: {'; '.join(methods) or 'not measured'}."


def _job(table: GpuTable, job: str) -> list[str]:
    about = table.document["jobs"][job]
    precision = PRECISIONS[job.split("/")[1]]
    mlp = ",".join(map(str, about["mlp_same_parameter_widths"]))
    head = f"### {job}: {about['shape']} k={about['spline_order']}"
    chosen = table.document.get("automatic", {}).get(job)
    facts = [
        f"{str(precision.dtype).removeprefix('torch.')}, TF32 {'on' if precision.tf32 else 'off'}, "
        f"gate {table.document['gates'].get(job, precision.tolerance):.0e}",
        f"{about['kan_parameters']:,} parameters, MLP [{mlp}]",
        f"automatic choice by layer: {', '.join(chosen)}" if chosen else "",
        _clocks(table, job),
    ]
    body = [
        row
        for provider in table.providers(job)
        for row in _rows(table, job, provider)
    ]  # fmt: skip
    columns = ["provider", "execution", "forward+backward", "forward", "x MLP params", "x MLP widths"]
    columns += ["of roofline", "peak extra", "worst error"]
    parts = [head, "; ".join(fact for fact in facts if fact) + "."]
    if body:
        parts.append(markdown_table(columns, body))
    notes = _notes([r for r in table.results if r["job"] == job])
    return parts + (["\n".join(f"- {note}" for note in notes)] if notes else [])


def _clocks(table: GpuTable, job: str) -> str:
    seen = [r["clocks"] for r in table.results if r["job"] == job and r.get("clocks")]
    return f"clocks after timing: SM {seen[0]['clocks.sm']}, memory {seen[0]['clocks.mem']}" if seen else ""


def _rows(table: GpuTable, job: str, provider: str) -> list[list[str]]:
    """One line for each execution of the provider that has any time."""
    rows = []
    executions = dict.fromkeys(
        r["execution"] for r in table.results if r["job"] == job and r["provider"] == provider
    )
    for execution in executions:
        train, forward = (table.timed(job, mode, provider, execution) for mode in (TRAIN, FORWARD))
        cell = train or forward
        if cell is None:
            continue
        part = cell.get("roofline_fraction")
        rows.append(
            [
                cell["label"],
                execution,
                _time(train),
                _time(forward),
                *(
                    times(cell[k]) if k in cell else "-"
                    for k in ("ratio_same_parameters", "ratio_same_widths")
                ),
                "-" if part is None else f"{100 * part:.0f}% ({cell['roofline_bound']})",
                size(cell.get("peak_extra_bytes")),
                _error([c for c in (train, forward) if c is not None]),
            ]
        )
    return rows


def _time(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    text = milliseconds(cell["median_ms"])
    if cell["samples"] == 1:
        return f"{text} (one run)"
    return f"{text} [{milliseconds(cell['p25_ms'])}..{milliseconds(cell['p75_ms'])}]"


def _error(cells: list[dict[str, Any]]) -> str:
    gates = [c["gate"] for c in cells if "gate" in c]
    errors = [error for gate in gates for error in gate["errors"].values()]
    return f"{max(errors):.0e}" if errors else "finite"


def _notes(results: list[dict[str, Any]]) -> list[str]:
    """Why figures are missing, one line a reason."""
    reasons: dict[str, dict[str, None]] = {}
    for r in results:
        if r.get("reason"):
            where = f"{r['label']}, {r['execution']}, {r['mode']}"
            reasons.setdefault(f"{r['status']}: {r['reason']}", {})[where] = None
    lines = []
    for reason, where in reasons.items():
        places = list(where)
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        lines.append(f"{reason} ({'; '.join(places[:3])}{more})")
    return lines
