"""Who is measured on a device: kan_kernels by backend, both MLPs and the unfused rivals."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..providers import Model, Provider, find_provider
from ..providers.base import import_or_reason
from ..providers.ours import Ours
from ..workloads import TRAIN
from .device import Device
from .plan import CAPTURES, COMPILED, COMPILED_GRAPH, EAGER, GRAPH, Job

AUTO = "ours-auto"


class OnBackend(Ours):
    """kan_kernels on one backend, or on the one that dispatch chooses (None), on any device."""

    def __init__(self, backend: str | None) -> None:
        super().__init__(backend)
        self.key = f"ours-{backend}" if backend else AUTO

    def unavailable(self) -> str | None:
        return import_or_reason("kan_kernels", "pip install .")

    def cannot_run(self, job: Job, device: Device) -> str | None:
        """The backend's own reason why it cannot run a layer of the job on this device, or None."""
        if self.backend is None:
            return None
        backend = importlib.import_module("kan_kernels.backends").BACKENDS.get(self.backend)
        if backend is None:
            return f"this build has no backend {self.backend!r}"
        reasons: Iterator[str | None] = (backend.can_run(case) for case in _cases(job, device))
        return next(filter(None, reasons), None)


def _cases(job: Job, device: Device) -> list[Any]:
    """A Problem for each layer of the job."""
    make = importlib.import_module("kan_kernels._core.problem").Problem
    w, dtype = job.workload, job.precision.dtype
    kind, order = device.torch.type, w.spline_order
    return [make(kind, dtype, dtype, i, o, w.grid_size + order, order) for i, o in pairwise(w.widths)]


def automatic(job: Job, device: Device) -> list[str]:
    """The backend that dispatch chooses for each layer of the job; empty without kan_kernels."""
    if import_or_reason("kan_kernels", "") is not None:
        return []
    choose = importlib.import_module("kan_kernels._engine.dispatch").choose
    return [choose(case).backend.NAME for case in _cases(job, device)]


_OURS = [OnBackend(name) for name in (None, "triton", "native", "reference")]
_OTHERS = [find_provider(key) for key in ("mlp-params", "mlp-widths", "closed-form", "textbook")]
GPU_PROVIDERS: dict[str, Provider] = {p.key: p for p in (*_OURS, *_OTHERS)}


def register(provider: Provider) -> None:
    """Add a provider: what a module named by ``--plugin`` calls."""
    GPU_PROVIDERS[provider.key] = provider


def executions(provider: Provider, job: Job, mode: str) -> list[str]:
    """How the provider is run in this job, in the order of the table.

    Compiling takes seconds: the closed form, whose best form it is, is compiled in every job, we and the MLP
    only in the headline ones, for forward+backward.
    """
    if provider.key == "ours-reference":
        return [EAGER]  # what falling back costs, no more
    ways = [EAGER, GRAPH]
    if provider.key == "closed-form":
        compiled = mode == TRAIN or job.headline
    else:
        chosen = provider.kind == "ours" or provider.key == "mlp-params"
        compiled = mode == TRAIN and job.headline and chosen
    return [*ways, COMPILED, COMPILED_GRAPH] if compiled else ways


def refusal(provider: Provider, job: Job, mode: str, execution: str, device: Device) -> str | None:
    """Why this cell has no figure, or None."""
    reason = provider.unavailable() or provider.refuses(job.workload, mode)
    if reason is None and isinstance(provider, OnBackend):
        reason = provider.cannot_run(job, device)
    if reason is None and execution in CAPTURES and not device.is_gpu:
        reason = "CUDA graphs need a GPU"
    if reason is None and provider.key == AUTO:
        names = set(automatic(job, device))
        twin = GPU_PROVIDERS.get(f"ours-{next(iter(names))}") if len(names) == 1 else None
        if twin is not None:
            reason = f"chooses {next(iter(names))} for every layer: that row is its figure"
    return reason


def place(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """The model on a device, its parameters in a dtype; buffers (knots) keep float32 for the cells."""
    for parameter in model.module.parameters():
        parameter.data = parameter.data.to(dtype)
    module: nn.Module = model.module.to(device)
    model.module = module
    return model
