"""Peak extra memory of one call, measured from outside the allocators so that every provider counts alike."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

HIGH_WATER = "VmHWM after a reset through /proc/self/clear_refs, minus the resident set before the call"
SAMPLED = "resident set sampled every 0.5 ms by a thread, minus that before the call"


def _bytes(key: str, file: str = "/proc/self/status") -> int | None:
    """Return what a line of the file says in kB as bytes, or None where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def _reset_high_water() -> bool:
    """Lower the high-water mark to the present resident set; False where the kernel cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    high, now = _bytes("VmHWM"), _bytes("VmRSS")
    return high is not None and now is not None and high - now < 2**20


def available_bytes() -> int:
    """Memory that can still be taken without swapping; 4 GiB when the system does not say."""
    return _bytes("MemAvailable", "/proc/meminfo") or 4 * 2**30


def _sampled_peak(call: Callable[[], object], before: int) -> int:
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _bytes("VmRSS") or 0)
            time.sleep(0.0005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(peak, _bytes("VmRSS") or 0)


def peak_extra_bytes(call: Callable[[], object], release: Callable[[], object]) -> tuple[int | None, str]:
    """Bytes that ``call`` needed above what was resident, and how that was measured.

    ``release`` drops what an earlier call left behind (gradients), so that it is counted again. The call must
    have run before: what a library sets up once (thread stacks, compiled code) is not its memory. None where
    the system has no resident set to read (anything but Linux).
    """
    release()
    # what the last call freed would hide what the next one needs; not glibc: large blocks are unmapped there
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = _bytes("VmRSS")
    if before is None:
        return None, f"not measured: no /proc/self/status on {os.uname().sysname}"
    if _reset_high_water():
        call()
        high = _bytes("VmHWM")
        assert high is not None
        return max(0, high - before), HIGH_WATER
    return max(0, _sampled_peak(call, before) - before), SAMPLED
