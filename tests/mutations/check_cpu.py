"""The short test of the CPU kernels that a fault must fail: tests/sanitize's driver, without sanitizers.

Only the baseline instruction set is built, which every machine runs; it has no tables in registers, so
csrc/cpu/linear/small.h is not run. Argument: the folder that holds csrc.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DRIVER = [
    Path(__file__).resolve().parents[1] / "sanitize" / name
    for name in ("main.cpp", "bases.cpp", "sums.cpp", "images.cpp")
]
KERNELS = ("kernels", "edges/edges", "conv/conv")
CASES = "100"
FLAGS = ["-std=c++17", "-O1", "-pthread", "-Wno-psabi"]
# as in CMakeLists.txt
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]


def compiler() -> str | None:
    """The C++ compiler: CXX, or c++ where it is on PATH."""
    return os.environ.get("CXX") or shutil.which("c++")


def build(root: Path, folder: Path) -> Path:
    """Compiles the driver with the kernels of root/csrc; its path."""
    compile_command = [*(compiler() or "c++").split(), *FLAGS, f"-I{root / 'csrc'}"]
    objects, driver = [str(folder / f"{Path(name).name}.o") for name in KERNELS], folder / "driver"
    baseline = ["-DKAN_ISA=baseline", "-DKAN_VECTOR_BYTES=16"]
    select = ["-DKAN_HAVE_BASELINE=1", *map(str, DRIVER), str(root / "csrc/cpu/select.cpp"), *objects]
    commands = [
        [*KERNEL_FLAGS, *baseline, "-c", str(root / f"csrc/cpu/{name}.cpp"), "-o", path]
        for name, path in zip(KERNELS, objects, strict=True)
    ]
    for command in (*commands, [*select, "-o", str(driver)]):
        done = subprocess.run([*compile_command, *command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\nthe driver does not compile")
    return driver


def main(root: Path) -> int:
    """The driver's exit status: 0 if every result is right."""
    with tempfile.TemporaryDirectory() as folder:
        driver = build(root, Path(folder))
        done = subprocess.run([str(driver), CASES], capture_output=True, text=True)
        print(done.stdout, end="")
        if done.returncode < 0:
            print(f"the driver ended by signal {-done.returncode}")
        return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
