"""What the GPU backends' paths cost for a layer: cycles of one multiprocessor for each (row, input, output).

Counted from instructions and published rates, never fitted to a measurement: good for telling which path
has less to do, not how long it takes. Training does three times the forward everywhere, so that decides.

    dense    (padded / out) * (rows / R + make / 128 / tile)   rows: basis rows in blocks of 8, and the base's
    gather   fetched * each + make / 128 / min(out, 32)           fetched: k+1 coefficients, and the base's

A basis of full support takes all its functions on either path, and makes every one of them.

R is the multiply-adds of the matrix unit in a cycle, 128 the lanes that start an instruction in it, `make`
the instructions that evaluate a basis, shared by the `tile` outputs of a program. Triton's are here; the
compiled kernels answer for themselves, csrc/cuda/cost.cu. `make gpu` on a card compares both with its clock.
"""

from dataclasses import dataclass

import torch

from .._core import library
from .._core.bases import BASE_CODES, BASES
from .._core.checks import HALF_DTYPES
from .._core.problem import Problem

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# Dense multiply-adds of a cycle and multiprocessor in 16 bits; TF32 has half, three TF32 products a sixth.
_MATRIX_RATE = {8: 1024.0, 9: 2048.0, 10: 4096.0, 12: 1024.0}
# Instructions, read from the machine code: one evaluation with fixed polynomials, or by comparing with the
# knots; one block of 8 rows placed from it; one evaluation of the gather path.
_UNIFORM, _EXACT, _PLACE, _GATHER = 38.0, 170.0, 25.0, 220.0
# The base beside functions of full support: read from the compiled kernels (csrc/cuda/cost.cu) and taken for
# Triton's, as the cycles of a basis are.
_BASE = 60.0
_POINTERS = 10.0 / 128.0  # cycles for a coefficient gathered through pointers and L1
_FACTORS = {"dense": 1.0, "gather": 1.0}  # measured over counted, as `make gpu` prints it: not measured yet
FULL_SUPPORT_PATHS = ("matrix units", "multiply-adds")  # of the compiled kernels
ROWS = 4096  # what a choice that knows no batch size assumes


@dataclass(frozen=True)
class Cost:
    """A path, "dense", "gather" or one of FULL_SUPPORT_PATHS, and its cycles an edge."""

    path: str
    cycles: float

    def __str__(self) -> str:
        return f"{self.path}, {self.cycles:.4f} cycles an edge"


def gpu_costs(problem: Problem, major: int, tf32: bool) -> dict[str, Cost]:
    """The better path of each backend, {"native": ..., "triton": ...}, for a problem.

    major: of the compute capability. tf32: whether float32 products may run in TF32.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    paths = {"native": native_paths(problem, major), "triton": triton_paths(problem, major, tf32)}
    return {name: Cost(*min(costs.items(), key=lambda path: path[1])) for name, costs in paths.items()}


def triton_paths(problem: Problem, major: int, tf32: bool) -> dict[str, float]:
    """What each path of the Triton kernels costs that a problem can take."""
    half = problem.dtype in HALF_DTYPES
    rate = _MATRIX_RATE.get(major, 2048.0) * (1.0 if half else 0.5 if tf32 else 0.5 / 3.0)
    base, out = float(problem.base is not None), problem.out_features
    rows, local = problem.functions, BASES[problem.basis].local
    blocks = -(-rows // 8)
    fetched = (problem.order + 1.0 if local else rows) + base
    fetched *= 2.0 if problem.dtype == torch.float64 else 1.0
    make = _GATHER if local else rows * BASES[problem.basis].cycles + base * _BASE
    paths = {"gather": _FACTORS["gather"] * (fetched * _POINTERS + make / 128.0 / min(out, 32))}
    if not local and problem.dtype == torch.float16 and problem.derivative > 1:
        return paths  # operands could overflow
    if problem.dtype != torch.float64 and out > 16 and (problem.in_features >= 8 or not local):
        uniform = (half or tf32) and 1 <= problem.order <= 3 and problem.derivative < problem.order
        if local:
            make = (_UNIFORM if uniform else _EXACT) + _PLACE * blocks
        made = make / 128.0 / 128.0
        padded = -(-out // 64) * 64
        paths["dense"] = _FACTORS["dense"] * padded / out * ((8.0 * blocks + base) / rate + made)
    return paths


def native_paths(problem: Problem, major: int, batch: int = ROWS) -> dict[str, float]:
    """What each path of the compiled kernels costs that a problem with `batch` rows can take.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    names = ("dense", "gather") if BASES[problem.basis].local else FULL_SUPPORT_PATHS
    costs = _native_costs(*_shape(problem, batch), major, BASES[problem.basis].code)
    return {path: cost for path, cost in zip(names, costs, strict=True) if cost < float("inf")}


def native_path(problem: Problem, major: int, batch: int = ROWS) -> str:
    """The path that the compiled kernels take for a problem, in words with both costs.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    costs = native_paths(problem, major, batch)
    path = min(costs, key=lambda name: costs[name])
    said = ", ".join(f"{cycles:.4f} {name}" for name, cycles in costs.items())
    reason = torch.ops.kan_kernels.cuda_path_reason(*_shape(problem, batch), BASES[problem.basis].code)
    return f"{path} path; cycles an edge: {said}{'; ' if reason else ''}{reason}"


def _native_costs(*shape_major_and_basis: int) -> tuple[float, float]:
    if "cuda" not in library.DEVICES:
        raise RuntimeError("this library was built without CUDA kernels: KAN_KERNELS_CUDA=1 builds them")
    return torch.ops.kan_kernels.cuda_costs(*shape_major_and_basis)


def _shape(p: Problem, batch: int) -> tuple[int, ...]:
    sizes = batch, p.in_features, p.out_features, p.functions, p.order
    return *sizes, BASE_CODES[p.base], _DTYPES[p.dtype], p.derivative


def network_launches(batch: int, shapes: list[tuple[int, int, int]], order: int, base: str | None,
                     dtype: torch.dtype, biased: bool, major: int) -> str:  # fmt: skip
    """Return how many launches the library takes for a network on a GPU, in a phrase for `explain`.

    shapes: in, functions and out of each layer. major: of the compute capability.
    """
    widths = [shapes[0][0], *(out for _, _, out in shapes)]
    functions = [n for _, n, _ in shapes]
    reasons = torch.ops.kan_kernels.cuda_network_reason(
        batch, widths, functions, order, BASE_CODES[base], _DTYPES[dtype], biased, major
    )
    said = []
    for way, reason in zip(("forward", "backward"), reasons, strict=True):
        said.append(f"one launch {way}" if not reason else f"a launch or more a layer {way}, since {reason}")
    return "; ".join(said)
