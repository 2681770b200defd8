"""The short test of the CPU kernels that a fault must fail: tests/sanitize's driver, without sanitizers.

Only the baseline instruction set is built, which every machine runs; it has no tables in registers, so
csrc/cpu/linear/small.h is not run. Argument: the folder that holds csrc.
"""

from __future__ import annotations

import hashlib
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
BUILD = Path(__file__).resolve().parents[2] / "build" / "mutations"
FLAGS = ["-std=c++17", "-O1", "-pthread", "-Wno-psabi"]
# as in CMakeLists.txt
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]


def compiler() -> str | None:
    """The C++ compiler: CXX, or c++ where it is on PATH."""
    return os.environ.get("CXX") or shutil.which("c++")


def build(root: Path, folder: Path) -> Path:
    """Compile the driver with the kernels of root/csrc; its path."""
    baseline = ["-DKAN_ISA=baseline", "-DKAN_VECTOR_BYTES=16", *KERNEL_FLAGS]
    objects = [compiled(root, root / f"csrc/cpu/{name}.cpp", baseline) for name in KERNELS]
    select = ["-DKAN_HAVE_BASELINE=1"]
    objects += [compiled(root, path, select) for path in (*DRIVER, root / "csrc/cpu/select.cpp")]
    driver = folder / "driver"
    run([*FLAGS, *map(str, objects), "-o", str(driver)])
    return driver


def compiled(root: Path, source: Path, flags: list[str]) -> Path:
    """Return the object of a source; one of the same text after preprocessing is compiled only once."""
    flags = [*FLAGS, *flags, f"-I{root / 'csrc'}"]
    text = run([*flags, "-E", "-P", str(source)])
    target = BUILD / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.o"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        run([*flags, "-c", str(source), "-o", str(part)])
        part.replace(target)
    return target


def run(arguments: list[str]) -> str:
    """Run the compiler; what it prints."""
    done = subprocess.run([*(compiler() or "c++").split(), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nthe driver does not compile")
    return done.stdout


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
