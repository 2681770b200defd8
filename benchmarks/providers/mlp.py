"""MLPs: the same number of parameters, the same widths, and the public protocol's."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from ..workloads import SECOND, Problem, Workload
from .base import Model, Provider


def make_mlp(widths: tuple[int, ...], smooth: bool = False) -> nn.Sequential:
    """Linear layers (with bias) and ReLU between them; SiLU when ``smooth``, as second derivatives need."""
    layers: list[nn.Module] = []
    for index, (i, o) in enumerate(pairwise(widths)):
        if index:
            layers.append(nn.SiLU() if smooth else nn.ReLU())
        layers.append(nn.Linear(i, o))
    return nn.Sequential(*layers)


class MLP(Provider):
    """An MLP whose widths follow from the workload; other mathematics, so its gate is finiteness only."""

    kind = "mlp"
    exact = False

    def widths(self, workload: Workload) -> tuple[int, ...]:
        raise NotImplementedError

    def build(self, problem: Problem, mode: str) -> Model:
        return Model(make_mlp(self.widths(problem.workload), smooth=mode == SECOND))


class SameParameterMLP(MLP):
    key, label = "mlp-params", "MLP, same parameters"

    def widths(self, workload: Workload) -> tuple[int, ...]:
        return workload.same_parameter_widths()


class SameWidthMLP(MLP):
    key, label = "mlp-widths", "MLP, same widths"

    def widths(self, workload: Workload) -> tuple[int, ...]:
        return workload.widths


class ProtocolMLP(MLP):
    """Hidden x 10 whatever G, as the public KAN-benchmarking protocol does ([1000,10000,1])."""

    key, label = "mlp-x10", "MLP, hidden x10 (public protocol)"

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return None if workload.protocol_multiplier else "the public protocol does not define it here"

    def widths(self, workload: Workload) -> tuple[int, ...]:
        factor = workload.protocol_multiplier or 1
        return (workload.widths[0], *(h * factor for h in workload.widths[1:-1]), workload.widths[-1])
