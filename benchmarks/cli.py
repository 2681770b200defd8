"""The command line: ``python -m benchmarks [run | targets | table | plot | readme | science | paths]``."""

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
from .readme import PAGE, refresh
from .report import markdown, show, summary
from .targets import check
from .workloads import MODES, SMOKE_WORKLOADS, WORKLOADS, find_workload

COMMANDS = {
    "run": "measure, print the tables, write JSON, Markdown and plots (the default)",
    "targets": "what the project set out to reach, pass or fail, from a result file; exits 1 on a failure",
    "table": "print the tables of a result file",
    "plot": "draw the plots of a result file",
    "readme": "write the table of docs/benchmarks.md; with --check exit 1 when it is out of date",
    "science": "training, grids and formulas against pykan, and its table in docs; --quick, --check as above",
    "paths": "the CPU's fast paths on and off, and their table in docs; --quick, --check as above",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="KANs against MLPs and other KANs, interleaved and gated on correctness.",
        epilog="commands:\n" + "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()),
    )
    add = parser.add_argument
    add("command", nargs="?", choices=list(COMMANDS), default="run")
    add("--workloads", type=_names, help="comma-separated, see --list; contests of science, names of paths")
    add(
        "--providers",
        type=_names,
        help="comma-separated, see --list; those named here are never left out to save time",
    )
    add("--modes", type=_names, help=f"comma-separated of {', '.join(MODES)}; default: each workload's own")
    add(
        "--threads",
        type=_names,
        help="comma-separated counts or 'all'; default 1,all (all only with --quick)",
    )
    add("--output", help="name of the result (benchmarks/results/NAME.json) or a path to a .json")
    add("--quick", action="store_true", help="forward+backward, all threads, under two minutes")
    add("--smoke", action="store_true", help="tiny sizes through every code path, for the tests")
    add("--no-plots", action="store_true", help="do not draw (matplotlib is not needed then)")
    add("--list", action="store_true", help="list workloads and providers and whether they can run")
    add(
        "--check", action="store_true", help="readme, science, paths: only say whether the page is up to date"
    )
    return parser


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _result_path(output: str | None, default: Path) -> Path:
    if output is None:
        return default
    return Path(output) if output.endswith(".json") else RESULTS / f"{output}.json"


def _plan(options: argparse.Namespace) -> Plan:
    level = "smoke" if options.smoke else "quick" if options.quick else "full"
    catalogue = SMOKE_WORKLOADS if options.smoke else WORKLOADS
    workloads = [find_workload(name) for name in options.workloads or catalogue]
    # a cold torch.compile alone takes longer than the smoke run may
    default = [key for key, provider in PROVIDERS.items() if not (options.smoke and provider.compiles)]
    providers = options.providers or default
    for key in providers:
        find_provider(key)
    for mode in options.modes or []:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    threads = set()
    for part in options.threads or (["all"] if level != "full" else ["all", "1"]):
        if part != "all" and not (part.isdigit() and int(part) > 0):
            raise ValueError(f"--threads takes positive counts or 'all', got {part!r}")
        threads.add(all_threads() if part == "all" else int(part))
    named = options.providers is not None
    return Plan(workloads, providers, options.modes, sorted(threads, reverse=True), level, thorough=named)


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
    rich = require("rich.progress")
    if not options.no_plots:
        require("matplotlib")
    path = _result_path(options.output, RESULTS / f"{'latest' if plan.level == 'full' else plan.level}.json")
    with rich.Progress(console=require("rich.console").Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=plan.cells())

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "busy":
                text = "{workload}, {threads} thread(s), {mode}: {provider}".format(**event)
                bar.update(task, description=text)
            elif event["event"] == "cell":
                bar.advance(task)

        document = run(plan, path.stem, report)
    save(document, path)
    table = Table(document)
    show(markdown(table))
    path.with_suffix(".md").write_text(markdown(table))
    written = [path, path.with_suffix(".md"), *([] if options.no_plots else _draw(table, path))]
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
    missed = sum(o.reached is False and not o.aim for o in outcomes)
    reached, unknown = (sum(o.reached is state for o in outcomes) for state in (True, None))
    print(f"{reached} reached, {missed} failed, {unknown} without a figure")
    return 1 if missed else 0


def _command(options: argparse.Namespace) -> int:
    if options.command == "science":
        from .science import run as science  # imports kan_kernels, which the others may do without

        default = RESULTS / ("quick-science.json" if options.quick else science.COMMITTED.name)
        path = _result_path(options.output, default).absolute()
        return science.main(path, options.quick, options.check, options.workloads)
    if options.command == "paths":
        from . import paths  # imports kan_kernels too

        return paths.main(options.quick, options.check, options.workloads)
    path = _result_path(options.output, COMMITTED)
    if options.command == "targets":
        return _targets(path)
    if options.command == "table":
        show(markdown(Table(load(path))))
    elif options.command == "plot":
        print(*_draw(Table(load(path)), path), sep="\n")
    elif options.command == "readme":
        return refresh(PAGE, summary(Table(load(path))), options.check, "python -m benchmarks readme")
    else:
        return _run(options)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point, returns the exit status. Wrong arguments and missing extras: one line and status 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            _list()
            return 0
        return _command(options)
    except (ValueError, FileNotFoundError, MissingExtra) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
