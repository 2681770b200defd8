"""The hot loop of a kernel: instructions per pipe, matrix time, what bounds it.

All cycles are SM cycles for one iteration by all warps of one block, at a perfect overlap of everything with
everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import elf
from .arch import SHARED_BYTES, WARP, Architecture, architecture
from .flow import Flow, Loop
from .matrix import MatrixWork, is_matrix, matrix_work
from .pipes import GLOBAL, ISSUE_CYCLES, access_bytes, pipe_cycles
from .sass import Function, Instruction, read

ASSUMED_WARPS = 4
_FMAS = {"FFMA": 1, "FFMA2": 2, "HFMA2": 2, "DFMA": 1}
_WAIT_LENGTH = 4  # a loop of at most so many instructions around a barrier's try-wait is a wait, not work


@dataclass
class LoopCost:
    """One loop (or straight code, where the kernel has none), from address ``begin`` to ``end`` inclusive."""

    begin: int
    end: int
    warps: int
    instructions: Counter[str] = field(default_factory=Counter)  # opcode base -> instructions of one warp
    matrix: Counter[str] = field(default_factory=Counter)  # full matrix opcode -> instructions of one warp
    pipes: dict[str, float] = field(default_factory=lambda: {"issue": 0.0})
    unknown: Counter[str] = field(default_factory=Counter)
    dtype: str | None = None  # of most of the matrix work
    a_operands: set[str] = field(default_factory=set)
    matrix_flops: int = 0
    global_bytes: float = 0.0  # asked of L1 and L2 by loads and stores of global memory, by all warps
    matrix_cycles: float = 0.0  # at the dense peak of the architecture
    generation_cycles: float = 0.0  # issue slots of everything that is no matrix instruction
    notes: list[str] = field(default_factory=list)
    whole: bool = False  # no loop: all the code
    indices: list[int] = field(default_factory=list, repr=False)  # into the code, of what is around a loop
    around: LoopCost | None = None  # one turn of the loop that holds this one, without any inner loop

    @property
    def bound(self) -> str:
        """The pipe that is busy longest; the matrix pipe wins a tie."""
        return max(self.pipes, key=lambda pipe: (self.pipes[pipe], pipe == "tensor"))

    @property
    def cycles(self) -> float:
        return max(self.pipes.values())

    @property
    def fraction(self) -> float | None:
        """Of the dense matrix peak, at best; None without matrix work."""
        return self.matrix_cycles / self.cycles if self.matrix_cycles else None

    @property
    def ratio(self) -> float | None:
        """Generation time over matrix time: issue slots of the others over matrix cycles at the peak."""
        return self.generation_cycles / self.matrix_cycles if self.matrix_cycles else None

    def occupy(self, pipe: str, cycles: float) -> None:
        self.pipes[pipe] = self.pipes.get(pipe, 0.0) + cycles


@dataclass
class KernelCost:
    """One kernel. ``loops`` has the hot loop first; ``rest`` is what lies neither in them nor around them,
    counted once; ``spills`` counts loads and stores of local memory.
    """

    name: str
    sm: int
    warps: int
    registers: int
    shared: int
    stack: int
    spills: int
    loops: list[LoopCost]
    rest: LoopCost | None = None

    @property
    def hot(self) -> LoopCost:
        return self.loops[0]


def _count_matrix(cost: LoopCost, work: MatrixWork | None, arch: Architecture) -> bool:
    """Enter one matrix instruction; False where its work is not known."""
    times = 1 if work is not None and work.once else cost.warps
    cost.occupy("issue", ISSUE_CYCLES * times)
    if work is None:
        return False
    cost.a_operands.add(work.a_operand)
    if work.shared_bytes:
        cost.occupy("memory", work.shared_bytes * times / SHARED_BYTES)
    if work.flops is None or work.dtype not in arch.matrix:
        return False
    flops = work.flops * times
    cycles = flops / (arch.matrix[work.dtype] * (2 if work.sparse else 1))
    cost.matrix_flops += flops
    cost.matrix_cycles += cycles
    cost.occupy("tensor", cycles / (arch.mma_sync if work.kind == "mma.sync" else 1.0))
    return True


def count(
    code: Sequence[Instruction],
    indices: Sequence[int],
    arch: Architecture,
    warps: int,
    flops_per_iteration: int | None = None,
) -> LoopCost:
    """Count ``code[index]`` for each of the indices.

    ``flops_per_iteration``, of the whole block, stands in for tcgen05 instructions whose shape the code does
    not tell; without it they are counted as unknown.
    """
    cost = LoopCost(code[indices[0]].address, code[indices[-1]].address, warps)
    unread: list[Instruction] = []
    flops: Counter[str] = Counter()
    for index in indices:
        instruction = code[index]
        cost.instructions[instruction.base] += 1
        if is_matrix(instruction):
            cost.matrix[instruction.opcode] += 1
            work = matrix_work(code, index)
            if not _count_matrix(cost, work, arch):
                unread.append(instruction)
            elif work is not None and work.flops is not None:
                flops[work.dtype] += work.flops
            continue
        cost.occupy("issue", ISSUE_CYCLES * warps)
        cost.generation_cycles += ISSUE_CYCLES * warps
        used = pipe_cycles(instruction, arch)
        if used is None:
            cost.unknown[instruction.opcode] += 1
        for pipe, cycles in (used or {}).items():
            cost.occupy(pipe, cycles * warps)
        if instruction.base in GLOBAL and not instruction.never:
            cost.global_bytes += WARP * access_bytes(instruction) * warps
    cost.dtype = flops.most_common(1)[0][0] if flops else None
    if unread:
        _take_given_flops(cost, unread, arch, flops_per_iteration)
    if cost.pipes.get("tensor", 0.0) > cost.matrix_cycles:
        cost.notes.append(f"mma.sync reaches about {arch.mma_sync:.0%} of the matrix peak of sm_{arch.sm}")
    return cost


def _take_given_flops(
    cost: LoopCost, unread: list[Instruction], arch: Architecture, given: int | None
) -> None:
    """Matrix instructions whose work the code does not tell: take the caller's figure, or report them."""
    if given is None or any(not instruction.base.startswith("UTC") for instruction in unread):
        cost.unknown.update(instruction.opcode for instruction in unread)
        return
    cost.dtype = cost.dtype or "bf16"
    rest = max(0, given - cost.matrix_flops)
    cost.matrix_flops += rest
    cost.matrix_cycles += rest / arch.matrix[cost.dtype]
    cost.occupy("tensor", rest / arch.matrix[cost.dtype])
    cost.notes.append(
        f"matrix FLOPs as given by the caller, at the {cost.dtype} rate: the shape is in a descriptor"
    )


