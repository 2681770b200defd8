"""What a provider is: a way to compute the workload's network, and an honest answer when it cannot."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..workloads import Problem, Workload

Kind = Literal["ours", "mlp", "unfused", "peer"]
NO_SECOND = "torch.compile cannot differentiate twice"


@dataclass
class Model:
    """A built provider: the module, and the map from its gradients back to our layout (for the gate).

    ``gradients()`` returns [(spline (in, G+k, out), base (in, out)), ...] after a backward, or None where the
    provider's parameters have no counterpart in ours.
    """

    module: nn.Module

    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        return None

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


class Provider:
    """Base class. ``exact`` providers compute the function of the float64 reference and are gated on it."""

    key: str = ""
    label: str = ""
    kind: Kind = "unfused"
    exact: bool = True
    compiles: bool = False  # spends seconds in torch.compile for each workload
    slow: bool = False  # left out of --quick on the large workloads

    def version(self) -> str | None:
        """Version of the package behind it, where there is one."""
        return None

    def unavailable(self) -> str | None:
        """The reason it cannot run on this machine, or None."""
        return None

    def refuses(self, workload: Workload, mode: str) -> str | None:
        """The reason it does not take part in this workload and mode, or None."""
        return None

    def build(self, problem: Problem, mode: str) -> Model:
        """The network with the problem's weights, in float32 on the CPU."""
        raise NotImplementedError


def import_or_reason(module: str, install: str) -> str | None:
    """None if ``module`` imports; otherwise why not, naming what to install or the error it raised."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.split(".")[0]:
            return f"not installed ({install})"
        return f"import fails: {error}"
    except Exception as error:  # a peer may fail in any way at import; the table must say how
        return f"import fails: {type(error).__name__}: {error}"
    return None


def out_in_basis(spline: torch.Tensor) -> torch.Tensor:
    """(in, R, out) -> (out, in, R), the layout of efficient-kan and its relatives."""
    return spline.permute(2, 0, 1).contiguous()
