"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.extras import require

from .arch import architecture
from .cost import LoopCost
from .measure import Measured
from .pipes import PIPES
from .step import Step

_SHOWN = ("tensor", "issue", "fma", "alu", "xu", "lsu", "memory")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _loop_cells(loop: LoopCost) -> list[str]:
    others = {pipe: cycles for pipe, cycles in loop.pipes.items() if pipe not in _SHOWN}
    most = max(others, key=lambda pipe: others[pipe], default=None)
    return [
        "\n".join(f"{times}x {opcode}" for opcode, times in loop.matrix.most_common()) or "-",
        " and ".join(sorted(loop.a_operands)) or "-",
        *(_number(loop.pipes.get(pipe)) for pipe in _SHOWN),
        f"{most} {_number(others[most])}" if most else "-",
        _ratio(loop.ratio),
        loop.bound,
        _percent(loop.fraction),
    ]


def table(kernels: Sequence[Measured]) -> Any:
    """A rich table: one row a loop, the hot loop of each kernel first."""
    title = "SM cycles for one iteration of the hot loop, one block, everything overlapped"
    result = require("rich.table").Table(title=title)
    folded, right = {"overflow": "fold"}, {"justify": "right"}
    columns: dict[str, dict[str, str]] = dict.fromkeys(("kernel", "dtype", "arch", "options"), folded)
    columns |= dict.fromkeys(("warps", "registers", "shared", "spills"), right)
    columns |= {"matrix instructions a warp": folded, "A from": {}}
    columns |= dict.fromkeys((*_SHOWN, "other", "generation / matrix"), right)
    for name, options in {**columns, "bound by": {}, "of matrix peak": right}.items():
        result.add_column(name, **options)
    for kernel in kernels:
        source, cost = kernel.source, kernel.cost
        head = [source.kernel, source.dtype, f"sm_{source.arch}", source.options]
        head += [str(cost.warps), str(cost.registers), str(cost.shared), str(cost.spills)]
        for number, loop in enumerate(cost.loops):
            label = head if number == 0 else [f"  loop at {loop.begin:#x}", *[""] * (len(head) - 1)]
            result.add_row(*label, *_loop_cells(loop))
    return result


def footnotes(kernels: Sequence[Measured]) -> list[str]:
    """Sources of the rates, then what each count takes for granted, then opcodes that are not known."""
    lines = []
    for arch in sorted({kernel.source.arch for kernel in kernels}):
        family = architecture(arch)
        assumed = f"; assumed: {', '.join(family.assumed)}" if family.assumed else ""
        lines.append(f"sm_{arch}, rates of sm_{family.sm} ({family.name}): {family.source}{assumed}")
    for kernel in kernels:
        for loop in kernel.cost.loops:
            where = f"{kernel.key}, loop at {loop.begin:#x}"
            lines += [f"{where}: {note}" for note in loop.notes]
            if loop.unknown:
                names = ", ".join(f"{times}x {opcode}" for opcode, times in loop.unknown.most_common())
                lines.append(f"{where}: UNKNOWN opcodes, counted as an issue slot alone: {names}")
    return lines


def opcodes(kernel: Measured) -> str:
    """The hot loop's opcodes by number and its pipes by cycles."""
    hot = kernel.cost.hot
    counted = "  ".join(f"{base} {times}" for base, times in hot.instructions.most_common())
    pipes = "  ".join(f"{pipe} {_number(hot.pipes[pipe])}" for pipe in PIPES if pipe in hot.pipes)
    return f"{kernel.key}\n  one warp: {counted}\n  cycles: {pipes}"


def show(kernels: Sequence[Measured], with_opcodes: bool = False) -> None:
    """Print the table and its footnotes."""
    console = require("rich.console").Console(soft_wrap=False)
    if not console.is_terminal:
        # a pipe has no width of its own: leave the columns what they need
        console.width = 260
    console.print(table(kernels))
    for line in footnotes(kernels):
        console.print(line, highlight=False, markup=False)
    for kernel in kernels if with_opcodes else ():
        console.print(opcodes(kernel), highlight=False, markup=False)


def show_steps(steps: Sequence[Step]) -> None:
    """Print each step, then its kernels."""
    result = require("rich.table").Table(title="Busiest pipe over the products' time: counted, not measured")
    for name in (
        "step",
        "kernel",
        "ratio",
        "not overlapped",
        "bound by",
        "bytes a matrix instruction",
        "L2 busy",
    ):
        result.add_column(name, justify="left" if name in ("step", "kernel", "bound by") else "right")
    for step in steps:
        result.add_row(step.key, "", _ratio(step.ratio), _ratio(step.apart), "", "", "")
        for k in step.kernels:
            apart = k.apart / k.matrix if k.matrix else None
            each = k.bytes / k.instructions if k.instructions else None
            result.add_row("", k.name, _ratio(k.ratio), _ratio(apart), k.bound, _number(each), _percent(k.l2))
    console = require("rich.console").Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 160
    console.print(result)
