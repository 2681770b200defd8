"""What a cubin's ELF says of its kernels: registers, shared memory, stack, block size."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# attributes of the .nv.info sections; the names are those that nvdisasm prints
EIATTR_MAX_THREADS = 0x05
EIATTR_REQNTID = 0x10
EIATTR_FRAME_SIZE = 0x11
EIATTR_REGCOUNT = 0x2F
# a 16-bit length and that many bytes follow; in the other formats the value fills those 16 bits
EIFMT_SVAL = 0x04

EM_CUDA = 190


@dataclass
class Resources:
    """Of one kernel; ``shared``: the static part in bytes; ``threads``: 0 where no block size is fixed."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    threads: int = 0


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def _sections(elf: bytes) -> dict[str, list[tuple[bytes, int]]]:
    """name -> [(content, size)]; a section without content in the file (shared memory) has b''."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError(
            f"cubin: expected a little-endian 64-bit ELF, got a file that begins with {elf[:6]!r}"
        )
    machine = struct.unpack_from("<H", elf, 18)[0]
    if machine != EM_CUDA:
        raise ValueError(f"cubin: expected an ELF for CUDA (machine {EM_CUDA}), got machine {machine}")
    start = struct.unpack_from("<Q", elf, 40)[0]
    entry, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, start + entry * n) for n in range(count)]
    name_table = elf[headers[names][4] : headers[names][4] + headers[names][5]]
    no_bits = 8
    result: dict[str, list[tuple[bytes, int]]] = {}
    for header in headers:
        offset, size = header[4], header[5]
        content = b"" if header[1] == no_bits else elf[offset : offset + size]
        result.setdefault(_text(name_table, header[0]), []).append((content, size))
    return result


def _attributes(content: bytes) -> list[tuple[int, bytes]]:
    """[(attribute, value)] of a .nv.info section."""
    found, at = [], 0
    while at + 4 <= len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, at)
        at += 4
        if form == EIFMT_SVAL:
            found.append((attribute, content[at : at + size]))
            at += size
        else:
            found.append((attribute, content[at - 2 : at]))
    return found


def _symbols(sections: dict[str, list[tuple[bytes, int]]]) -> list[str]:
    if ".symtab" not in sections:
        return []
    names, table = sections[".strtab"][0][0], sections[".symtab"][0][0]
    return [_text(names, struct.unpack_from("<I", table, at)[0]) for at in range(0, len(table), 24)]


def architecture(elf: bytes) -> int:
    """The SM version a cubin was made for, as 90 for sm_90."""
    flags = struct.unpack_from("<I", elf, 48)[0]
    # old cubins hold the version in the low byte, new ones (ABI 8 and later) in the second
    return (flags >> 8) & 0xFF if elf[8] >= 8 else flags & 0xFF


def resources(elf: bytes) -> dict[str, Resources]:
    """mangled kernel name -> Resources; raises ValueError for a file that is no cubin."""
    sections = _sections(elf)
    symbols = _symbols(sections)
    prefix = ".text."
    kernels = {name[len(prefix) :]: Resources() for name in sections if name.startswith(prefix)}
    for content, _ in sections.get(".nv.info", []):
        for attribute, value in _attributes(content):
            if attribute not in (EIATTR_REGCOUNT, EIATTR_FRAME_SIZE):
                continue
            symbol, number = struct.unpack("<II", value)
            kernel = kernels.get(symbols[symbol])
            if kernel is not None and attribute == EIATTR_REGCOUNT:
                kernel.registers = number
            elif kernel is not None:
                kernel.stack = number
    for name, kernel in kernels.items():
        kernel.shared = sum(size for _, size in sections.get(".nv.shared." + name, []))
        for content, _ in sections.get(".nv.info." + name, []):
            for attribute, value in _attributes(content):
                if attribute in (EIATTR_REQNTID, EIATTR_MAX_THREADS):
                    x, y, z = struct.unpack("<III", value[:12])
                    kernel.threads = x * y * z
    return kernels
