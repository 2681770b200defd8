"""kan_kernels itself, one provider for each backend it has."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..workloads import Problem
from .base import Model, Provider, import_or_reason


class OurModel(Model):
    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        network: Any = self.module
        return [(layer.spline_weight.grad, layer.base_weight.grad) for layer in network.layers]


class Ours(Provider):
    """``kan_kernels.KAN`` pinned to one backend; nothing falls back silently. None: the automatic choice."""

    kind = "ours"

    def __init__(self, backend: str | None, slow: bool = False) -> None:
        self.backend, self.slow = backend, slow
        self.key = "ours" if backend == "native" else f"ours-{backend or 'auto'}"
        self.label = f"kan_kernels ({backend or 'automatic choice'}{', slow' if slow else ''})"

    def version(self) -> str | None:
        if self.unavailable() is not None:
            return None
        version: str = importlib.import_module("kan_kernels").__version__
        return version

    def unavailable(self) -> str | None:
        reason = import_or_reason("kan_kernels", "pip install .")
        if reason is not None or self.backend is None:
            return reason
        backends: dict[str, str | None] = importlib.import_module("kan_kernels").available_backends()
        return backends.get(self.backend, "this build has no such backend")

    def build(self, problem: Problem, mode: str) -> Model:
        package: Any = importlib.import_module("kan_kernels")
        w = problem.workload
        options = {"backend": self.backend, "dtype": torch.float32}
        network = package.KAN(list(w.widths), w.grid_size, w.spline_order, **options)
        with torch.no_grad():
            for layer, weights in zip(network.layers, problem.layers, strict=True):
                layer.spline_weight.copy_(weights.spline)
                layer.base_weight.copy_(weights.base)
                difference = (layer.grid.double() - weights.grid).abs().max().item()
                if difference > 1e-6:
                    raise RuntimeError(f"the default grid differs from the workload's by {difference:.1e}")
        return OurModel(network)
