"""What the GPU backends' paths cost for a layer: cycles of one multiprocessor for each (row, input, output).

Counted from instructions and published rates, never fitted to a measurement: good for telling which path
has less to do, not how long it takes. Training does three times the forward everywhere, so that decides.

    dense    (padded / out) * (rows / R + make / 128 / tile)   rows: basis rows in blocks of 8, and the base's
    gather   fetched * each + make / 128 / min(out, 32)           fetched: k+1 coefficients, and the base's

R is the multiply-adds of the matrix unit in a cycle, 128 the lanes that start an instruction in it, `make`
the instructions that evaluate a basis, shared by the `tile` outputs of a program.
"""

from dataclasses import dataclass

import torch

from . import ops
from .checks import HALF_DTYPES
from .contract import BASE_CODES

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# Dense multiply-adds of a cycle and multiprocessor in 16 bits; TF32 has half, three TF32 products a sixth.
# mma.sync (the compiled kernels) reaches about 0.62 of it where warp groups have instructions of their own.
_MATRIX_RATE = {8: 1024.0, 9: 2048.0, 10: 4096.0, 12: 1024.0}
_MMA_SYNC = {9: 0.62, 10: 0.31}
# Instructions, read from the machine code: one evaluation with fixed polynomials, or by comparing with the
# knots; one block of 8 rows placed from it; one evaluation of the gather paths.
_UNIFORM, _EXACT, _COMPILED, _PLACE, _GATHER = 38.0, 170.0, 110.0, 25.0, 220.0
# Cycles for a gathered coefficient: from shared memory without bank conflicts, or through pointers and L1.
_SHARED, _POINTERS = 1.5 / 32.0, 10.0 / 128.0


@dataclass(frozen=True)
class Cost:
    """A backend's better path, "dense" or "gather", and its cycles an edge."""

    path: str
    cycles: float

    def __str__(self) -> str:
        return f"{self.path}, {self.cycles:.4f} cycles an edge"


def gpu_costs(case, major: int, tf32: bool) -> dict[str, Cost]:
    """{"native": ..., "triton": ...} for a `dispatch.Case`.

    major: of the compute capability. tf32: whether float32 products may run in TF32.
    """
    half = case.dtype in HALF_DTYPES
    rate = _MATRIX_RATE.get(major, 2048.0) * (1.0 if half else 0.5 if tf32 else 0.5 / 3.0)
    rows, base = case.grid_size + case.spline_order, float(case.base is not None)
    blocks, out = -(-rows // 8), case.out_features

    def dense(rate: float, make: float, tile: int) -> float:
        padded = -(-out // 64) * 64
        return padded / out * ((8.0 * blocks + base) / rate + (make + _PLACE * blocks) / 128.0 / tile)

    def gather(coefficient: float) -> float:
        fetched = case.spline_order + 1.0 + base
        width = 2.0 if case.dtype == torch.float64 else 1.0
        return fetched * coefficient * width + _GATHER / 128.0 / min(out, 32)

    native, triton = {"gather": gather(_SHARED)}, {"gather": gather(_POINTERS)}
    if case.dtype != torch.float64 and out > 16 and case.in_features >= 8:
        reduced = half or tf32
        uniform = reduced and 1 <= case.spline_order <= 3 and case.derivative < case.spline_order
        triton["dense"] = dense(rate, _UNIFORM if uniform else _EXACT, 128)
        if 1 <= case.spline_order <= 3 and rows + case.spline_order + 1 <= 96:
            slower = _MMA_SYNC.get(major, 1.0)
            native["dense"] = dense(rate * slower, _COMPILED, 128 if half and out > 64 else 64)
    best = {"native": native, "triton": triton}
    return {name: Cost(*min(paths.items(), key=lambda path: path[1])) for name, paths in best.items()}


def cuda_path(case, batch: int) -> str:
    """The path of the compiled kernels for a `dispatch.Case`, from their own model, csrc/cuda/cost.cu.

    "dense" or "gather", what both would cost and what rules one out.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    if "cuda" not in ops.DEVICES:
        raise RuntimeError("this library was built without CUDA kernels: KAN_KERNELS_CUDA=1 builds them")
    return torch.ops.kan_kernels.cuda_path(
        batch, case.in_features, case.out_features, case.grid_size, case.spline_order, BASE_CODES[case.base],
        _DTYPES[case.dtype], case.derivative,
    )  # fmt: skip
