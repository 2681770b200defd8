"""The command line: ``python -m benchmarks [run | targets | table | plot | readme | science]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tools.extras import MissingExtra, require

from .document import COMMITTED, RESULTS, Table, load, save
from .machine import all_threads
from .orchestrate import Plan, run
from .providers import PROVIDERS, find_provider
from .readme import README, update
from .report import markdown, show
from .targets import check
from .workloads import MODES, SMOKE_WORKLOADS, WORKLOADS, find_workload

COMMANDS = {
    "run": "measure, print the tables, write JSON, Markdown and plots (the default)",
    "targets": "what the project set out to reach, pass or fail, from a result file; exits 1 on a failure",
    "table": "print the tables of a result file",
    "plot": "draw the plots of a result file",
    "readme": "write the README's table from a result file; with --check exit 1 when it is out of date",
    "science": "training, grids and formulas against pykan, and its table in docs; --quick, --check as above",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="KANs against MLPs and other KANs, interleaved and gated on correctness.",
        epilog="commands:\n" + "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()),
    )
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), default="run")
    parser.add_argument("--workloads", help="comma-separated, see --list")
    parser.add_argument(
        "--providers", help="comma-separated, see --list; those named here are never left out to save time"
    )
    parser.add_argument(
        "--modes", help=f"comma-separated of {', '.join(MODES)}; default: each workload's own"
    )
    parser.add_argument(
        "--threads", help="comma-separated counts or 'all'; default 1,all (all only with --quick)"
    )
    parser.add_argument(
        "--output", help="name of the result (benchmarks/results/NAME.json) or a path to a .json"
    )
    parser.add_argument(
        "--quick", action="store_true", help="forward+backward, all threads, under two minutes"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes through every code path, for the tests"
    )
    parser.add_argument("--no-plots", action="store_true", help="do not draw (matplotlib is not needed then)")
    parser.add_argument(
        "--list", action="store_true", help="list workloads and providers and whether they can run"
    )
    parser.add_argument("--check", action="store_true", help="readme: only say whether it is up to date")
    parser.add_argument("--readme", type=Path, default=README, help=argparse.SUPPRESS)
    return parser


def _choose(text: str | None, default: list[str]) -> list[str]:
    return default if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _threads(text: str | None, quick: bool) -> list[int]:
    """Distinct thread counts, most first."""
    counts = set()
    for part in _choose(text, ["all"] if quick else ["all", "1"]):
        if part != "all" and not (part.isdigit() and int(part) > 0):
            raise ValueError(f"--threads takes positive counts or 'all', got {part!r}")
        counts.add(all_threads() if part == "all" else int(part))
    return sorted(counts, reverse=True)


def _result_path(output: str | None, default: Path) -> Path:
    if output is None:
        return default
    return Path(output) if output.endswith(".json") else RESULTS / f"{output}.json"


def _plan(options: argparse.Namespace) -> Plan:
    level = "smoke" if options.smoke else "quick" if options.quick else "full"
    catalogue = SMOKE_WORKLOADS if options.smoke else WORKLOADS
    workloads = [find_workload(name) for name in _choose(options.workloads, list(catalogue))]
    providers = _choose(options.providers, list(PROVIDERS))
    if options.smoke and options.providers is None:
        # a cold torch.compile alone takes longer than the smoke run may
        providers = [key for key in providers if not PROVIDERS[key].compiles]
    for key in providers:
        find_provider(key)
    modes = None if options.modes is None else _choose(options.modes, [])
    for mode in modes or []:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    threads = _threads(options.threads, options.quick or options.smoke)
    return Plan(workloads, providers, modes, threads, level, thorough=options.providers is not None)


def _list() -> None:
    print("workloads (float32, k=3):")
    for w in WORKLOADS.values():
        widths = ",".join(map(str, w.same_parameter_widths()))
        print(f"  {w.name:10} {w.shape:32} {w.kan_parameters:>9,} parameters, MLP [{widths}]  {w.note}")
    print("providers:")
    for key, provider in PROVIDERS.items():
        print(f"  {key:22} {provider.label:42} {provider.unavailable() or provider.version() or 'ready'}")
    print(f"modes: {', '.join(MODES)}")


def _run(options: argparse.Namespace) -> int:
    plan = _plan(options)
    progress = require("rich.progress")
    if not options.no_plots:
        require("matplotlib")
    path = _result_path(options.output, RESULTS / f"{'latest' if plan.level == 'full' else plan.level}.json")
    columns = (
        progress.SpinnerColumn(),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=require("rich.console").Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=plan.cells())

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "busy":
                text = (
                    f"{event['workload']}, {event['threads']} thread(s), {event['mode']}: {event['provider']}"
                )
                bar.update(task, description=text)
            elif event["event"] == "cell":
                bar.advance(task)

        document = run(plan, path.stem, report)
    save(document, path)
    table = Table(document)
    show(table)
    path.with_suffix(".md").write_text(markdown(table))
    written = [path, path.with_suffix(".md")]
    if not options.no_plots:
        written += _draw(table, path)
    print(f"{document['meta']['seconds']:.0f} s; written: {', '.join(map(str, written))}")
    broken = [r for r in document["results"] if r["kind"] == "ours" and r["status"] in ("failed", "gated")]
    for r in broken:
        print(f"ours failed: {r['workload']}, {r['mode']}, {r['provider']}: {r['reason']}", file=sys.stderr)
    return 1 if broken else 0


def _draw(table: Table, path: Path) -> list[Path]:
    from .plots import draw  # needs matplotlib, which the other commands do not

    return draw(table, path)


def _targets(path: Path) -> int:
    table = Table(load(path))
    outcomes = check(table)
    print(f"Targets of the project on {path.name} ({table.threads[0]} threads; {table.meta['date']}):")
    for outcome in outcomes:
        print("  " + outcome.line())
    missed = [o for o in outcomes if o.reached is False and not o.aim]
    unknown = [o for o in outcomes if o.reached is None]
    print(
        f"{sum(o.reached is True for o in outcomes)} reached, {len(missed)} failed, "
        f"{len(unknown)} without a figure"
    )
    return 1 if missed else 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point, returns the exit status. Wrong arguments and missing extras: one line and status 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            _list()
            return 0
        if options.command == "science":
            from .science import run as science  # imports kan_kernels, which the others may do without

            name = "quick-science.json" if options.quick else science.COMMITTED.name
            keys = None if options.workloads is None else _choose(options.workloads, [])
            path = _result_path(options.output, RESULTS / name)
            return science.main(path.absolute(), options.quick, options.check, keys)
        path = _result_path(options.output, COMMITTED)
        if options.command == "targets":
            return _targets(path)
        if options.command == "table":
            show(Table(load(path)))
            return 0
        if options.command == "plot":
            print(*_draw(Table(load(path)), path), sep="\n")
            return 0
        if options.command == "readme":
            fresh = update(path, options.readme, options.check)
            print(
                f"{options.readme.name} is "
                + (
                    "up to date"
                    if fresh
                    else "OUT OF DATE: run python -m benchmarks readme"
                    if options.check
                    else "written"
                )
            )
            return 1 if options.check and not fresh else 0
        return _run(options)
    except (ValueError, FileNotFoundError, MissingExtra) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
