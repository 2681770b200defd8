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
        named = ("kernel", "dtype", "arch", "options", "toolchain")
        derived = ("bound", "cycles", "fraction", "ratio")

        def plain(loop: LoopCost) -> dict[str, Any]:
            more = {name: getattr(loop, name) for name in derived}
            return {**vars(loop), **more, "a_operands": sorted(loop.a_operands)}

        cost = self.cost
        parts = {
            "loops": [plain(loop) for loop in cost.loops],
            "rest": None if cost.rest is None else plain(cost.rest),
        }
        source = {name: getattr(self.source, name) for name in named}
        return {"key": self.key, **source, **vars(cost), **parts}


def measure(cubins: Iterable[Cubin]) -> Iterator[Measured]:
    """Read each cubin; raises ValueError where one holds no such kernel, or several and no name was given."""
    for cubin in cubins:
        named = ("function", "warps", "shared", "flops_per_iteration")
        found = kernel_costs(cubin.cubin, **{name: getattr(cubin, name) for name in named})
        if len(found) != 1:
            names = ", ".join(kernel.name for kernel in found) or "none"
            raise ValueError(f"{cubin.key}: expected one kernel in the cubin, got {names}")
        if found[0].sm != cubin.arch:
            raise ValueError(f"{cubin.key}: expected code for sm_{cubin.arch}, got sm_{found[0].sm}")
        yield Measured(cubin, found[0])
