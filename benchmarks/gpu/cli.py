"""The command line: run every stage and write one report, or write it again from its JSON."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

SECONDS = 455  # with starting and writing, under eight minutes
LEAST = 5.0  # seconds below which a stage is not worth starting


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Build, test and measure on this machine's GPU; one report as JSON, Markdown and plots.",
    )
    parser.add_argument("--report", action="store_true", help="only write Markdown and plots from the JSON")
    parser.add_argument("--output", type=Path, help="the JSON file (default benchmarks/results/gpu.json)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for all stages ({SECONDS})")
    parser.add_argument("--only", help="comma-separated stages to run")
    # for the tests of the report itself
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plugin", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--stall", type=float, default=90.0, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point. 0: all proofs hold. 1: no GPU, or something of ours failed. 2: wrong arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        print(f"make gpu needs torch in {sys.executable}, and importing it failed: {error}.", file=sys.stderr)
        return 1
    from ..document import RESULTS, load
    from .device import missing_gpu
    from .stages import STAGES
    from .table import GpuTable

    path = options.output or RESULTS / ("smoke-gpu.json" if options.smoke else "gpu.json")
    names = [stage.name for stage in STAGES]
    only = [part.strip() for part in options.only.split(",")] if options.only else names
    unknown = [name for name in only if name not in names]
    if unknown:
        parser.error(f"--only: unknown stage {unknown[0]!r}, expected some of {', '.join(names)}")
    if options.device == "cpu" and not options.smoke:
        parser.error("--device cpu is for --smoke, the test of the report itself")
    if options.report:
        try:
            return _write(GpuTable(load(path, "make gpu on a machine with a GPU")), path)
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    reason = missing_gpu() if options.device == "cuda" else None
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    return _run(options, path, only)


def _run(options: argparse.Namespace, path: Path, only: list[str]) -> int:
    """Run the stages, saving after each, so that what was measured outlives whatever comes next."""
    from ..document import FORMAT, save
    from .device import Device
    from .plan import JOBS, SMOKE_JOBS
    from .stages import STAGES, Run
    from .table import GpuTable, add_figures, job_json

    started = time.monotonic()
    device = Device(options.device)
    jobs = SMOKE_JOBS if options.smoke else JOBS
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": path.stem,
        "is_gpu": device.is_gpu,
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "meta": {**device.describe(), "seconds": 0.0},
        "stages": [],
        "jobs": {name: job_json(job) for name, job in jobs.items()},
        "automatic": {},
        "gates": {},
        "peaks": None,
        "results": [],
    }
    run = Run(options.device, options.smoke, document, options.plugin, options.stall)
    end = started + options.seconds
    print(f"{document['meta']['device']}, torch {document['meta']['torch']}", flush=True)
    stages = [stage for stage in STAGES if stage.name in only]
    for n, stage in enumerate(stages):
        reserved = sum(later.reserve for later in stages[n + 1 :])
        limit = min(stage.most, max(0.0, end - time.monotonic() - reserved))
        begun = time.monotonic()
        print(f"{stage.name} (at most {limit:.0f} s) ...", flush=True)
        outcome = _guarded(stage, run, limit)
        seconds = time.monotonic() - begun
        print(f"  {outcome.status} after {seconds:.0f} s: {outcome.note}", flush=True)
        about = {"name": stage.name, "limit": limit, "seconds": seconds}
        document["stages"].append({**about, **vars(outcome)})
        document["meta"]["seconds"] = round(time.monotonic() - started, 1)
        add_figures(document)
        save(document, path)
    return _write(GpuTable(document), path, fused_needed=device.is_gpu)


def _guarded(stage: Any, run: Any, limit: float) -> Any:
    """A stage that fails in a way nobody thought of costs itself alone."""
    from ..measure import describe
    from .stages import Outcome

    if limit < LEAST:
        return Outcome("cut", "no time was left", [f"all of it ({limit:.0f} s were left)"])
    try:
        return stage.run(run, limit)
    except Exception as error:
        return Outcome("failed", describe(error), [], [describe(error)])


def _write(table: Any, path: Path, fused_needed: bool = False) -> int:
    """Write Markdown and plots beside the JSON, print the targets; 1 when a proof does not hold."""
    from tools.extras import MissingExtra

    from ..measure import describe
    from .report import markdown
    from .targets import check, proofs

    plots, no_plots = [], None
    try:
        from .plots import draw

        plots = [plot.name for plot in draw(table, path)]
        no_plots = None if plots else "nothing to draw"
    except Exception as error:  # the report must come whatever a plotting library does
        no_plots = str(error) if isinstance(error, MissingExtra) else describe(error)
    path.with_suffix(".md").write_text(markdown(table, plots, no_plots))
    for outcome in check(table):
        print(outcome.line())
    print(f"written: {', '.join(map(str, [path, path.with_suffix('.md'), *plots]))}")
    if no_plots:
        print(f"no plots: {no_plots}")
    failed = any(outcome.reached is False for outcome in proofs(table.document))
    timed = (r for r in table.results if r["kind"] == "ours" and "median_ms" in r)
    if fused_needed and not any(set(r.get("backends", [])) - {"reference"} for r in timed):
        print("no fused backend of kan_kernels was measured on this GPU", file=sys.stderr)
        return 1
    return 1 if failed else 0
