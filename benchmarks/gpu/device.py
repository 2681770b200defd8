"""The device under test: its clock, its memory, its name. The CPU stands in for a GPU in the tests."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..machine import basics, cpu_model
from ..measure import Clock, wall_clock
from ..memory import peak_extra_bytes

ALLOCATOR = "torch.cuda.max_memory_allocated during the call, minus memory_allocated before it"
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


class Device:
    """A torch device with what the harness asks of it."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_gpu = self.torch.type == "cuda"

    @property
    def clock(self) -> Clock:
        return event_clock if self.is_gpu else wall_clock

    def synchronize(self) -> None:
        """Wait for the device; errors of what ran on it are raised here."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def alive(self) -> bool:
        """False once a fault (an illegal address, say) has made every later call of this process fail."""
        try:
            self.synchronize()
            return bool((torch.zeros(1, device=self.torch) == 0).item())
        except RuntimeError:
            return False

    def release_memory(self) -> None:
        if self.is_gpu:
            torch.cuda.empty_cache()

    def peak_extra(self, call: Callable[[], object], release: Callable[[], object]) -> tuple[int | None, str]:
        """Bytes that ``call`` needs above what is allocated, and how that was measured."""
        if not self.is_gpu:
            return peak_extra_bytes(call, release)
        release()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch)
        before = torch.cuda.memory_allocated(self.torch)
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch) - before, ALLOCATOR

    def describe(self) -> dict[str, Any]:
        """What must stand beside a figure: card, driver, versions, date."""
        about: dict[str, Any] = {
            **basics(),
            "device": cpu_model(),
            "triton": _version("triton"),
            "kan_kernels": _version("kan_kernels"),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(self.torch)
            about.update(
                device=properties.name,
                capability=f"{properties.major}.{properties.minor}",
                multiprocessors=properties.multi_processor_count,
                memory_bytes=properties.total_memory,
                devices=torch.cuda.device_count(),
                nvidia_smi=query(_QUERY),
            )
        return about


def event_clock(call: Callable[[], object], inner: int) -> float:
    """Seconds between two events of the current stream around `inner` calls, launches included."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def query(fields: str) -> dict[str, str] | None:
    """What nvidia-smi says of the first card, by field; None where there is no nvidia-smi or no answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 or not done.stdout.strip():
        return None
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(fields.split(","), values, strict=False))


def _version(module: str) -> str | None:
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return None


def missing_gpu() -> str | None:
    """None where torch can use a GPU, or one sentence that says why it cannot."""
    with warnings.catch_warnings(record=True) as said:  # a driver that is too old, for one
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"make gpu needs a GPU, and this torch ({torch.__version__}) is built for the CPU alone."
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    sentence = f"make gpu needs a GPU, and torch {torch.__version__} (for {built}) finds none on this machine"
    reasons = [str(w.message).strip().splitlines()[0] for w in said if str(w.message).strip()]
    return f"{sentence}: {reasons[0]}" if reasons else f"{sentence}."
