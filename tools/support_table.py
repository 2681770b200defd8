"""The support table of docs/support.md: what each backend's `can_run` says of ops, bases and dtypes.

    python -m tools.support_table [--check]

The answers are those of a build with all kernels on a machine that has every device, so that the page does
not depend on where it is written: what this machine lacks is pretended to be there, and nothing else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.readme import refresh
from kan_kernels._core import cuda_support, library
from kan_kernels._core.bases import BASES, MAX_DERIVATIVE, MAX_SPLINE_ORDER
from kan_kernels._core.problem import COMPOSED, FAMILIES, OPS, Problem, bases_of
from kan_kernels.backends import BACKENDS, native, triton

ROOT = Path(__file__).absolute().parent.parent
PAGE = ROOT / "docs" / "support.md"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLACES = (  # heading, backend, device, whether the GPU is AMD's
    ("`native`, CPU", "native", "cpu", False),
    ("`native`, CUDA", "native", "cuda", False),
    ("`triton`, CUDA", "triton", "cuda", False),
    ("`triton`, ROCm", "triton", "cuda", True),
    ("`reference`, any", "reference", "cpu", False),
)
_IMPL = re.compile(r'm\.impl\("(\w+)"|register_(\w+)<')


def kernels() -> dict[str, tuple[str, ...]]:
    """Return the devices for which csrc/ops registers a kernel of each op."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc" / "ops").glob("*.*"))]
    families = {}
    for text in texts:
        for name, body in re.findall(r"^void register_(\w+)\(Library& m\) \{\n(.*?)^\}", text, re.M | re.S):
            families[name] = set(re.findall(r'm\.impl\("(\w+)"', body))
    found: dict[str, set[str]] = {"cpu": set(), "cuda": set()}
    for text in texts:
        for key, body in re.findall(
            r"^STABLE_TORCH_LIBRARY_IMPL\(kan_kernels, (CPU|CUDA), m\) \{(.*?)^\}", text, re.M | re.S
        ):
            for op, family in _IMPL.findall(body):
                found[key.lower()] |= families[family] if family else {op}
    return {op: tuple(device for device in found if op in found[device]) for op in OPS}


@contextmanager
def every_device(amd: bool) -> Iterator[None]:
    """Have the backends answer as in a build with all kernels, on a machine with such a GPU."""
    with ExitStack() as stack:
        for owner, name, value in (
            (library, "LOAD_ERROR", None),
            (library, "DEVICES", ("cpu", "cuda")),
            (native, "_DEVICES", kernels()),
            (library, "OFF", []),
            (cuda_support, "why_not", lambda index=None: None),
            (triton, "_INSTALLED", True),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "get_device_capability", lambda index=None: (9, 0)),
            (torch.version, "hip", "7.0" if amd else None),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


def problem(op: str, basis: str, device: str) -> Problem:
    """Return an ordinary problem of an op: few features, 8 functions, float32."""
    order = 3 if BASES[basis].local else 0
    return Problem(device, torch.float32, torch.float32, 4, 4, 8, order, basis=basis, op=op)


def dtypes(name: str, asked: Problem) -> list[torch.dtype]:
    """Return the dtypes of weights in which a backend runs this."""
    return [d for d in DTYPES if BACKENDS[name].can_run(replace(asked, dtype=d, x_dtype=d)) is None]


def highest(name: str, asked: Problem) -> str:
    """Return the highest derivative of the basis that a backend's kernels take, in words."""
    able = [
        m for m in range(MAX_DERIVATIVE + 2) if BACKENDS[name].can_run(replace(asked, derivative=m)) is None
    ]
    if able != list(range(len(able))):
        raise AssertionError(
            f"{name} takes the derivatives {able} of {asked}: the table has no words for that"
        )
    return "any m" if len(able) == MAX_DERIVATIVE + 2 else f"m ≤ {able[-1]}"


def cell(name: str, asked: Problem) -> str:
    """Return what stands in the table for an op and a basis on a backend."""
    have = dtypes(name, asked)
    if not have:
        if asked.op in COMPOSED and BACKENDS[name].can_run(replace(asked, op="kan_linear")) is None:
            return "composed"
        return "-"
    lacking = [str(d).removeprefix("torch.") for d in DTYPES if d not in have]
    said = "all" if not lacking else f"all but {' and '.join(lacking)}"
    if len(lacking) > 1:
        said = ", ".join(str(d).removeprefix("torch.") for d in have)
    return f"{said}; {highest(name, asked)}" if asked.op in FAMILIES else said


def reasons() -> list[str]:
    """Return what the backends answer where some dtype or basis is left out, each once."""
    found: dict[str, None] = {}
    for heading, name, device, amd in PLACES:
        with every_device(amd):
            for op in OPS:
                for basis in bases_of(op):
                    for dtype in DTYPES:
                        asked = replace(problem(op, basis, device), dtype=dtype, x_dtype=dtype)
                        answer = BACKENDS[name].can_run(asked)
                        if answer is not None and "has no kernel of" not in answer:
                            found[f"- `{op}`, {heading}: {answer}"] = None
    return list(found)


def limits() -> list[str]:
    """Return a table of how large the functions and the order of each basis may be."""
    lines = ["| basis | functions in the fused kernels | order |", "| :-- | :-- | :-- |"]
    for name, basis in BASES.items():
        with every_device(False):
            asked = problem("kan_linear", name, "cpu")
            most = basis.most
            if most is not None:
                over = native.can_run(replace(asked, functions=most + 1))
                if native.can_run(replace(asked, functions=most)) is not None or over is None:
                    raise AssertionError(f"{name}: {most} functions are not the limit")
            order = "-"
            if basis.local:
                orders = [
                    k for k in range(MAX_SPLINE_ORDER + 2) if native.can_run(replace(asked, order=k)) is None
                ]
                order = f"{orders[0]} to {orders[-1]}"
        count = "any number" if most is None else f"1 to {most}" + (", even" if basis.even else "")
        lines.append(f"| `{name}` | {count} | {order} |")
    return lines


def block() -> str:
    """Return the Markdown between the markers of the page."""
    heads = [heading for heading, *_ in PLACES]
    lines = [f"| op | basis | {' | '.join(heads)} |", "| :-- | :-- |" + " :-- |" * len(heads)]
    for op in OPS:
        for basis in bases_of(op):
            cells = []
            for _, name, device, amd in PLACES:
                with every_device(amd):
                    cells.append(cell(name, problem(op, basis, device)))
            lines.append(f"| `{op}` | `{basis}` | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            "What the backends answer where only a dtype or a basis is missing:",
            "",
            *reasons(),
            "",
            *limits(),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="write the table of docs/support.md")
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    return refresh(PAGE, block(), parser.parse_args().check, "python -m tools.support_table", "support")


if __name__ == "__main__":
    sys.exit(main())
