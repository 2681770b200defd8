"""Builds the CPU kernels with ASan and UBSan and runs them over thousands of shapes:
`python tests/sanitize/run.py [--isa NAME] [cases] [first seed]`.

Needs cmake and a compiler with the sanitizers' runtimes; no torch, no pytest. Exit status 0 means: no bad
address, no undefined behaviour, every entry written and right, on each instruction set that this machine
runs, or on the one that is named. UBSan's checks of null and of an object's size are left out: ASan sees such
accesses too, and the kernels compile in three quarters of the time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
# vectors wider than the baseline's are passed between inlined functions only: the ABI note is noise
FLAGS = (
    "-O1 -g1 -fno-omit-frame-pointer -pthread -Wno-psabi "
    "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize=null,object-size "
    "-fno-sanitize-recover=all"
)


def main(arguments: list[str]) -> int:
    """Configure, build, run with the arguments; the driver's exit status."""
    isa = arguments[1] if arguments[:1] == ["--isa"] else ""
    arguments = arguments[2:] if isa else arguments
    cmake = shutil.which("cmake")
    if cmake is None:
        print("cmake is not on PATH")
        return 2
    configure = [
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(BUILD),
        "-DKAN_KERNELS_TESTS_ONLY=ON",
        f"-DKAN_CPU_ISAS={isa}",
        "-DCMAKE_BUILD_TYPE=None",
    ]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    subprocess.run([*configure, f"-DCMAKE_CXX_FLAGS={FLAGS}"], check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    subprocess.run([cmake, "--build", str(BUILD), "--target", "kan_sanitize", "-j", jobs], check=True)
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if platform.system() == "Darwin":
        options["ASAN_OPTIONS"] = "detect_leaks=0"  # LeakSanitizer is not there
    cases, first = (*map(int, arguments), *(200, 0)[len(arguments) :])
    share = -(-cases // int(jobs))  # of the cases, for each core
    running = [
        subprocess.Popen(
            [str(BUILD / "kan_sanitize"), str(min(share, first + cases - start)), str(start)],
            env={**os.environ, **options},
        )
        for start in range(first, first + cases, share)
    ]
    status = max(abs(process.wait()) for process in running)
    print("sanitize:", "clean" if status == 0 else f"FAILED, exit status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
