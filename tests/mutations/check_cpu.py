"""The short test of the CPU kernels that a fault must fail: tests/sanitize's driver, without sanitizers.

Only the fastest instruction set of this machine is built. Argument: the folder that holds csrc.
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
    for name in (
        "main.cpp",
        "bases.cpp",
        "sums.cpp",
        "images.cpp",
        "activations.cpp",
        "norms.cpp",
        "sizes.cpp",
    )
]
KERNELS = ("kernels", "activation/activation", "edges/edges", "conv/conv")
CASES = "100"
BUILD = Path(__file__).resolve().parents[2] / "build" / "mutations"
# slowest first: what /proc/cpuinfo says, the bytes of a vector, the flags of CMakeLists.txt
ISAS = {
    "baseline": ("", 16, []),
    "avx2": ("avx2", 32, ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]),
    "avx512": (
        "avx512vl",
        64,
        ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    ),
}
FLAGS = ["-std=c++17", "-O1", "-pthread", "-Wno-psabi", "-DKAN_STREAMED_BYTES=4096"]
# as in CMakeLists.txt
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]


def compiler() -> str | None:
    """The C++ compiler: CXX, or c++ where it is on PATH."""
    return os.environ.get("CXX") or shutil.which("c++")


def isas() -> list[str]:
    """The instruction sets of this machine, slowest first."""
    info = Path("/proc/cpuinfo")
    said = info.read_text().split() if info.exists() else []
    return [name for name, (word, _, _) in ISAS.items() if not word or word in said]


def build(root: Path, folder: Path) -> Path:
    """Compile the driver with the kernels of root/csrc; its path."""
    isa = isas()[-1]
    _, vector_bytes, machine = ISAS[isa]
    flags = [f"-DKAN_ISA={isa}", f"-DKAN_VECTOR_BYTES={vector_bytes}", *machine, *KERNEL_FLAGS]
    objects = [compiled(root, root / f"csrc/cpu/{name}.cpp", flags) for name in KERNELS]
    select = [f"-DKAN_HAVE_{isa.upper()}=1"]
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
