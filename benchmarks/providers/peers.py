"""Other people's packages, given the very same weights as ours where the mathematics agrees.

None of them is a dependency: each says why it is missing. Adapters only set public attributes.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..memory import available_bytes
from ..workloads import FORWARD, SECOND, Problem, Workload
from .base import Model, Provider, import_or_reason, out_in_basis, package_version


def _load(module: str) -> Any:
    """A peer's module, untyped on purpose: peers carry no type information."""
    return importlib.import_module(module)


class Peer(Provider):
    kind = "peer"
    module = ""
    distribution = ""
    install = ""

    def version(self) -> str | None:
        return package_version(self.distribution)

    def unavailable(self) -> str | None:
        return import_or_reason(self.module, self.install)


class PyKAN(Peer):
    """pykan's MultKAN with its symbolic branch and activation recording off, which is its fastest setting."""

    key, label, module, distribution, install = (
        "pykan",
        "pykan",
        "kan",
        "pykan",
        "pip install pykan pandas pyyaml",
    )
    slow = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        # it keeps several (batch, in, out) tensors a layer for backward; one alone takes 4*B*I*O bytes
        copies = 3 if mode == FORWARD else 12 if mode == SECOND else 8
        need = copies * 4 * workload.batch * workload.edges
        room = min(available_bytes() // 2, 6 * 2**30)
        return f"would need about {need / 2**30:.0f} GiB" if need > room else None

    def build(self, problem: Problem, mode: str) -> Model:
        w = problem.workload
        # pykan edits its width list in place, so it gets its own
        network = _load("kan").MultKAN(
            width=list(w.widths),
            grid=w.grid_size,
            k=w.spline_order,
            symbolic_enabled=False,
            save_act=False,
            auto_save=False,
        )
        with torch.no_grad():
            for layer, weights in zip(network.act_fun, problem.layers, strict=True):
                layer.coef.copy_(weights.spline.permute(0, 2, 1))  # (in, out, G+k)
                layer.scale_base.copy_(weights.base)
                layer.scale_sp.fill_(1.0)
        return Model(network)


class EfficientKAN(Peer):
    key, label, module, distribution = "efficient-kan", "efficient-kan", "efficient_kan", "efficient-kan"
    install = "not on PyPI: put its src folder on the path"
    slow = True

    def build(self, problem: Problem, mode: str) -> Model:
        w = problem.workload
        network = _load("efficient_kan").KAN(list(w.widths), w.grid_size, w.spline_order)
        with torch.no_grad():
            for layer, weights in zip(network.layers, problem.layers, strict=True):
                layer.spline_weight.copy_(out_in_basis(weights.spline))
                layer.base_weight.copy_(weights.base.t())
                layer.spline_scaler.fill_(1.0)
        return Model(network)


class InKAN(Peer):
    """inkan as its documentation says: compiled basis, except where second derivatives need it eager."""

    key, label, module, distribution, install = "inkan", "inkan", "inkan", "inkan", "pip install inkan"
    compiles = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return None if workload.spline_order == 3 else "supports k=3 only"

    def build(self, problem: Problem, mode: str) -> Model:
        w = problem.workload
        network = _load("inkan").KANNetwork(
            list(w.widths), w.grid_size, w.spline_order, compile_basis=mode != SECOND
        )
        with torch.no_grad():
            for layer, weights in zip(network.layers, problem.layers, strict=True):
                flat = out_in_basis(weights.spline).flatten(1)
                layer.weight.copy_(torch.cat([flat, weights.base.t()], dim=1))
        return Model(network)


class FlashKAN(Peer):
    key, label, module, distribution, install = (
        "flashkan",
        "flashkan",
        "flashkan",
        "flashkan",
        "pip install flashkan",
    )
    compiles = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        if mode == SECOND:
            return "torch.compile cannot differentiate twice"
        return None if workload.spline_order == 3 else "supports k=3 only"

    def build(self, problem: Problem, mode: str) -> Model:
        w = problem.workload
        network = _load("flashkan").KANNetwork(list(w.widths), w.grid_size, w.spline_order)
        with torch.no_grad():
            for layer, weights in zip(network.layers, problem.layers, strict=True):
                layer.spline_weight.copy_(out_in_basis(weights.spline))
                layer.base_weight.copy_(weights.base.t())
        return Model(network)


class FastKAN(Peer):
    """fast-kan with as many Gaussians as we have B-splines; radial functions, so no number to compare."""

    key, label, module, distribution = "fastkan", "FastKAN (RBF)", "fastkan", "fastkan"
    install = "not on PyPI: put its folder on the path"
    exact = False

    def build(self, problem: Problem, mode: str) -> Model:
        w = problem.workload
        layer_type = _load("fastkan").FastKANLayer
        layers: list[nn.Module] = [
            layer_type(i, o, num_grids=w.bases, use_layernorm=i > 1) for i, o in pairwise(w.widths)
        ]
        return Model(nn.Sequential(*layers))
