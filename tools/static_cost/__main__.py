"""``python -m tools.static_cost triton|cuda`` and ``python -m tools.static_cost step``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.extras import MissingExtra

from . import step
from .budget import budget_path, check, load, write
from .cuda_step import cuda_steps
from .measure import measure
from .providers import LIBRARY, PROVIDERS, Selection, Unavailable
from .report import show, show_steps
from .tools import ToolError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.static_cost",
        description="What the hot loop of each kernel costs, read from its machine code. No GPU is needed.",
    )
    add = parser.add_argument
    add("provider", choices=list(PROVIDERS))
    add("--arch", default="", help="comma-separated SM versions such as 80,90; default: all")
    add("--kernel", default="", help="comma-separated names; default: all")
    add("--dtype", default="", help="comma-separated names; default: all")
    add("--options", default="", help="only specialisations whose options contain this text")
    add("--library", type=Path, default=LIBRARY, help="cuda: the library to read")
    add("--opcodes", action="store_true", help="also print every opcode of the hot loops")
    add("--json", type=Path, help="write everything that was read to this file")
    add("--budget", help="in tests/budgets, or path to a .json; default: the provider's name")
    add("--check", action="store_true", help="exit with 1 where the budget is broken")
    add("--update-budget", action="store_true", help="write registers and shared bytes anew")
    return parser


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _archs(text: str) -> list[int]:
    parts = [part.removeprefix("sm_") for part in _names(text)]
    for part in parts:
        if not part.isdigit():
            raise ValueError(f"--arch takes SM versions such as 80,90,100, got {part!r}")
    return [int(part) for part in parts]


def _run(options: argparse.Namespace) -> int:
    chosen = _archs(options.arch), _names(options.kernel), _names(options.dtype)
    selection = Selection(*chosen, options.options, options.library)
    kernels = list(measure(PROVIDERS[options.provider](selection)))
    if not kernels:
        raise ValueError(f"no kernel of {options.provider} fits --arch, --kernel, --dtype and --options")
    show(kernels, options.opcodes)
    if options.json:
        options.json.write_text(json.dumps([kernel.as_json() for kernel in kernels], indent=1) + "\n")
    path = budget_path(options.budget or options.provider)
    if options.update_budget:
        write(path, kernels, complete=selection.complete)
        print(f"{path.name} is written")
    if not options.check:
        return 0
    budget = load(path)
    if any(kernel.source.toolchain != budget["toolchain"] for kernel in kernels):
        print(f"{path.name} made with {budget['toolchain']}: no comparison of registers, shared, ratio")
    violations = check(budget, kernels, complete=selection.complete)
    print(*(violations or [f"{path.name} is kept"]), sep="\n")
    return 1 if violations else 0


def _step_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.static_cost step",
        description="Busiest pipes of a training step over the time of its products alone. A count, not a "
        "measurement. No GPU is needed.",
    )
    add = parser.add_argument
    add("provider", nargs="?", choices=list(step.ARCHS), help="default: all")
    add(
        "--arch", default="", help="comma-separated SM versions such as 80,90; default: those of the provider"
    )
    add("--dtype", default="", help="comma-separated, of bf16, tf32, strict fp32; default: all")
    add("--width", default="", help="comma-separated, of inputs and outputs; default: 512,128")
    add("--library", type=Path, default=LIBRARY, help="cuda: the library to read")
    add("--update-budget", action="store_true", help="write the ratios anew")
    add("--check", action="store_true", help="exit with 1 where a ratio rose, or the page is out of date")
    add("--page", action="store_true", help="write docs/gpu.md from the budget; compiles nothing")
    return parser


def _run_step(options: argparse.Namespace) -> int:
    if options.page:
        from benchmarks.readme import refresh

        text = step.page(step.load())
        page = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
        return refresh(page, text, options.check, "python -m tools.static_cost step --page", "step")
    dtypes = _names(options.dtype) or step.DTYPES
    unknown = [name for name in dtypes if name not in step.DTYPES]
    if unknown:
        raise ValueError(f"--dtype takes {', '.join(step.DTYPES)}, got {unknown[0]!r}")
    widths = [int(text) for text in _names(options.width)] or step.WIDTHS
    steps: list[step.Step] = []

    def keep(found: Iterable[step.Step]) -> None:
        for one in found:  # as they come: compiling takes minutes
            steps.append(one)
            if options.update_budget:
                step.write([one])

    for provider in [options.provider] if options.provider else step.ARCHS:
        archs = _archs(options.arch) or step.ARCHS[provider]
        try:
            if provider == "triton":
                keep(step.triton_steps(archs, dtypes, widths))
            else:
                keep(cuda_steps(archs, dtypes, widths, options.library))
        except Unavailable as error:
            if options.provider:
                raise
            print(f"static_cost: {error}", file=sys.stderr)
    show_steps(steps)
    if not options.check:
        return 0
    violations = step.check(step.load(), steps)
    print(*(violations or [f"{step.BUDGET.name} is kept"]), sep="\n")
    return 1 if violations else 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point, returns the exit status: 1 for a broken budget, 2 and one line for what cannot be."""
    given = sys.argv[1:] if arguments is None else arguments
    of_step = given[:1] == ["step"]
    options = _step_parser().parse_args(given[1:]) if of_step else _parser().parse_args(given)
    try:
        return _run_step(options) if of_step else _run(options)
    except (ValueError, FileNotFoundError, Unavailable, ToolError, MissingExtra) as error:
        print(f"static_cost: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
