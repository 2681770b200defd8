"""MLPs: the same number of parameters, the same widths, and the public protocol's."""

from __future__ import annotations

from collections.abc import Callable
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

    def __init__(self, key: str, label: str, widths: Callable[[Workload], tuple[int, ...] | None]) -> None:
        self.key, self.label, self.widths = key, label, widths

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return None if self.widths(workload) else "the public protocol does not define it here"

    def build(self, problem: Problem, mode: str) -> Model:
        widths = self.widths(problem.workload)
        assert widths is not None
        return Model(make_mlp(widths, smooth=mode == SECOND))


def protocol_widths(workload: Workload) -> tuple[int, ...] | None:
    """Hidden x 10 whatever G, as the public KAN-benchmarking protocol does ([1000,10000,1])."""
    first, *hidden, last = workload.widths
    factor = workload.protocol_multiplier
    return (first, *(h * factor for h in hidden), last) if factor else None


MLPS = (
    MLP("mlp-params", "MLP, same parameters", Workload.same_parameter_widths),
    MLP("mlp-widths", "MLP, same widths", lambda workload: workload.widths),
    MLP("mlp-x10", "MLP, hidden x10 (public protocol)", protocol_widths),
)
