"""``python -m tools.static_cost triton|cuda``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.extras import MissingExtra

from .budget import budget_path, check, load, write
from .measure import measure
from .providers import LIBRARY, PROVIDERS, Selection, Unavailable
from .report import show
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


def main(arguments: list[str] | None = None) -> int:
    """Entry point, returns the exit status: 1 for a broken budget, 2 and one line for what cannot be."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, FileNotFoundError, Unavailable, ToolError, MissingExtra) as error:
        print(f"static_cost: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
