"""What is measured: precisions, jobs (a workload in a precision) and the ways a network is executed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..workloads import FORWARD, SMOKE_WORKLOADS, TRAIN, WORKLOADS, Workload

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


def _jobs(workloads: dict[str, Workload], names: str, headline: bool = False) -> dict[str, Job]:
    """Return the jobs of names such as "toy/fp32", in this order."""
    parts = {name: name.split("/") for name in names.split()}
    return {name: Job(workloads[w], PRECISIONS[p], headline) for name, (w, p) in parts.items()}


_WORKLOADS = WORKLOADS | {
    w.name: w
    for w in (
        Workload("net512", (512, 512, 512), 8192, 5, note="large layers, what the targets are set on"),
        Workload("net256", (256, 256, 256), 4096, 5, note="the CPU report's large layers"),
        Workload("net256-g20", (256, 256, 256), 4096, 20, note="large layers, fine grid"),
        Workload("layer256-g128", (256, 256), 4096, 128, input_grad=True, note="a layer, very fine grid"),
        Workload("net64", (64, 64, 64), 1000, 5, note="medium widths"),
    )
}
JOBS = _jobs(_WORKLOADS, "net512/bf16 net512/tf32 memory/fp32", headline=True) | _jobs(
    _WORKLOADS,
    "net512/fp32 toy/fp32 net64/fp32 toy4/fp32 toy-deep/fp32 layer256-g128/fp32 net256-g20/bf16 "
    "mnist/fp32 net256/bf16 net256-g20/tf32 net256/tf32 net512/fp16 layer256-g128/bf16",
)
SMOKE_JOBS = _jobs(SMOKE_WORKLOADS, "smoke-network/fp32", headline=True)
SMOKE_JOBS |= _jobs(SMOKE_WORKLOADS, "smoke-network/bf16 smoke-layer/fp32")


def find_job(name: str) -> Job:
    """The job called ``name``; ValueError lists the known names."""
    known = {**JOBS, **SMOKE_JOBS}
    if name not in known:
        raise ValueError(f"unknown job {name!r}; known: {', '.join(known)}")
    return known[name]
