"""Disassembly to instructions: address, predicate, opcode with its modifiers, operands, branch targets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from .tools import disassemble

_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]+)\*/\s+\{?\s*"
    r"(?:@(?P<predicate>!?U?P[0-9T]+)\s+)?"
    r"(?P<opcode>[A-Z][A-Za-z0-9_.]*)\s*(?P<operands>.*?)\s*\}?;"
)
_LABEL = re.compile(r"^(?P<name>[.$\w]+):\s*$")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(?P<name>[^\s,]+),")
_TARGET = re.compile(r"`\((?P<label>[^)]+)\)")
_TARGETS = re.compile(r"BRANCH_TARGETS\s+(?P<labels>[^\"*]+)")
_PREDICATE = re.compile(r"!?U?P[0-9T]$")

BRANCHES = {"BRA", "JMP", "BRX", "JMX", "CALL", "BRXU"}
ENDS = {"EXIT", "RET", "KILL"}


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. ``targets`` holds labels, or addresses where the disassembly has none."""

    address: int
    opcode: str
    operands: tuple[str, ...] = ()
    predicate: str | None = None
    targets: tuple[str | int, ...] = ()

    @property
    def base(self) -> str:
        return self.opcode.split(".", 1)[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def never(self) -> bool:
        """Issued, but predicated off: the compiler's way of waiting for a memory pipe."""
        return self.predicate in ("!PT", "!UPT")

    @property
    def conditional(self) -> bool:
        """A branch that may fall through."""
        if self.predicate not in (None, "PT", "UPT"):
            return True
        # uniform branches carry their predicate as an operand: BRA.U !UP0, `(.L_x_3)
        return any(_PREDICATE.match(operand) and operand not in ("PT", "UPT") for operand in self.operands)


@dataclass
class Function:
    """The code of one section ``.text.NAME``; a label stands before the instruction of that index."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def index_of(self, target: str | int) -> int | None:
        """The index of a branch target, None where it lies in another function."""
        if isinstance(target, str):
            return self.labels.get(target)
        for index, instruction in enumerate(self.instructions):
            if instruction.address == target:
                return index
        return None

    def count(self, *bases: str) -> int:
        return sum(instruction.base in bases for instruction in self.instructions)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: spilled registers, or arrays indexed at run time."""
        return self.count("STL", "LDL")


def _targets(opcode: str, operands: str) -> tuple[str | int, ...]:
    if opcode.split(".", 1)[0] not in BRANCHES:
        return ()
    listed = _TARGETS.search(operands)
    if listed:
        return tuple(label.strip() for label in listed["labels"].split(",") if label.strip())
    label = _TARGET.search(operands)
    if label:
        return (label["label"],)
    last = operands.split(",")[-1].strip()
    return (int(last, 16),) if last.startswith("0x") else ()


def parse_line(line: str) -> Instruction | None:
    """The instruction on a line of disassembly, or None."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    operands = match["operands"]
    return Instruction(
        address=int(match["address"], 16),
        opcode=match["opcode"],
        operands=tuple(part.strip() for part in operands.split(",")) if operands else (),
        predicate=match["predicate"],
        targets=_targets(match["opcode"], operands),
    )


def parse(text: str) -> list[Function]:
    """The functions of an ``nvdisasm -c`` listing; raises ValueError when it holds no instruction at all."""
    functions: list[Function] = []
    for line in text.splitlines():
        section = _SECTION.match(line)
        if section:
            functions.append(Function(section["name"]))
            continue
        if not functions:
            continue
        current = functions[-1]
        instruction = parse_line(line)
        if instruction:
            current.instructions.append(instruction)
            continue
        label = _LABEL.match(line)
        if label:
            current.labels[label["name"]] = len(current.instructions)
    functions = [function for function in functions if function.instructions]
    if not functions:
        raise ValueError("disassembly: no instruction found; expected the output of nvdisasm -c")
    return functions


@lru_cache(maxsize=2)
def read(cubin: bytes) -> list[Function]:
    """Disassemble a cubin; an empty list where it carries no code (nvcc adds such cubins to libraries).

    Remembers the last cubins, whose kernels are asked for one by one.
    """
    text = disassemble(cubin)
    return parse(text) if ".text." in text else []
