"""Listings of machine code, written by hand."""

from __future__ import annotations

from tools.static_cost.sass import Function, parse


def listing(body: str, name: str = "kernel") -> Function:
    """A function from lines of `[label:]` and instructions; the addresses are added."""
    lines, address = [f'\t.section .text.{name},"ax",@progbits', f".text.{name}:"], 0
    for line in filter(None, (part.strip() for part in body.splitlines())):
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    (function,) = parse("\n".join(lines))
    return function


def loop_of(*body: str) -> str:
    """A loop with this body, a compare and a branch."""
    return "\n".join([".L_top:", *body, "ISETP.NE.AND P0, PT, R4, RZ, PT", "@P0 BRA `(.L_top)", "EXIT"])
