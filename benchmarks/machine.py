"""The machine and the versions a result was measured with."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from .providers import PROVIDERS


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def all_threads() -> int:
    """The number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def kernel_isa() -> str | None:
    """Instruction set that kan_kernels chose at run time, or None without the native library."""
    try:
        importlib.import_module("kan_kernels")
        isa: str = torch.ops.kan_kernels.cpu_isa()
        return isa
    except (ImportError, AttributeError, RuntimeError):
        return None


def fma_peak(threads: int) -> float | None:
    """Measured float32 FMA peak in GFLOP/s with that many threads; None when this build has no such probe."""
    try:
        probe = importlib.import_module("kan_kernels._C").fma_peak
    except (ImportError, AttributeError):
        return None
    return max(float(probe(threads)) for _ in range(3))


def basics() -> dict[str, Any]:
    """What stands beside every figure: date, processor, system and versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def describe() -> dict[str, Any]:
    """What must stand beside a figure of the CPU: `basics`, instruction sets, TF32 setting, peers."""
    return {
        **basics(),
        "machine": platform.machine(),
        "threads_available": all_threads(),
        "isa_kan_kernels": kernel_isa(),
        "isa_torch": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_allowed": torch.get_float32_matmul_precision() != "highest",
        "providers": {key: p.version() for key, p in PROVIDERS.items() if p.version()},
    }
