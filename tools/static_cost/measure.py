"""From a cubin that a provider made to the figures that tables and budgets hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .cost import KernelCost, LoopCost, kernel_costs


@dataclass(frozen=True)
class Cubin:
    """What a provider yields: one specialisation of one kernel.

    ``function`` is its mangled name, None for the only kernel of the cubin. ``shared`` and ``warps`` describe
    the launch where the caller knows it; ``flops_per_iteration`` is of the hot loop, for one block, where
    only the caller knows it. ``toolchain`` names the compiler: budgets of registers hold for one compiler
    only.
    """

    kernel: str
    dtype: str
    arch: int
    options: str
    cubin: bytes
    function: str | None = None
    shared: int | None = None
    warps: int | None = None
    flops_per_iteration: int | None = None
    toolchain: str = ""

    @property
    def key(self) -> str:
        """The name in a budget: kernel/dtype/sm_NN and the options, if there are any."""
        return "/".join(filter(None, (self.kernel, self.dtype, f"sm_{self.arch}", self.options)))


@dataclass
class Measured:
    """One specialisation, read."""

    source: Cubin
    cost: KernelCost

    @property
    def key(self) -> str:
        return self.source.key

    @property
    def matrix(self) -> list[str]:
        """The matrix opcodes of the hot loop, most frequent first."""
        return [opcode for opcode, _ in self.cost.hot.matrix.most_common()]

    @property
    def a_operand(self) -> str | None:
        """Where the A operand of the hot loop's matrix instructions lies; None without any."""
        return " and ".join(sorted(self.cost.hot.a_operands)) or None

    def as_json(self) -> dict[str, Any]:
        """Plain data of everything that was read."""
        return {
            "key": self.key,
            "kernel": self.source.kernel,
            "dtype": self.source.dtype,
            "arch": self.source.arch,
            "options": self.source.options,
            "toolchain": self.source.toolchain,
            "warps": self.cost.warps,
            "registers": self.cost.registers,
            "shared": self.cost.shared,
            "stack": self.cost.stack,
            "spills": self.cost.spills,
            "loops": [_loop_json(loop) for loop in self.cost.loops],
        }


def _loop_json(loop: LoopCost) -> dict[str, Any]:
    return {
        "begin": loop.begin,
        "end": loop.end,
        "instructions_per_warp": sum(loop.instructions.values()),
        "opcodes": dict(loop.instructions.most_common()),
        "matrix_opcodes": dict(loop.matrix.most_common()),
        "matrix_dtype": loop.dtype,
        "a_operands": sorted(loop.a_operands),
        "matrix_flops": loop.matrix_flops,
        "matrix_cycles": loop.matrix_cycles,
        "generation_cycles": loop.generation_cycles,
        "generation_over_matrix": loop.ratio,
        "pipes": loop.pipes,
        "bound": loop.bound,
        "fraction_of_matrix_peak": loop.fraction,
        "unknown": dict(loop.unknown),
        "notes": loop.notes,
    }


def measure(cubins: Iterable[Cubin]) -> Iterator[Measured]:
    """Read each cubin; raises ValueError where one holds no such kernel, or several and no name was given."""
    for cubin in cubins:
        found = kernel_costs(
            cubin.cubin,
            function=cubin.function,
            warps=cubin.warps,
            shared=cubin.shared,
            flops_per_iteration=cubin.flops_per_iteration,
        )
        if len(found) != 1:
            names = ", ".join(kernel.name for kernel in found) or "none"
            raise ValueError(f"{cubin.key}: expected one kernel in the cubin, got {names}")
        if found[0].sm != cubin.arch:
            raise ValueError(f"{cubin.key}: expected code for sm_{cubin.arch}, got sm_{found[0].sm}")
        yield Measured(cubin, found[0])
