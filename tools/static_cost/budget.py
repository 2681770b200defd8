"""Committed limits of the machine code: ``tests/budgets/NAME.json``.

A document: ``{"toolchain": "triton 3.9.0", "kernels": {key: entry}}``, the keys as in measure.Cubin.key, an
entry:

    registers   at most; when written, the measured count rounded up to a multiple of 8, as they are allotted
    shared      bytes of a block, at most; when written, exactly what was measured
    spills      loads and stores of local memory, at most; 0 unless a person allowed more
    matrix      the opcode that the hot loop's matrix instructions begin with, null where none is meant
    a_operand   where their A operand must lie: registers, shared, tensor memory (optional)
    ratio       generation time over matrix time in the hot loop, at most (optional, named by a person)

Writing anew changes ``registers`` and ``shared`` and adds missing entries; the other fields are decisions,
which it keeps. Another compiler allots other registers: then registers, shared bytes and ratio are not
compared, the rest is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .arch import architecture
from .measure import Measured

BUDGETS = Path(__file__).resolve().parents[2] / "tests" / "budgets"
REGISTER_GRANULE = 8
MOST_REGISTERS = 255
_FIELDS = {"registers", "shared", "spills", "matrix", "a_operand", "ratio"}
_REQUIRED = {"registers", "shared", "spills", "matrix"}


def budget_path(name: str) -> Path:
    """NAME of a committed budget, or a path to a .json."""
    return Path(name) if name.endswith(".json") else BUDGETS / f"{name}.json"


def load(path: Path) -> dict[str, Any]:
    """Read a budget; raises FileNotFoundError, or ValueError naming the entry that is not one."""
    if not path.exists():
        raise FileNotFoundError(f"budget: no file {path}; --update-budget writes it")
    budget = json.loads(path.read_text())
    if set(budget) != {"toolchain", "kernels"}:
        raise ValueError(f"budget {path.name}: wanted the fields toolchain and kernels, got {sorted(budget)}")
    for key, entry in budget["kernels"].items():
        if not _REQUIRED <= set(entry) <= _FIELDS:
            raise ValueError(
                f"budget {path.name}, {key}: got the fields {', '.join(sorted(entry))}; "
                f"wanted {', '.join(sorted(_REQUIRED))} and perhaps {', '.join(sorted(_FIELDS - _REQUIRED))}"
            )
    return budget


def _over(what: str, got: float, allowed: float) -> list[str]:
    return [f"{what}: {got:g}, allowed {allowed:g}"] if got > allowed else []


def _entry_violations(entry: dict[str, Any], kernel: Measured, same_compiler: bool) -> list[str]:
    hot, found = kernel.cost.hot, []
    found += _over("spills", kernel.cost.spills, entry["spills"])
    if same_compiler:
        found += _over("registers", kernel.cost.registers, entry["registers"])
        found += _over("shared bytes", kernel.cost.shared, entry["shared"])
    wanted = entry["matrix"]
    if wanted is not None and not kernel.matrix:
        found.append(f"matrix instruction: none in the hot loop, wanted {wanted}")
    elif wanted is not None:
        others = [opcode for opcode in kernel.matrix if not opcode.startswith(wanted)]
        found += [f"matrix instruction: {opcode} in the hot loop, wanted {wanted}" for opcode in others]
    if entry.get("a_operand") is not None and kernel.a_operand != entry["a_operand"]:
        found.append(f"A operand: in {kernel.a_operand or 'nothing'}, wanted {entry['a_operand']}")
    if entry.get("ratio") is not None and same_compiler:
        if hot.ratio is None:
            found.append("generation / matrix time: no matrix time in the hot loop")
        elif hot.unknown:
            found.append(
                f"generation / matrix time: opcodes not known in the hot loop: {sorted(hot.unknown)}"
            )
        else:
            found += _over("generation / matrix time", round(hot.ratio, 4), entry["ratio"])
    return found


def check(budget: dict[str, Any], measured: Iterable[Measured], *, complete: bool = True) -> list[str]:
    """What breaks the budget, one line each, beginning with the key.

    ``complete``: also name entries of the budget that were not measured, so that a kernel cannot vanish
    unseen; of those architectures alone that were measured, for a library may be built for one.
    """
    violations, seen, archs = [], set(), set()
    for kernel in measured:
        seen.add(kernel.key)
        archs.add(f"sm_{kernel.source.arch}")
        limit = architecture(kernel.source.arch).shared_limit
        problems = _over(f"shared bytes on sm_{kernel.source.arch}", kernel.cost.shared, limit)
        entry = budget["kernels"].get(kernel.key)
        if entry is None:
            problems.append("not in the budget; --update-budget enters it")
        else:
            problems += _entry_violations(entry, kernel, kernel.source.toolchain == budget["toolchain"])
        violations += [f"{kernel.key}: {problem}" for problem in problems]
    if complete:
        violations += [
            f"{key}: in the budget, but not measured"
            for key in budget["kernels"]
            if key not in seen and (not archs or archs & set(key.split("/")))
        ]
    return violations


def _fresh_entry(kernel: Measured) -> dict[str, Any]:
    names = {opcode.split(".", 1)[0] for opcode in kernel.matrix}
    entry: dict[str, Any] = {"spills": 0, "matrix": kernel.matrix[0].split(".", 1)[0] if names else None}
    if kernel.a_operand is not None:
        entry["a_operand"] = kernel.a_operand
    return entry


def write(path: Path, measured: Iterable[Measured], *, complete: bool = True) -> dict[str, Any]:
    """Write the budget anew from what was measured; see the top of this file for what changes.

    ``complete``: entries that were not measured go; else they stay. Raises ValueError for several compilers
    at once.
    """
    kernels = list(measured)
    toolchains = {kernel.source.toolchain for kernel in kernels}
    if len(toolchains) != 1:
        raise ValueError(f"budget: expected kernels of one compiler, got {sorted(toolchains) or 'no kernel'}")
    toolchain = toolchains.pop()
    old: dict[str, Any] = load(path) if path.exists() else {"toolchain": toolchain, "kernels": {}}
    if not complete and old["toolchain"] != toolchain:
        raise ValueError(
            f"budget {path.name}: got a selection made with {toolchain}; "
            f"the rest was made with {old['toolchain']}, so write all of it"
        )
    entries = {} if complete else dict(old["kernels"])
    for kernel in kernels:
        entry = {**_fresh_entry(kernel), **old["kernels"].get(kernel.key, {})}
        rounded = -(-kernel.cost.registers // REGISTER_GRANULE) * REGISTER_GRANULE
        entry["registers"] = min(rounded, MOST_REGISTERS)
        entry["shared"] = kernel.cost.shared
        entries[kernel.key] = entry
    budget = {"toolchain": toolchain, "kernels": {key: _ordered(entries[key]) for key in sorted(entries)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(budget))
    return budget


def _ordered(entry: dict[str, Any]) -> dict[str, Any]:
    order = ("registers", "shared", "spills", "matrix", "a_operand", "ratio")
    return {name: entry[name] for name in order if name in entry}


def _text(budget: dict[str, Any]) -> str:
    """JSON with one kernel a line, so that a change of one kernel is a change of one line."""
    lines = [f"    {json.dumps(key)}: {json.dumps(entry)}" for key, entry in budget["kernels"].items()]
    body = ",\n".join(lines)
    return f'{{\n  "toolchain": {json.dumps(budget["toolchain"])},\n  "kernels": {{\n{body}\n  }}\n}}\n'
