"""Matrix instructions: what work an opcode names, and the dense rates of the architectures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .sass import Instruction

# bases by the width of their operands
_WARP = {"HMMA", "IMMA", "DMMA", "QMMA"}  # mma.sync: one warp
_GROUP = {"HGMMA", "IGMMA", "QGMMA"}  # wgmma: four warps issue it together
_THREAD = {"UTCHMMA", "UTCIMMA", "UTCQMMA"}  # tcgen05: one thread issues it for the block
_KNOWN = _WARP | _GROUP | _THREAD
# matrix instructions that no kernel of ours should have, and that this reader cannot measure
_UNREAD = {"BMMA", "OMMA", "BGMMA", "UTCOMMA", "UTCMXQMMA"}

_SHAPE = re.compile(r"^(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)$")
_WARP_SHAPES = {
    "884": (8, 8, 4),
    "1684": (16, 8, 4),
    "1688": (16, 8, 8),
    "8816": (8, 8, 16),
    "16816": (16, 8, 16),
    "16832": (16, 8, 32),
    "16864": (16, 8, 64),
}
_GROUP_WARPS = 4
# an operand row of a warp-group or tensor-memory instruction is 32 bytes long in every dense type
_ROW_BYTES = 32


@dataclass(frozen=True)
class MatrixWork:
    """The share of one issued instruction; FLOPs are 2 m n k, whether or not half of A is structured zeros.

    ``flops`` is None where the code does not say. ``once`` instructions are issued by one thread of a block,
    the others by every warp. ``shared_bytes`` is what the instruction itself reads from shared memory.
    ``a_operand`` is 'registers', 'shared' or 'tensor memory'.
    """

    kind: str
    dtype: str
    flops: int | None
    a_operand: str
    once: bool = False
    sparse: bool = False
    shared_bytes: float = 0.0


def is_matrix(instruction: Instruction) -> bool:
    """Whether the matrix pipe runs it. HFMA2.MMA is none: it is a half-precision FMA."""
    return instruction.base in _KNOWN or instruction.base in _UNREAD


def _dtype(instruction: Instruction) -> str:
    names = instruction.modifiers
    if instruction.base == "DMMA":
        return "fp64"
    if instruction.base.startswith("I"):
        return "int8"
    if instruction.base.startswith("Q"):
        return "fp8"
    return "bf16" if "BF16" in names else "tf32" if "TF32" in names else "fp16"


def matrix_work(code: Sequence[Instruction], index: int) -> MatrixWork | None:
    """The work of ``code[index]``; None for other instructions and for a shape that cannot be read."""
    instruction = code[index]
    if instruction.base in _WARP:
        return _warp_work(instruction)
    if instruction.base in _GROUP:
        return _group_work(instruction)
    if instruction.base in _THREAD:
        return _thread_work(code, index)
    return None


def _warp_work(instruction: Instruction) -> MatrixWork | None:
    shape = next((_WARP_SHAPES[m] for m in instruction.modifiers if m in _WARP_SHAPES), None)
    if shape is None:
        return None
    m, n, k = shape
    sparse = "SP" in instruction.modifiers
    return MatrixWork("mma.sync", _dtype(instruction), 2 * m * n * k, "registers", sparse=sparse)


def _group_work(instruction: Instruction) -> MatrixWork | None:
    shape = next((s for s in map(_SHAPE.match, instruction.modifiers) if s), None)
    if shape is None or len(instruction.operands) < 2:
        return None
    m, n, k = (int(shape[name]) for name in "mnk")
    in_shared = instruction.operands[1].startswith("gdesc")
    sparse = "SP" in instruction.modifiers
    read = _ROW_BYTES * (n * (2 if sparse else 1) + (m if in_shared else 0))
    flops, a_operand = 2 * m * n * k // _GROUP_WARPS, "shared" if in_shared else "registers"
    return MatrixWork("wgmma", _dtype(instruction), flops, a_operand, False, sparse, read / _GROUP_WARPS)


def _thread_work(code: Sequence[Instruction], index: int) -> MatrixWork:
    """tcgen05 keeps its shape in a descriptor: readable where a constant was moved there before."""
    instruction = code[index]
    in_shared = instruction.operands[0].startswith("gdesc")
    a_operand = "shared" if in_shared else "tensor memory"
    kind = {"UTCIMMA": "int8", "UTCQMMA": "fp8"}.get(instruction.base, "fp16")
    base = MatrixWork("tcgen05", kind, None, a_operand, True)
    descriptor = _descriptor(code, index)
    if descriptor is None:
        return base
    # PTX ISA, instruction descriptor of kinds f16, tf32, f8f6f4 and i8: type of A, N / 8, M / 16, sparsity
    n, m, sparse = (descriptor >> 17 & 0x3F) * 8, (descriptor >> 24 & 0x1F) * 16, bool(descriptor >> 2 & 1)
    if m not in (64, 128, 256) or n == 0:
        return base
    dtype = base.dtype
    if instruction.base == "UTCHMMA":
        formats = {0: "fp16", 1: "bf16", 2: "tf32"}
        if (descriptor >> 7 & 7) not in formats:
            return base
        dtype = formats[descriptor >> 7 & 7]
    k = {"tf32": 8, "fp16": 16, "bf16": 16}.get(dtype, 32) * (2 if sparse else 1)
    blocks = 2 if "2CTA" in instruction.modifiers else 1
    read = _ROW_BYTES * (n + (m // blocks if in_shared else 0))
    return MatrixWork("tcgen05", dtype, 2 * m * n * k // blocks, a_operand, True, sparse, read)


def _descriptor(code: Sequence[Instruction], index: int) -> int | None:
    register = next((o[6:-1] for o in code[index].operands if o.startswith("idesc[")), None)
    if register is None:
        return None
    for earlier in reversed(code[:index]):
        if earlier.operands and earlier.operands[0] == register:
            constant = earlier.operands[-1]
            return int(constant, 16) if earlier.base == "UMOV" and constant.startswith("0x") else None
    return None
