"""Other people's packages, given the very same weights as ours where the mathematics agrees.

None of them is a dependency: each says why it is missing. Adapters only set public attributes.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..memory import available_bytes
from ..workloads import FORWARD, SECOND, LayerWeights, Problem, Workload
from .base import NO_SECOND, Model, Provider, import_or_reason, out_in_basis


class Peer(Provider):
    """``install``: what to say where ``module`` is missing, by default to install what ``key`` names."""

    kind = "peer"
    module = install = ""
    only_cubic = False

    def version(self) -> str | None:
        with suppress(PackageNotFoundError):
            return metadata.version(self.key)
        return None

    def unavailable(self) -> str | None:
        return import_or_reason(self.module or self.key, self.install or f"pip install {self.key}")

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return "supports k=3 only" if self.only_cubic and workload.spline_order != 3 else None

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        """Return the peer's network."""
        raise NotImplementedError

    def layers(self, network: Any) -> Any:
        return network.layers

    def load(self, layer: Any, weights: LayerWeights) -> None:
        """Give a layer the workload's weights."""
        layer.spline_weight.copy_(out_in_basis(weights.spline))
        layer.base_weight.copy_(weights.base.t())

    def build(self, problem: Problem, mode: str) -> Model:
        package = importlib.import_module(self.module or self.key)
        network = self.make(package, problem.workload, mode)
        with torch.no_grad():
            for layer, weights in zip(self.layers(network), problem.layers, strict=True):
                self.load(layer, weights)
        return Model(network)


class PyKAN(Peer):
    """pykan's MultKAN with its symbolic branch and activation recording off, which is its fastest setting."""

    key = label = "pykan"
    module, install = "kan", "pip install pykan pandas pyyaml"
    slow = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        # it keeps several (batch, in, out) tensors a layer for backward; one alone takes 4*B*I*O bytes
        copies = 3 if mode == FORWARD else 12 if mode == SECOND else 8
        need = copies * 4 * workload.batch * workload.edges
        room = min(available_bytes() // 2, 6 * 2**30)
        return f"would need about {need / 2**30:.0f} GiB" if need > room else None

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        # pykan edits its width list in place, so it gets its own
        off = {"symbolic_enabled": False, "save_act": False, "auto_save": False}
        return package.MultKAN(width=list(w.widths), grid=w.grid_size, k=w.spline_order, **off)

    def layers(self, network: Any) -> Any:
        return network.act_fun

    def load(self, layer: Any, weights: LayerWeights) -> None:
        layer.coef.copy_(weights.spline.permute(0, 2, 1))  # (in, out, G+k)
        layer.scale_base.copy_(weights.base)
        layer.scale_sp.fill_(1.0)


class EfficientKAN(Peer):
    key = label = "efficient-kan"
    module, install = "efficient_kan", "not on PyPI: put its src folder on the path"
    slow = True

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        return package.KAN(list(w.widths), w.grid_size, w.spline_order)

    def load(self, layer: Any, weights: LayerWeights) -> None:
        super().load(layer, weights)
        layer.spline_scaler.fill_(1.0)


class InKAN(Peer):
    """inkan as its documentation says: compiled basis, except where second derivatives need it eager."""

    key = label = "inkan"
    compiles = only_cubic = True

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        compiled = mode != SECOND
        return package.KANNetwork(list(w.widths), w.grid_size, w.spline_order, compile_basis=compiled)

    def load(self, layer: Any, weights: LayerWeights) -> None:
        layer.weight.copy_(torch.cat([out_in_basis(weights.spline).flatten(1), weights.base.t()], dim=1))


class FlashKAN(Peer):
    key = label = "flashkan"
    compiles = only_cubic = True

    def refuses(self, workload: Workload, mode: str) -> str | None:
        return NO_SECOND if mode == SECOND else super().refuses(workload, mode)

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        return package.KANNetwork(list(w.widths), w.grid_size, w.spline_order)


class FastKAN(Peer):
    """fast-kan with as many Gaussians as we have B-splines; radial functions, so no number to compare."""

    key, label = "fastkan", "FastKAN (RBF)"
    install = "not on PyPI: put its folder on the path"
    exact = False

    def make(self, package: Any, w: Workload, mode: str) -> Any:
        layer = package.FastKANLayer
        widths = pairwise(w.widths)
        return nn.Sequential(*(layer(i, o, num_grids=w.bases, use_layernorm=i > 1) for i, o in widths))

    def layers(self, network: Any) -> Any:
        return network

    def load(self, layer: Any, weights: LayerWeights) -> None:
        """Keep its own: other functions have other weights."""


PEERS = (EfficientKAN(), PyKAN(), InKAN(), FlashKAN(), FastKAN())
