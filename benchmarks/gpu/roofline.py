"""The roofline: what the card's matrix units and memory reach here, and how near a figure comes to them."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from ..workloads import FORWARD, Workload
from .device import Device
from .plan import PRECISIONS, Job

MATRIX_SIZE, COPY_BYTES, REPEATS, SAMPLES = 8192, 2**30, 4, 7
SMOKE_MATRIX_SIZE, SMOKE_COPY_BYTES = 64, 2**20


def measure_peaks(device: Device, smoke: bool) -> dict[str, Any]:
    """FLOP/s of a large torch.mm in every precision; bytes/s of a large copy, those read and those written.

    The median of a few samples of back-to-back calls: what a long-running product sustains, clocks included.
    """
    size, copied = (SMOKE_MATRIX_SIZE, SMOKE_COPY_BYTES) if smoke else (MATRIX_SIZE, COPY_BYTES)
    matrix: dict[str, float] = {}
    for precision in PRECISIONS.values():
        torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
        a = torch.randn(size, size, device=device.torch).to(precision.dtype)
        b, c = torch.randn_like(a), torch.empty_like(a)
        matrix[precision.name] = 2 * size**3 / _seconds(device, lambda a=a, b=b, c=c: torch.mm(a, b, out=c))
    torch.set_float32_matmul_precision("highest")
    source = torch.zeros(copied, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    seconds = _seconds(device, lambda: target.copy_(source))
    return {"matrix_flops": matrix, "matrix_size": size, "copy_bytes_per_s": 2 * copied / seconds}


def _seconds(device: Device, call: Any) -> float:
    device.clock(call, 2)
    return statistics.median(device.clock(call, REPEATS) for _ in range(SAMPLES)) / REPEATS


def least_bytes(workload: Workload, mode: str, item: int) -> int:
    """Bytes that must pass through memory if every layer reads and writes each of its tensors once.

    Forward: x, the weights, y. Backward: x, g and the weights again, and both gradients; the first layer's
    gradient of x only where it is asked for. ``item``: bytes of an element.
    """
    total = 0
    for n, (i, o) in enumerate(zip(workload.widths, workload.widths[1:], strict=False)):
        weights, x, y = i * o * (workload.bases + 1), workload.batch * i, workload.batch * o
        total += x + weights + y
        if mode != FORWARD:
            total += x + y + 2 * weights + (x if n or workload.input_grad else 0)
    return item * total


def fraction(job: Job, mode: str, seconds: float, peaks: dict[str, Any]) -> dict[str, Any]:
    """How near a KAN's time comes to the roofline: the larger of matrix time and memory time, over the time.

    Matrix time: the dense work (benchmarks.workloads.Workload.dense_flops) at the measured rate of the job's
    precision. A kernel that uses the sparsity of the basis may exceed 1.
    """
    matrix = job.workload.dense_flops(mode) / peaks["matrix_flops"][job.precision.name]
    memory = least_bytes(job.workload, mode, job.precision.dtype.itemsize) / peaks["copy_bytes_per_s"]
    return {
        "roofline_fraction": max(matrix, memory) / seconds,
        "roofline_bound": "matrix" if matrix >= memory else "memory",
        "dense_tflops": 1e-12 * job.workload.dense_flops(mode) / seconds,
    }
