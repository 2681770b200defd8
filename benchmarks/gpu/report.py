"""The GPU report as Markdown."""

from __future__ import annotations

from typing import Any

from ..document import milliseconds, size, times
from ..orchestrate import RULE
from ..report import markdown_table, memory_method, notes, ratios, time_text, worst_error
from ..workloads import FORWARD, TRAIN
from .plan import EXECUTIONS, PRECISIONS
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
    parts += [
        *_listed("## Targets\n", [outcome.line() for outcome in check(table)]),
        "## What ran",
        _stages(table.document),
    ]
    parts += _tests(table.document)
    parts += _cost_model(table.document)
    parts += _peaks(table)
    parts += [f"## Timings\n\n{FOOTNOTE}", f"Rule: {RULE}. Memory: {memory_method(table.results)}."]
    for job in table.jobs:
        parts += _job(table, job)
    parts += [f"No plots: {no_plots}."] if no_plots else [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def machine_line(table: GpuTable) -> str:
    """Card, clocks and versions in one line."""
    m = table.meta
    parts = [m["device"]]
    if "capability" in m:
        size = f"{m['memory_bytes'] / 2**30:.0f} GiB"
        parts += [f"compute capability {m['capability']}, {m['multiprocessors']} multiprocessors, {size}"]
    smi = m.get("nvidia_smi")
    if smi:
        parts += [f"driver {smi['driver_version']}, SM clock at most {smi['clocks.max.sm']}"]
        parts[-1] += f", power limit {smi['power.limit']}"
    runtime = f"CUDA {m['cuda']}" if m["cuda"] else f"ROCm {m['hip']}" if m["hip"] else "no CUDA"
    triton = f"Triton {m['triton'] or 'not installed'}, Python {m['python']}"
    parts += [f"torch {m['torch']} ({runtime}), {triton}"]
    parts += [
        f"kan_kernels {m['kan_kernels'] or 'not importable'}",
        f"{m['cpu']}, {m['system']}; {m['date']}",
    ]
    return "; ".join([*parts, f"{m.get('seconds', 0):.0f} s in all"])


def _listed(title: str, lines: list[str]) -> list[str]:
    """Return the paragraph of a list, none where it is empty."""
    return [f"{title}\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def _stages(document: dict[str, Any]) -> str:
    stages = document["stages"]
    body = [
        [s["name"], s["status"], f"{s['seconds']:.0f} of {s['limit']:.0f}", s["note"] or ""] for s in stages
    ]
    parts = [markdown_table(["stage", "outcome", "seconds", "note"], body)]
    for title, key in (("Cut for time:", "cut"), ("Went wrong:", "faults")):
        parts += _listed(title, [f"{s['name']}: {what}" for s in stages for what in s[key]])
    backends = document.get("probe", {}).get("backends", {})
    said = [f"{name}: {reason or 'runs'}" for name, reason in backends.items()]
    return "\n\n".join(parts + _listed("Backends on this device:", said))


def _tests(document: dict[str, Any]) -> list[str]:
    parts = []
    for title, s in document.get("tests", {}).items():
        counts = ", ".join(f"{s[key]} {key}" for key in ("passed", "failed", "crashed", "skipped", "not_run"))
        lines = [f"## Tests: {title}", f"{', '.join(s['files'])} on {', '.join(s['backends'])}: {counts}."]
        listed = [f"FAILED `{f['id']}`: {f['reason']}" for f in s["failures"]]
        listed += [f"problem: {problem}" for problem in s["problems"]]
        listed += [f"skipped ({count}): {reason}" for reason, count in s["skips"].items()]
        parts += [*lines, *_listed("", listed)]
    sanitizer = document.get("sanitizer", {})
    said = [f"{tool}: {s['status']}; {s['summary']}" for tool, s in sanitizer.items()]
    return parts + _listed("## compute-sanitizer\n", said)


def _cost_model(document: dict[str, Any]) -> list[str]:
    found = document.get("cost_model")
    if not found or not found["rows"]:
        return []
    body = []
    for row in found["rows"]:
        seconds, counted = row["seconds"], row["counted"]
        ratio = times(seconds / counted)
        names = [row[name] for name in ("layer", "work", "backend", "path")]
        body.append([*names, milliseconds(1e3 * seconds), milliseconds(1e3 * counted), ratio])
    columns = ["layer", "work", "backend", "path", "ms", "counted, ms", "measured / counted"]
    lines = [
        f"- {name}: {times(f['median'])} ({times(f['least'])} to {times(f['most'])} over {f['of']} layers)"
        for name, f in found["factors"].items()
    ]
    lines += [
        f"- {w['layer']}, {w['work']}: {w['chosen']}, counted cheapest, takes "
        f"{times(w['loss'])} the time of {w['best']}"
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
    body = [row for provider in table.in_job(job) for row in _rows(table, job, provider)]
    columns = ["provider", "execution", "forward+backward", "forward", "x MLP params", "x MLP widths"]
    columns += ["of roofline", "peak extra", "worst error"]
    parts = [head, "; ".join(fact for fact in facts if fact) + "."]
    parts += [markdown_table(columns, body)] if body else []
    here = [r for r in table.results if r["job"] == job]
    missing = notes(here, lambda r: f"{r['execution']}, {r['mode']}")
    return parts + (["\n".join(missing)] if missing else [])


def _clocks(table: GpuTable, job: str) -> str:
    seen = [r["clocks"] for r in table.results if r["job"] == job and r.get("clocks")]
    return f"clocks after timing: SM {seen[0]['clocks.sm']}, memory {seen[0]['clocks.mem']}" if seen else ""


def _rows(table: GpuTable, job: str, provider: str) -> list[list[str]]:
    """One line for each execution of the provider that has any time."""
    rows = []
    for execution in EXECUTIONS:
        train, forward = (table.timed(job, mode, provider, execution) for mode in (TRAIN, FORWARD))
        cell = train or forward
        if cell is None:
            continue
        part = cell.get("roofline_fraction")
        row = [cell["label"], execution, *(time_text(c, ("p25", "p75")) for c in (train, forward))]
        row += [*ratios(cell), "-" if part is None else f"{100 * part:.0f}% ({cell['roofline_bound']})"]
        row += [size(cell.get("peak_extra_bytes")), worst_error(c for c in (train, forward) if c is not None)]
        rows.append(row)
    return rows
