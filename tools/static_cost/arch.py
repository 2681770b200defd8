"""The rates of an SM, by architecture, with their sources.

Lanes are thread results per clock and SM: CUDA C++ Programming Guide, "Throughput of Native Arithmetic
Instructions". Matrix rates are dense FLOP per clock and SM, derived from the peak rates of NVIDIA's
architecture papers as written beside each. A warp instruction of a pipe with n lanes keeps it busy for 32 / n
SM cycles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEDULERS = 4  # each issues one warp instruction a cycle, on every architecture from sm_70
WARP = 32
SHARED_BYTES = 128  # bytes a clock and SM, shared memory and L1 alike
TENSOR_MEMORY_BYTES = 512  # assumed: 32 lanes of 4 bytes for each quarter of an SM


@dataclass(frozen=True)
class Architecture:
    """One family. ``shared_limit`` is what a block may have, in bytes; ``reserved_shared`` what the ELF
    counts and no kernel gets; ``mma_sync`` the share of the matrix rate that mma.sync reaches;
    ``half_in_fma``: HFMA2 runs on the lanes that run FFMA.
    """

    sm: int
    name: str
    lanes: dict[str, float]
    matrix: dict[str, int]
    shared_limit: int
    source: str
    mma_sync: float = 1.0
    reserved_shared: int = 0
    half_in_fma: bool = True
    assumed: tuple[str, ...] = field(default=())
    l2_bytes: float | None = None  # that L2 gives in a clock, an SM's share; None where no rate is known


def _lanes(fma: int, half: int, bfloat: int, fp64: float) -> dict[str, float]:
    return {
        "fma": fma,  # FFMA, FADD, FMUL and the integer multiply-adds, which only half of it can do
        "imad": 64,
        "half": half,  # HFMA2: lanes of two halves
        "bfloat": bfloat,
        "alu": 64,  # logic, compare, select, min/max, integer add, shift, permute, pack
        "xu": 16,  # MUFU, conversions between integers and floats, FRND, POPC
        "fp64": fp64,
        "lsu": 32,  # addresses of loads and stores, shuffles
        "uniform": 64,  # assumed: one instruction in two cycles for each scheduler
        "control": 64,  # assumed: branches, barriers, waits
    }


_AMPERE = Architecture(
    sm=80,
    name="A100",
    lanes=_lanes(fma=64, half=128, bfloat=64, fp64=32),
    matrix={"bf16": 2048, "fp16": 2048, "tf32": 1024, "int8": 4096, "fp64": 128},
    shared_limit=163 * 1024,
    half_in_fma=False,
    l2_bytes=32.8,  # 5 TB/s
    source="A100 paper: 312 TFLOP/s dense bf16 / (108 SM x 1.41 GHz) = 2048; TF32 156, INT8 624, FP64 19.5",
)
_GA10X = Architecture(
    sm=86,
    name="GA10x",
    lanes=_lanes(fma=128, half=64, bfloat=64, fp64=2),
    matrix={"bf16": 1024, "fp16": 1024, "tf32": 512, "int8": 2048, "fp64": 4},
    shared_limit=99 * 1024,
    source="A10: 125 TFLOP/s dense bf16 / (72 SM x 1.695 GHz) = 1024; GeForce half of it into float32",
)
_ADA = Architecture(
    sm=89,
    name="AD10x",
    lanes=_lanes(fma=128, half=64, bfloat=64, fp64=2),
    matrix={"bf16": 1024, "fp16": 1024, "tf32": 512, "fp8": 2048, "int8": 2048, "fp64": 4},
    shared_limit=99 * 1024,
    source="RTX 6000 Ada: 364 TFLOP/s dense bf16 / (142 SM x 2.505 GHz) = 1024; GeForce half of it",
)
_HOPPER = Architecture(
    sm=90,
    name="H100 SXM",
    lanes=_lanes(fma=128, half=128, bfloat=128, fp64=64),
    matrix={"bf16": 4096, "fp16": 4096, "tf32": 2048, "fp8": 8192, "int8": 8192, "fp64": 256},
    shared_limit=227 * 1024,
    source="H100 paper: 989.4 TFLOP/s dense bf16 / (132 SM x 1.83 GHz) = 4096; TF32 half, FP8 twice, FP64 67",
    # Luo et al., arXiv 2402.13499: mma.sync stops at about 62% of the rate that wgmma reaches
    mma_sync=0.62,
    l2_bytes=22.8,  # 5.5 TB/s
    reserved_shared=1024,
)
_BLACKWELL = Architecture(
    sm=100,
    name="B200",
    lanes=_lanes(fma=128, half=128, bfloat=128, fp64=64),
    matrix={"bf16": 8192, "fp16": 8192, "tf32": 4096, "fp8": 16384, "int8": 16384, "fp64": 128},
    shared_limit=227 * 1024,
    source="B200: 2250 TFLOP/s dense bf16 / (148 SM x 1.85 GHz) = 8192; TF32 half, FP8 twice, FP64 40",
    reserved_shared=1024,
    assumed=("vector lanes as sm_90; mma.sync at the full rate, which is an upper bound",),
)
_RTX_BLACKWELL = Architecture(
    sm=120,
    name="RTX Blackwell",
    lanes=_lanes(fma=128, half=64, bfloat=64, fp64=2),
    matrix={"bf16": 1024, "fp16": 1024, "tf32": 512, "fp8": 2048, "int8": 2048, "fp64": 4},
    shared_limit=99 * 1024,
    source="RTX 5090: 419 TFLOP/s dense fp16 / (170 SM x 2.41 GHz) = 1024; half of it into float32",
    reserved_shared=1024,
    assumed=("vector lanes as sm_89",),
)

FAMILIES = {a.sm: a for a in (_AMPERE, _GA10X, _ADA, _HOPPER, _BLACKWELL, _RTX_BLACKWELL)}


def architecture(sm: int) -> Architecture:
    """The family whose rates serve ``sm``: itself, else the nearest older one; raises ValueError below 80."""
    older = [known for known in FAMILIES if known <= sm]
    if not older:
        raise ValueError(f"arch: got {sm}; this reader knows sm_80 and later")
    return FAMILIES[max(older)]
