"""FastKAN and ChebyKAN: their form in plain torch, eager and compiled, and the same networks on our kernels.

As many Gaussians or polynomials as the workload has B-splines. Other functions than the B-spline network, so
the gate of every provider asks for finite numbers only; ours are compared with the form in float64 when they
are built.
"""

from __future__ import annotations

import copy
import importlib
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..workloads import SECOND, Problem, Workload
from .base import Model, Provider
from .ours import Ours

TOLERANCE = 1e-4  # of ours in float32 to the form in float64, relative to the largest entry
_CHECKED_ROWS = 64


class FastKANForm(nn.Module):
    """A layer as fast-kan computes it: every Gaussian of the normalised x, one product, a base branch."""

    def __init__(self, fan_in: int, fan_out: int, functions: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(fan_in)
        self.centres = nn.Parameter(torch.linspace(-2.0, 2.0, functions), requires_grad=False)
        self.width = 4.0 / (functions - 1)
        self.spline = nn.Linear(fan_in * functions, fan_out, bias=False)
        nn.init.trunc_normal_(self.spline.weight, mean=0.0, std=0.1)
        self.base = nn.Linear(fan_in, fan_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = (self.layernorm(x)[..., None] - self.centres) / self.width
        gaussians = torch.exp(-(t**2))
        return self.spline(gaussians.flatten(-2)) + self.base(F.silu(x))


class ChebyKANForm(nn.Module):
    """A layer as ChebyKAN computes it: cos(r acos(tanh x)) for every r, then one contraction."""

    def __init__(self, fan_in: int, fan_out: int, functions: int) -> None:
        super().__init__()
        std = 1.0 / (fan_in * functions)
        self.coefficients = nn.Parameter(torch.randn(fan_in, fan_out, functions) * std)
        self.register_buffer("orders", torch.arange(functions))
        self.orders: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.acos(torch.tanh(x)).unsqueeze(-1).expand(-1, -1, len(self.orders))
        return torch.einsum("bir,ior->bo", torch.cos(angle * self.orders), self.coefficients)


FORMS: dict[str, tuple[str, type[nn.Module]]] = {
    "fastkan": ("FastKAN form", FastKANForm),
    "chebykan": ("ChebyKAN form", ChebyKANForm),
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
    fan_out, fan_in = form.base.weight.shape
    module: Any = importlib.import_module("kan_kernels.compat.fast_kan")
    layer = module.FastKANLayer(fan_in, fan_out, num_grids=len(form.centres), backend="native")
    state = form.state_dict()
    names = {"centres": "rbf.grid", "spline.weight": "spline_linear.weight"}
    names |= {f"base.{part}": f"base_linear.{part}" for part in ("weight", "bias")}
    layer.load_state_dict({names.get(key, key): value for key, value in state.items()})
    return layer  # type: ignore[no-any-return]


def _cheby_kan(form: Any) -> nn.Module:
    fan_in, fan_out, functions = form.coefficients.shape
    module: Any = importlib.import_module("kan_kernels.compat.cheby_kan")
    layer = module.ChebyKANLayer(fan_in, fan_out, functions - 1, backend="native")
    layer.load_state_dict({"cheby_coeffs": form.coefficients})
    return layer  # type: ignore[no-any-return]


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
