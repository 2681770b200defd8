"""The whole training step of a layer, read from machine code: forward, both gradients and the base's.

Every kernel is counted with all of its code: a loop of products as often as a block runs it, the rest once.
Everything is taken to overlap with everything inside a kernel and nothing between kernels, so a kernel takes
what its busiest pipe takes. The ratio is that, summed over the step's kernels, over the time of the step's
products alone at the dense peak. A count, not a measurement: no latency, no launch, no DRAM is in it.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arch import architecture
from .budget import BUDGETS
from .cost import KernelCost, LoopCost
from .measure import Cubin, measure
from .providers import Unavailable

BUDGET = BUDGETS / "step.json"
ROWS, GRID_SIZE, ORDER = 8192, 5, 3
WIDTHS = (512, 128)
DTYPES = ("bf16", "tf32", "strict fp32")
ARCHS = {"triton": (80, 90, 100), "cuda": (80, 89, 90, 120)}
PRODUCTS = {"strict fp32": 3}  # of TF32, for one of float32
_PASSES = {  # of the Triton kernels, then of the compiled ones
    "forward": ("dense_forward", "forward"),
    "input": ("dense_input", "input's gradient"),
    "weight": ("dense_backward", "base_gradient", "weights' gradient"),
}
_SLACK = 0.005  # by which a ratio may exceed its budget: figures are rounded


@dataclass(frozen=True)
class Kernel:
    """One kernel of a step, all of its blocks: SM cycles, and what it asks of L2."""

    name: str
    cycles: float  # of the busiest pipe
    apart: float  # were loops and the rest one after another, and not at once
    matrix: float  # of the products that are asked for, at the dense peak
    bound: str
    bytes: float  # of global memory, as loads and stores ask for them
    instructions: float  # of the matrix pipe
    l2: float | None  # share of its time for which L2 would be busy; None where its rate is not known

    @property
    def ratio(self) -> float | None:
        """Return cycles over matrix cycles, None of a kernel without products."""
        return self.cycles / self.matrix if self.matrix else None


@dataclass
class Step:
    """The kernels of one training step."""

    provider: str
    arch: int
    dtype: str
    width: int
    toolchain: str
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Return its name in the budget."""
        return f"{self.provider}/sm_{self.arch}/{self.dtype}/[{self.width},{self.width}]"

    @property
    def ratio(self) -> float:
        """Return the busiest pipes' time over that of the products."""
        return sum(k.cycles for k in self.kernels) / sum(k.matrix for k in self.kernels)

    @property
    def passes(self) -> dict[str, float]:
        """Return the ratio of each pass, where every kernel belongs to one alone."""
        found: dict[str, float] = {}
        for name, kernels in _PASSES.items():
            ours = [k for k in self.kernels if k.name in kernels]
            if ours:
                found[name] = sum(k.cycles for k in ours) / sum(k.matrix for k in ours)
        return found if len(found) == len(_PASSES) else {}

    @property
    def apart(self) -> float:
        """Return the ratio were the loops and the rest of a kernel one after another."""
        return sum(k.apart for k in self.kernels) / sum(k.matrix for k in self.kernels)


def parts_of(cost: KernelCost, turns: Sequence[int]) -> list[tuple[LoopCost, int]]:
    """Return each part of a kernel's code with how often a block runs it.

    Raises:
        ValueError: there are more or fewer loops of products than turns.
    """
    loops = [loop for loop in cost.loops if loop.matrix and not loop.whole]
    if len(loops) != len(turns):
        raise ValueError(f"{cost.name}: {len(loops)} loops of products, expected {len(turns)}")
    parts = list(zip(loops, turns, strict=True))
    others = [loop for loop in cost.loops if loop.whole or not loop.matrix]
    others += {id(loop.around): loop.around for loop in cost.loops if loop.around}.values()
    if cost.rest is not None:
        others.append(cost.rest)
    return parts + [(loop, 1) for loop in others]


def summed(
    name: str, cost: KernelCost, turns: Sequence[int], blocks: int, flops: float, dtype: str
) -> Kernel:
    """Return the figures of a launch whose products take `flops`.

    Raises:
        ValueError: the code does fewer products than that, so the turns cannot be right.
    """
    parts = parts_of(cost, turns)
    done = sum(loop.matrix_flops * times * blocks for loop, times in parts)
    unrolled = max(1, int(done / flops + 0.01)) if flops else 1  # the compiler made so many turns one
    if unrolled > 1:
        parts = [(loop, n / unrolled if loop.matrix and not loop.whole else n) for loop, n in parts]
    if done < 0.999 * flops:
        raise ValueError(f"{name}: its code does {done:.3g} FLOP, of {flops:.3g} that it is for")
    return launch(name, parts, cost.sm, blocks, flops, dtype)


def launch(
    name: str, parts: Sequence[tuple[LoopCost, float]], sm: int, blocks: float, flops: float, dtype: str
) -> Kernel:
    """Return the figures of a launch of `blocks`, each of which runs a part so many times."""
    arch = architecture(sm)
    pipes: Counter[str] = Counter()
    apart = moved = instructions = 0.0
    for loop, times in parts:
        for pipe, cycles in loop.pipes.items():
            pipes[pipe] += cycles * times * blocks
        apart += loop.cycles * times * blocks
        moved += loop.global_bytes * times * blocks
        instructions += matrix_instructions(loop) * times * blocks
    bound = max(pipes, key=lambda pipe: (pipes[pipe], pipe == "tensor"))
    matrix = flops / arch.matrix["bf16" if dtype in ("bf16", "fp16") else "tf32"]
    busy = moved / arch.l2_bytes / pipes[bound] if arch.l2_bytes else None
    return Kernel(name, pipes[bound], apart, matrix, bound, moved, instructions, busy)


