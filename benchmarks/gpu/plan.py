"""What is measured: precisions, jobs (a workload in a precision) and the ways a network is executed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..workloads import FORWARD, TRAIN, Workload

EAGER, GRAPH, COMPILED, COMPILED_GRAPH = "eager", "CUDA graph", "torch.compile", "torch.compile, CUDA graph"
EXECUTIONS = (EAGER, GRAPH, COMPILED, COMPILED_GRAPH)
COMPILES = (COMPILED, COMPILED_GRAPH)
CAPTURES = (GRAPH, COMPILED_GRAPH)
GPU_MODES = (TRAIN, FORWARD)  # in the order they run: what matters most comes first


@dataclass(frozen=True)
class Precision:
    """Storage dtype, whether float32 products may be taken in TF32, and the gate.

    ``tolerance`` is the largest error of an entry relative to the largest entry of its tensor. Strict float32
    has the CPU harness's. The others round each operand, by 2^-9 (bfloat16) or 2^-11 (float16, TF32), and
    each result between the layers; on G=5 plain torch lands at half the tolerance. A finer grid magnifies
    what was rounded there, so a job's gate is twice plain torch's error where that is more (gate_of).
    """

    name: str
    dtype: torch.dtype
    tf32: bool
    tolerance: float


PRECISIONS = {
    p.name: p
    for p in (
        Precision("bf16", torch.bfloat16, False, 2e-2),
        Precision("fp16", torch.float16, False, 4e-3),
        Precision("tf32", torch.float32, True, 4e-3),
        Precision("fp32", torch.float32, False, 1e-4),
    )
}


@dataclass(frozen=True)
class Job:
    """One workload in one precision. ``headline`` jobs run first and compile everything worth compiling."""

    workload: Workload
    precision: Precision
    headline: bool = False

    @property
    def name(self) -> str:
        return f"{self.workload.name}/{self.precision.name}"


def _jobs(entries: list[tuple[Workload, str, bool]]) -> dict[str, Job]:
    jobs = [Job(workload, PRECISIONS[precision], headline) for workload, precision, headline in entries]
    return {job.name: job for job in jobs}


_NET512 = Workload("net512", (512, 512, 512), 8192, 5, note="large layers, what the targets are set on")
_NET256 = Workload("net256", (256, 256, 256), 4096, 5, note="the CPU report's large layers")
_FINE = Workload("net256-g20", (256, 256, 256), 4096, 20, note="large layers, fine grid")
_FINEST = Workload("layer256-g128", (256, 256), 4096, 128, input_grad=True, note="a layer, very fine grid")
_NET64 = Workload("net64", (64, 64, 64), 1000, 5, note="medium widths")
_MNIST = Workload("mnist", (784, 64, 10), 256, 5, note="the shape of an MNIST classifier")
_TOY = Workload("toy", (2, 5, 1), 1000, 5, note="the scientist's case: bound by launches and Python")
_MEMORY = Workload("memory", (64, 64), 65536, 20, input_grad=True, note="one layer, big batch, fine grid")

JOBS = _jobs(
    [
        (_NET512, "bf16", True),
        (_NET512, "tf32", True),
        (_MEMORY, "fp32", True),
        (_NET512, "fp32", False),
        (_TOY, "fp32", False),
        (_NET64, "fp32", False),
        (_FINEST, "fp32", False),
        (_FINE, "bf16", False),
        (_MNIST, "fp32", False),
        (_NET256, "bf16", False),
        (_FINE, "tf32", False),
        (_NET256, "tf32", False),
        (_NET512, "fp16", False),
        (_FINEST, "bf16", False),
    ]
)

SMOKE_JOBS = _jobs(
    [
        (Workload("smoke-network", (5, 4, 3), 33, 5), "fp32", True),
        (Workload("smoke-network", (5, 4, 3), 33, 5), "bf16", False),
        (Workload("smoke-layer", (6, 4), 64, 7, input_grad=True), "fp32", False),
    ]
)


def find_job(name: str) -> Job:
    """The job called ``name``; ValueError lists the known names."""
    known = {**JOBS, **SMOKE_JOBS}
    if name not in known:
        raise ValueError(f"unknown job {name!r}; known: {', '.join(known)}")
    return known[name]