def _weight(flow: Flow, loop: Loop) -> tuple[int, int, int]:
    """How hot a loop is by what is in no inner one: matrix FLOPs, then multiply-adds, then instructions."""
    code = flow.function.instructions
    own = flow.indices(flow.own_blocks(loop))
    flops = 0
    for index in own:
        if is_matrix(code[index]):
            work = matrix_work(code, index)
            flops += work.flops if work is not None and work.flops else 1
    return flops, sum(_FMAS.get(code[index].base, 0) for index in own), len(own)


def _calls_subroutine(call: Instruction) -> bool:
    """A call of a named function; calls of a plain label are jumps that leave a loop."""
    return any(isinstance(target, str) and not target.startswith(".L") for target in call.targets)


def _notes(flow: Flow, loop: Loop) -> list[str]:
    """What the count of this loop takes for granted."""
    code = flow.function.instructions
    notes = []
    sometimes = len(flow.indices(flow.own_blocks(loop) - flow.every_time(loop)))
    if sometimes:
        notes.append(f"{sometimes} instructions counted that not every iteration, or not every warp, runs")
    inner = [flow.indices(flow.loops[child].blocks) for child in loop.children]
    work = [body for body in inner if len(body) > _WAIT_LENGTH or all(code[n].base != "SYNCS" for n in body)]
    if work:
        notes.append(f"{len(work)} inner loop(s) counted as if they ran once")
    calls = sum(code[n].base == "CALL" and _calls_subroutine(code[n]) for n in flow.indices(loop.blocks))
    if calls:
        notes.append(f"{calls} call(s) of subroutines whose instructions are not counted")
    if loop.parent is not None:
        outside = len(flow.indices(flow.loops[loop.parent].blocks - loop.blocks))
        notes.append(f"inside a loop with {outside} further instructions an iteration")
    return notes


