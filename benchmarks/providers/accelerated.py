"""Peers after `kan_kernels.integrations.accelerate`: their own modules and parameters, on our kernels."""

from __future__ import annotations

from kan_kernels.integrations import accelerate

from ..workloads import Problem
from .base import Model
from .peers import EfficientKAN


class AcceleratedEfficientKAN(EfficientKAN):
    key, label = "efficient-kan-accelerated", "efficient-kan, accelerated"
    slow = False

    def build(self, problem: Problem, mode: str) -> Model:
        model = super().build(problem, mode)
        report = accelerate(model.module)
        if report.left:  # a figure of something else must not appear under this name
            raise RuntimeError(str(report))
        return model
