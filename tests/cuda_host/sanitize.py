"""The CUDA kernels under sanitizers: `python tests/cuda_host/sanitize.py address|thread`.

address: ASan and UBSan, every tensor in a heap block of its exact size.
thread: ThreadSanitizer, one operating-system thread a CUDA thread: a missing barrier is a data race.
Calls are recorded here, run by a program without Python (driver.cpp), and their results are checked here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(TESTS), str(TESTS / "support"), str(TESTS.parent)]

import cuda_host
import kan_kernels.backends
from cases import HALF, OPS, Case, build
from cuda_host.checks import check_dense, dense_runs
from harness import check_op, run_op, threads

FLAGS = {
    "address": (
        *("-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined,float-cast-overflow"),
        *("-fno-sanitize=null,object-size", "-fno-sanitize-recover=all"),  # ASan sees these, for less
    ),
    "thread": ("-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"),
    "plain": (),
}
# Every kernel, more than one block, every barrier; small: a block is 128 threads or more on a few cores.
CASES = {
    "gather": [
        Case(37, 3, 20, 5, 3, 0, side=True),
        Case(40, 2, 12, 5, 3, 1, "adaptive", "nan"),
        Case(20, 5, 3, 5, 2, 0),
        Case(9, 70, 33, 6, 3, 0, side=True),
        Case(9, 2, 18, 3, 6, 0, dtype=torch.float64, layout="sliced"),
    ],
    "dense": [
        Case(70, 20, 72, 5, 3, 0, side=True),
        Case(40, 5, 24, 20, 2, 1, "adaptive", "nan", dtype=torch.bfloat16),
        Case(40, 100, 24, 5, 3, 0, side=True, dtype=torch.bfloat16),
        Case(9, 3, 5, 5, 1, 0, layout="sliced"),
        Case(40, 40, 72, 5, 3, 0, dtype=torch.float16),
    ],
    "global": [  # bases that reach everywhere; 16 bits on matrix units
        Case(70, 5, 70, 9, 0, 0, side=True, basis="rbf"),
        Case(40, 2, 5, 70, 0, 1, "adaptive", "nan", torch.float64, basis="rbf"),
        Case(40, 3, 136, 13, 0, 0, dtype=torch.bfloat16, basis="rbf"),
        Case(9, 40, 7, 1, 4, 0, points="inside", layout="sliced", basis="chebyshev"),
        Case(2200, 1, 17, 1, 3, 0, points="inside", dtype=torch.bfloat16, base=None, basis="chebyshev"),
    ],
}


def executable(kind: str, root: Path = cuda_host.ROOT) -> Path:
    """The driver with the kernels of `root`, built with a sanitizer."""
    flags = FLAGS[kind]
    folder = cuda_host.BUILD / kind
    objects = cuda_host.compile_objects(root, folder, flags)
    target = folder / "driver"
    command = [cuda_host.COMPILER, *cuda_host.FLAGS, *flags, str(Path(__file__).with_name("driver.cpp"))]
    subprocess.run([*command, *map(str, objects), "-o", str(target)], check=True)
    return target


class Recorder:
    """Collects calls in the driver's format."""

    computes_nothing = True

    def __init__(self) -> None:
        self.data = bytearray()

    def __call__(self, call, tensors, out) -> None:  # type: ignore[no-untyped-def]
        blocks, bytes_of = [], []
        for name, tensor in (*tensors.items(), *out.items()):
            if tensor is None:
                continue
            raw = flat(tensor)
            blocks.append((getattr(type(call), name).offset, len(raw), name in out))
            bytes_of.append(raw)
        self.data += np.array([ctypes.sizeof(call), len(blocks)], np.int64).tobytes() + bytes(call)
        self.data += np.array(blocks, np.int64).tobytes() + b"".join(bytes_of)


def flat(tensor: torch.Tensor) -> bytes:
    """The memory that the tensor spans, gaps included."""
    extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    extent = 0 if tensor.numel() == 0 else extent
    return tensor.as_strided((extent,), (1,)).contiguous().view(torch.uint8).numpy().tobytes()


class Player:
    """Gives the driver's results instead of running the kernels."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __call__(self, call, tensors, out) -> None:  # type: ignore[no-untyped-def]
        for tensor in out.values():
            size = tensor.numel() * tensor.element_size()
            raw = bytearray(self.data[self.at : self.at + size])
            if size:
                tensor.copy_(torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape))
            self.at += size


def replayed(kind: str, calls: Callable[[], Any], mode: str = "threads", timeout: float = 900) -> Any:
    """Record the calls of a function, run them under a sanitizer; what the function returns of their results.

    Raises AssertionError with the sanitizer's report.
    """
    program = executable(kind)
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1 report_signal_unsafe=0",
    }
    with threads(1), tempfile.TemporaryDirectory() as folder:
        recorded, results = Path(folder, "calls"), Path(folder, "results")
        with cuda_host.played(recorder := Recorder()):
            calls()
        recorded.write_bytes(recorder.data)
        command = [str(program), str(recorded), str(results), str(cuda_host.MODES[mode])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        report = f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"[:8000]
        assert done.returncode == 0, f"{kind}: {report}"
        with cuda_host.played(Player(results.read_bytes())):
            return calls()


def run(kind: str, cases: list[Case], path: str) -> None:
    """Record, run, check.

    Raises AssertionError with the sanitizer's report, or naming the entry that is wrong.
    """
    jobs = [(op, case) for case in cases for op in OPS if path != "dense" or dense_runs(op, case)]
    checking = False

    def calls() -> None:
        for op, case in jobs:
            if not checking:
                run_op("cuda_host", op, build(case))
            elif path == "dense" or (path == "global" and case.dtype in HALF):
                check_dense(op, case, False)
            else:
                check_op("cuda_host", op, case, build(case))

    def again() -> None:
        nonlocal checking
        calls()
        checking = True

    already = cuda_host.NAME in kan_kernels.backends.BACKENDS
    with contextlib.nullcontext() if already else cuda_host.registered():
        cuda_host._options["path"] = "auto" if path == "global" else path
        try:
            replayed(kind, again)
        finally:
            cuda_host._options["path"] = "auto"


def main(arguments: list[str]) -> int:
    """address or thread."""
    for path, cases in CASES.items():
        run(arguments[0], cases, path)
        print(f"{arguments[0]}: {path} clean, {len(cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
