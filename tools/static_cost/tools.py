"""NVIDIA's binary utilities: where they are, and how they are called."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tools.extras import find_program


class ToolError(RuntimeError):
    """One of the tools failed; the message holds what it said."""


class MissingTool(ToolError):
    """A program of the CUDA toolkit is not on this machine; the message says what to install."""


@cache
def find_tool(name: str) -> str:
    """Return the path of ``nvdisasm``, ``cuobjdump`` or the like; raises MissingTool."""
    # Triton's own first: they are as new as the code that Triton makes
    triton = importlib.util.find_spec("triton")
    packages = (triton.submodule_search_locations or []) if triton is not None else []
    path = find_program(name, [f"{package}/backends/nvidia/bin" for package in packages])
    if path is None:
        raise MissingTool(
            f"{name} was found neither in Triton's wheel, nor in CUDA_HOME, nor on PATH: "
            "install triton (its wheel carries it) or the CUDA toolkit's binary utilities"
        )
    return path


def run_tool(name: str, *arguments: str, cwd: str | None = None) -> str:
    """Standard output of the tool; raises ToolError with what it said when it fails."""
    done = subprocess.run([find_tool(name), *arguments], capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise ToolError(f"{name} {' '.join(arguments)} failed: {said}")
    return done.stdout


def disassemble(cubin: bytes) -> str:
    """``nvdisasm -c`` of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return run_tool("nvdisasm", "-c", str(path))


def cubins_in(library: Path) -> list[bytes]:
    """Every cubin that a library or executable carries, in the order of cuobjdump's numbers; perhaps none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_tool("cuobjdump", "-xelf", "all", str(library.resolve()), cwd=folder)
        except ToolError as error:
            if "does not contain device code" in str(error):
                return []
            raise
        found = sorted(Path(folder).glob("*.cubin"), key=lambda path: (len(path.name), path.name))
        return [path.read_bytes() for path in found]


def demangle(names: list[str]) -> dict[str, str]:
    """C++ names in readable form; a name stays as it is where neither c++filt nor cu++filt is installed."""
    program = shutil.which("c++filt") or shutil.which("cu++filt")
    if program is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [program], input="\n".join(names) + "\n", capture_output=True, text=True, check=True
    )
    return dict(zip(names, done.stdout.splitlines(), strict=True))
