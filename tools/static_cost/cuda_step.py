"""The training step of the compiled kernels, by the tiles that the library takes for a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cost import KernelCost, LoopCost
from .measure import measure
from .providers import Selection, Unavailable, cuda_cubins
from .step import PRODUCTS, ROWS, Kernel, Step, launch

_OPERANDS = {"bf16": "HalfMatrix<true>", "tf32": "FloatMatrix<false>", "strict fp32": "FloatMatrix<true>"}
_FUNCTIONS, _BASE = 8, 1  # rows of an input that are multiplied
_BLOCKS = 264  # parts of the batch until there are so many, csrc/cuda/blocking.h


@dataclass(frozen=True)
class Tile:
    """How a pass is cut, csrc/cuda/dense/: blocks, and inner turns for one of the loop around them."""

    name: str  # of the pass
    kernel: str
    last: int  # the template's last argument
    blocks: int
    inner: int


def tiles(dtype: str, width: int) -> tuple[Tile, Tile, Tile]:
    """Return forward, the input's gradient and the weights' gradient of a [width, width] layer."""
    strict = dtype == "strict fp32"
    rows, columns = (64, 64) if strict else (128, 128)
    forward = Tile(
        "forward", "dense_forward_kernel", columns // 8,
        ROWS // rows * -(-width // columns), 4 if strict else 8,
    )  # fmt: skip
    inputs = Tile("input's gradient", "dense_input_kernel", rows // 32, ROWS // rows * -(-width // 32), 2)
    outputs = 256 if not strict and -(-width // 128) % 2 == 0 else 128
    blocks = -(-width // 16) * -(-width // outputs)
    depth = 32 if outputs == 128 else 16  # rows of a step in 32 bits, of which a turn takes 8
    weights = Tile(
        "weights' gradient", "dense_weight_kernel", outputs // 32, blocks * -(-_BLOCKS // blocks), depth // 8
    )
    return forward, inputs, weights


def cuda_steps(
    archs: Iterable[int], dtypes: Iterable[str], widths: Iterable[int], library: Path
) -> Iterator[Step]:
    """Yield the step of the compiled kernels, for those architectures that a library has.

    Knots are uniform and rows are whole 16-byte pieces, but code for other layers that lies inside of a loop
    counts too.

    Raises:
        Unavailable: the library has none of them.
    """
    wanted = list(archs)
    names = [tile.kernel for tile in tiles("bf16", 128)]
    found = {
        (one.source.arch, one.source.kernel, one.source.options): one
        for one in measure(cuda_cubins(Selection(wanted, names, library=library)))
    }
    if not found:
        raise Unavailable(f"cuda: {library.name} has no code for {', '.join(f'sm_{a}' for a in wanted)}")
    for arch in sorted({arch for arch, _, _ in found}):
        for width in widths:
            for dtype in dtypes:
                step = Step("cuda", arch, dtype, width, "")
                for tile in tiles(dtype, width):
                    one = found[arch, tile.kernel, f"{_OPERANDS[dtype]},3,{tile.last}"]
                    step.toolchain = one.source.toolchain
                    step.kernels.append(_launch(tile, one.cost, dtype, width))
                yield step


def _launch(tile: Tile, cost: KernelCost, dtype: str, width: int) -> Kernel:
    """The figures of one pass: its loops as often as its products take, the rest once a block."""
    products = 2.0 * ROWS * width**2 * PRODUCTS.get(dtype, 1)
    loops = [loop for loop in cost.loops if loop.matrix]
    if tile.name == "forward":  # one loop for the splines, the cheapest, and one for the base
        base = max(loops, key=_exponentials)
        spline = min((loop for loop in loops if loop is not base), key=lambda loop: loop.cycles)
        shares = [(spline, products * _FUNCTIONS), (base, products * _BASE)]
    else:
        shares = [(loops[0], products * (_FUNCTIONS + _BASE))]
    parts: list[tuple[LoopCost, float]] = []
    for loop, flops in shares:
        turns = flops / loop.matrix_flops / tile.blocks
        parts.append((loop, turns))
        if loop.around is not None:
            parts.append((loop.around, turns / tile.inner))
    if cost.rest is not None:
        parts.append((cost.rest, 1.0))
    return launch(tile.name, parts, cost.sm, tile.blocks, products * (_FUNCTIONS + _BASE), dtype)


def _exponentials(loop: LoopCost) -> float:
    return sum(one.pipes.get("xu", 0.0) for one in (loop, loop.around) if one is not None)