def matrix_instructions(loop: LoopCost) -> float:
    """Return how many matrix instructions a block issues: of a warp, of four warps, or of one thread."""
    total = 0.0
    for opcode, times in loop.matrix.items():
        base = opcode.split(".", 1)[0]
        total += times * (
            1 if base.startswith("UTC") else loop.warps / 4 if base.endswith("GMMA") else loop.warps
        )
    return total


def triton_steps(archs: Iterable[int], dtypes: Iterable[str], widths: Iterable[int]) -> Iterator[Step]:
    """Yield the step of the Triton kernels for each of them; no GPU is needed.

    Raises:
        Unavailable: there is no Triton.
    """
    try:
        import torch
        import triton

        compiler = importlib.import_module("kan_kernels.backends.triton.compile_only")
    except ModuleNotFoundError as error:
        raise Unavailable(f"triton: {error}") from error
    for width in widths:
        for dtype in dtypes:
            number = torch.bfloat16 if dtype == "bf16" else torch.float32
            for arch in archs:
                step = Step("triton", arch, dtype, width, f"triton {triton.__version__}")
                launches = compiler.step(number, (ROWS, width, width), arch, dtype == "tf32")
                for launch in launches:
                    if launch.name in ("sum_parts", "uniform_table"):
                        continue  # no products, and little to move: rows of the batch are in neither
                    made = compiler.compile_launch(launch, arch)
                    cubin = Cubin(launch.name, dtype, arch, "", made.cubin, None, made.shared, made.num_warps)
                    (read,) = measure([cubin])
                    flops = 2.0 * ROWS * width * width * rows_of(launch) * PRODUCTS.get(dtype, 1)
                    facts = launch.turns(), launch.blocks, flops, dtype
                    step.kernels.append(summed(launch.name, read.cost, *facts))
                yield step


def rows_of(launch: Any) -> int:
    """Return the rows of an input, functions and base, that a launch multiplies."""
    if launch.name == "base_gradient":
        return 1
    functions, base = launch.constants["R"], int(launch.constants["BASE"] != 0)
    if launch.name == "dense_backward":
        return functions + (functions + base if launch.constants["ONE_PASS"] else 0)
    return functions + base


def load() -> dict[str, Any]:
    """Return the committed steps."""
    return json.loads(BUDGET.read_text()) if BUDGET.exists() else {"toolchains": {}, "steps": {}}


def check(budget: dict[str, Any], steps: Iterable[Step]) -> list[str]:
    """Return what is dearer than it was, a line each; other compilers than the budget's are not compared."""
    said = []
    for step in steps:
        if step.toolchain != budget["toolchains"].get(step.provider):
            continue
        entry = budget["steps"].get(step.key)
        if entry is None:
            said.append(f"{step.key}: not in the budget; --update-budget enters it")
        elif step.ratio > entry["ratio"] + _SLACK:
            said.append(f"{step.key}: {step.ratio:.3f} of the products' time, allowed {entry['ratio']:.3f}")
    return said


def write(steps: Sequence[Step]) -> None:
    """Write the budget anew for these steps; others stay."""
    budget = load()
    for step in steps:
        budget["toolchains"][step.provider] = step.toolchain
        kernels = [
            {
                "kernel": k.name,
                "ratio": None if k.ratio is None else round(k.ratio, 3),
                "share": round(k.cycles / sum(one.cycles for one in step.kernels), 3),
                "bound": k.bound,
                "l2_bytes": round(k.bytes / k.instructions) if k.instructions else None,
                "l2_busy": None if k.l2 is None else round(k.l2, 3),
            }
            for k in step.kernels
        ]
        budget["steps"][step.key] = {
            "ratio": round(step.ratio, 3),
            "apart": round(step.apart, 3),
            "passes": {name: round(ratio, 2) for name, ratio in step.passes.items()},
            "kernels": kernels,
        }
    lines = [f"    {json.dumps(key)}: {json.dumps(budget['steps'][key])}" for key in sorted(budget["steps"])]
    body = ",\n".join(lines)
    made = json.dumps(budget["toolchains"], sort_keys=True)
    BUDGET.write_text(f'{{\n  "toolchains": {made},\n  "steps": {{\n{body}\n  }}\n}}\n')


def page(budget: dict[str, Any]) -> str:
    """Return the table of the committed steps, in Markdown."""
    lines = [
        "| | step | kernel by kernel: ratio (bound by), bytes a matrix instruction, L2 busy |",
        "| :-- | --: | :-- |",
    ]
    for key, entry in sorted(budget["steps"].items()):
        said = []
        for k in entry["kernels"]:
            if k["ratio"] is None:
                continue
            l2 = "" if k["l2_busy"] is None else f", {k['l2_busy']:.0%}"
            said.append(f"`{k['kernel']}` {k['ratio']:.2f} ({k['bound']}), {k['l2_bytes']}{l2}")
        lines.append(f"| {key} | {entry['ratio']:.2f} | {'; '.join(said)} |")
    made = " and ".join(f"{name}: {version}" for name, version in sorted(budget["toolchains"].items()))
    return "\n".join([*lines, "", f"Compilers: {made}.", ""])