def function_loops(
    function: Function, arch: Architecture, warps: int, flops_per_iteration: int | None = None
) -> list[LoopCost]:
    """The loops that hold matrix instructions, the one with the most matrix work first.

    Without matrix instructions in a loop: the one loop with the most multiply-adds. Without a loop: all the
    code.
    """
    flow, code = Flow(function), function.instructions
    weights = [(_weight(flow, loop), loop) for loop in flow.loops]
    weights.sort(key=lambda pair: pair[0], reverse=True)
    chosen = [loop for weight, loop in weights if weight[0] > 0] or [loop for _, loop in weights[:1]]
    costs = []
    around: dict[int, LoopCost] = {}
    for loop in chosen:
        cost = count(code, flow.indices(loop.blocks), arch, warps, flops_per_iteration)
        cost.notes += _notes(flow, loop)
        costs.append(cost)
        outer = None if loop.parent is None else flow.loops[loop.parent]
        if outer is None or outer in chosen:
            continue
        indices = flow.indices(outer.blocks.difference(*(one.blocks for one in chosen)))
        if loop.parent not in around and indices:
            around[loop.parent] = count(code, indices, arch, warps)
            around[loop.parent].indices = indices
        cost.around = around.get(loop.parent)
    if not costs:
        cost = count(code, range(len(code)), arch, warps, flops_per_iteration)
        cost.notes.append("no loop: the whole kernel is counted")
        cost.whole = True
        costs.append(cost)
    return costs


def rest_cost(function: Function, loops: list[LoopCost], arch: Architecture, warps: int) -> LoopCost | None:
    """Everything that lies in none of the loops, as if it ran once; loops without products among it too.

    Copies into shared memory ahead of a loop are left out: the loop's last turns issue as many fewer.
    """
    inside = [(loop.begin, loop.end) for loop in loops if not loop.whole]
    around = {n for loop in loops if loop.around for n in loop.around.indices}
    code = function.instructions
    indices = [
        n
        for n, one in enumerate(code)
        if one.base != "LDGSTS"
        and n not in around
        and not any(begin <= one.address <= end for begin, end in inside)
    ]
    return count(code, indices, arch, warps) if inside and indices else None


def kernel_costs(
    cubin: bytes,
    *,
    function: str | None = None,
    warps: int | None = None,
    shared: int | None = None,
    flops_per_iteration: int | None = None,
) -> list[KernelCost]:
    """The kernels of a cubin, or the one whose mangled name is ``function``.

    ``warps`` of a block: needed where the kernel does not fix its block size. ``shared``: all the shared
    memory of a launch in bytes, where the ELF knows only the static part. ``flops_per_iteration``: see
    count(). Raises ValueError for bytes that are no cubin and for architectures before sm_80.
    """
    found = elf.resources(cubin)
    sm = elf.architecture(cubin)
    arch = architecture(sm)
    kernels = []
    for code in read(cubin):
        if function is not None and code.name != function:
            continue
        resources = found.get(code.name, elf.Resources())
        here = warps or -(-resources.threads // WARP) or ASSUMED_WARPS
        loops = function_loops(code, arch, here, flops_per_iteration)
        if not warps and not resources.threads:
            for loop in loops:
                loop.notes.append(f"block size not fixed by the kernel: counted for {ASSUMED_WARPS} warps")
        static = max(0, resources.shared - arch.reserved_shared)
        of_launch = static if shared is None else shared
        counts = resources.registers, of_launch, resources.stack, code.spills
        rest = rest_cost(code, loops, arch, here)
        kernels.append(KernelCost(code.name, sm, here, *counts, loops, rest))
    return kernels
