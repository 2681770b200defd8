"""Which pipe an instruction keeps busy, and for how many SM cycles."""

from __future__ import annotations

from .arch import SCHEDULERS, SHARED_BYTES, TENSOR_MEMORY_BYTES, WARP, Architecture
from .matrix import is_matrix
from .sass import Instruction

ISSUE_CYCLES = 1 / SCHEDULERS

# opcode bases by pipe; an opcode in no set is reported as unknown
_BASES: dict[str, str] = {
    "fma": "FFMA FADD FMUL FSWZADD FFMA2 FADD2 FMUL2 FFMA32I FADD32I FMUL32I",
    "imad": "IMAD IMUL IDP IMUL32I IMAD32I",
    "half": "HFMA2 HADD2 HMUL2 HFMA2_32I HADD2_32I HMUL2_32I",
    "alu": (
        "LOP3 LOP PLOP3 SEL FSEL DSEL ISETP FSETP FSET ISET FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 VIADDMNMX "
        "VIADD IADD3 IADD IADD32I IADD2 LEA SHF SHL SHR BMSK SGXT PRMT IABS MOV MOV32I CS2R P2R R2P F2FP "
        "F2IP I2IP I2FP VABSDIFF VABSDIFF4 ISCADD HSETP2 HSET2 HMNMX2 VHMNMX LOP32I VOTE FCHK MOVM "
        "VIMNMX2"
    ),
    "xu": "MUFU F2I I2F FRND F2F POPC FLO BREV REDUX CREDUX MATCH",
    "fp64": "DFMA DADD DMUL DSETP DMNMX",
    "shared": "LDS STS LDSM STSM ATOMS LDGSTS",
    "global": "LDG STG LD ST LDL STL ATOM ATOMG RED REDG",
    "lsu": "SHFL",
    "constant": "LDC",
    "uniform": (
        "UMOV UIADD3 ULOP3 USHF ULEA USEL UIMAD UISETP ULDC UFLO UPOPC UPRMT USGXT UBMSK UP2UR UPLOP3 "
        "R2UR UR2UP UIMNMX UVIMNMX UVIADD UBREV USETP UFMUL UFADD UFFMA UFSETP UFSEL UF2F UI2F UF2I UI2FP "
        "UF2FP UFMNMX UIABS ULDCU LDCU VOTEU UCLEA UISCADD UVOTE UFRND UMUFU UREDGR UIADD"
    ),
    "control": (
        "BRA BRX BRXU JMP JMX CALL RET EXIT KILL BPT NOP NANOSLEEP YIELD WARPSYNC BSSY BSYNC BREAK BMOV "
        "BAR B2R R2B DEPBAR LDGDEPBAR MEMBAR ERRBAR FENCE CCTL CCTLL CCTLT WARPGROUP WARPGROUPSET SYNCS "
        "ARRIVES ELECT ENDCOLLECTIVE PREEXIT ACQBULK ACQSHMINIT S2R S2UR LEPC GETLMEMBASE SETLMEMBASE "
        "SETCTAID RPCMOV USETMAXREG USETSHMSZ UCGABAR_ARV UCGABAR_WAIT UTCBAR UTCATOMSWS UVIRTCOUNT "
        "UTCSHIFT UGETNEXTWORKID CGAERRBAR PMTRIG QSPC PLOP UBLKCP UBLKPF UBLKRED UTMALDG UTMASTG "
        "UTMAREDG UTMAPF UTMACCTL UTMACMDFLUSH UTCCP"
    ),
    "tensor memory": "LDTM STTM",
}
GLOBAL = {"LDG", "STG", "LD", "ST", "LDGSTS", "ATOM", "ATOMG", "RED", "REDG"}  # move bytes of global memory
_PIPE = {base: pipe for pipe, bases in _BASES.items() for base in bases.split()}

# the order of the tables
PIPES = (
    *("tensor", "issue", "fma", "imad", "half", "alu", "xu"),
    *("fp64", "lsu", "memory", "tensor memory", "uniform", "control"),
)


def access_bytes(instruction: Instruction) -> int:
    """Bytes a thread moves, from the width in the modifiers; 4 where none is written."""
    widths = {"128": 16, "256": 32, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
    return next((widths[m] for m in instruction.modifiers if m in widths), 4)


def _fragment_bytes(instruction: Instruction) -> int:
    """Bytes a warp moves with ldmatrix or stmatrix: 8 x 8 matrices of 16 bits."""
    count = next((int(m) for m in reversed(instruction.modifiers) if m in ("2", "4")), 1)
    return 128 * count


def _repeats(instruction: Instruction) -> int:
    return next((int(m[1:]) for m in instruction.modifiers if m[0] == "x" and m[1:].isdigit()), 1)


def pipe_cycles(instruction: Instruction, arch: Architecture) -> dict[str, float] | None:
    """pipe -> SM cycles that one warp instruction keeps it busy, the issue slot aside.

    An empty dict: it costs its issue slot alone. None: the opcode is not known. Matrix instructions are
    cost.py's.
    """
    if is_matrix(instruction):
        return {}
    pipe = _PIPE.get(instruction.base)
    if pipe is None:
        return None
    if instruction.never:
        return {}

    def lanes(name: str) -> float:
        return WARP / arch.lanes[name]

    if pipe == "fma":
        return {"fma": lanes("fma") * (2 if instruction.base.endswith("2") else 1)}
    if pipe == "imad":
        return {"imad": lanes("imad"), "fma": lanes("fma")}
    if pipe == "half":
        bfloat = any(m.startswith("BF16") for m in instruction.modifiers)
        used = {"half": lanes("bfloat" if bfloat else "half")}
        return {**used, "fma": lanes("fma")} if arch.half_in_fma else used
    if pipe in ("shared", "global"):
        matrices = instruction.base in ("LDSM", "STSM")
        moved = _fragment_bytes(instruction) if matrices else WARP * access_bytes(instruction)
        return {"lsu": lanes("lsu"), "memory": max(1.0, moved / SHARED_BYTES)}
    if pipe == "tensor memory":
        return {"tensor memory": WARP * 4 * _repeats(instruction) / TENSOR_MEMORY_BYTES}
    if pipe == "constant":
        return {"lsu": lanes("lsu")}
    return {pipe: lanes(pipe)}
