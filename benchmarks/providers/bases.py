"""FastKAN and ChebyKAN: their form in plain torch, eager and compiled, and the same networks on our kernels.

As many Gaussians or polynomials as the workload has B-splines. Other functions than the B-spline network, so
the gate of every provider asks for finite numbers only; ours are compared with the form in float64 when they
are built.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..basis_forms import ChebyKANLayer, FastKANLayer
from ..workloads import SECOND, Problem, Workload
from .base import Model, Provider
from .ours import Ours

TOLERANCE = 1e-4  # of ours in float32 to the form in float64, relative to the largest entry
_CHECKED_ROWS = 64


FORMS: dict[str, tuple[str, Callable[[int, int, int], nn.Module]]] = {
    "fastkan": ("FastKAN form", lambda i, o, functions: FastKANLayer(i, o, num_grids=functions)),
    "chebykan": ("ChebyKAN form", lambda i, o, functions: ChebyKANLayer(i, o, functions - 1)),
}


def form_network(name: str, workload: Workload) -> nn.Sequential:
    """The form's network with weights that depend on nothing but the workload."""
    layer = FORMS[name][1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(workload.name))
        return nn.Sequential(*(layer(i, o, workload.bases) for i, o in pairwise(workload.widths)))


class Form(Provider):
    """The form in eager mode."""

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.key, self.label = f"{name}-form", f"{FORMS[name][0]}, eager"

    def build(self, problem: Problem, mode: str) -> Model:
        return Model(form_network(self.name, problem.workload))


class FormCompiled(Form):
    compiles = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.key, self.label = f"{name}-form-compiled", f"{FORMS[name][0]}, torch.compile"

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return "torch.compile cannot differentiate twice" if mode == SECOND else None

    def build(self, problem: Problem, mode: str) -> Model:
        compiled = torch.compile(form_network(self.name, problem.workload), fullgraph=True, dynamic=False)
        assert isinstance(compiled, nn.Module)
        return Model(compiled)


class OursForm(Ours):
    """`kan_kernels.compat` with the form's weights."""

    exact = False

    def __init__(self, name: str) -> None:
        super().__init__("native")
        self.name = name
        self.key, self.label = f"ours-{name}", f"kan_kernels.compat ({FORMS[name][0].split()[0]})"

    def build(self, problem: Problem, mode: str) -> Model:
        form = form_network(self.name, problem.workload)
        make = _fast_kan if self.name == "fastkan" else _cheby_kan
        network = nn.Sequential(*map(make, form))
        _compare(network, form, problem.x[:_CHECKED_ROWS])
        return Model(network)


def _fast_kan(form: Any) -> nn.Module:
    module: Any = importlib.import_module("kan_kernels.integrations.fast_kan")
    sizes = form.input_dim, form.output_dim
    layer: nn.Module = module.FastKANLayer(*sizes, num_grids=form.rbf.num_grids, backend="native")
    layer.load_state_dict(form.state_dict())
    return layer


def _cheby_kan(form: Any) -> nn.Module:
    module: Any = importlib.import_module("kan_kernels.integrations.cheby_kan")
    layer: nn.Module = module.ChebyKANLayer(form.inputdim, form.outdim, form.degree, backend="native")
    layer.load_state_dict(form.state_dict())
    return layer


def _compare(network: nn.Module, form: nn.Module, x: torch.Tensor) -> None:
    """Raise RuntimeError unless y and dx of the network are those of the form in float64."""
    results = []
    for module, rows in ((network, x), (copy.deepcopy(form).double(), x.double())):
        rows = rows.clone().requires_grad_()
        y = module(rows)
        (dx,) = torch.autograd.grad(y.square().sum(), rows)
        results.append((y.detach().double(), dx.double()))
    for name, found, expected in zip(("y", "dx"), *results, strict=True):
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise RuntimeError(f"{name} is off by {error:.1e} of its largest entry (gate {TOLERANCE:.0e})")
