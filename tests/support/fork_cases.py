"""Forks of other codebases' layers, each with an edit that is legitimate until something else changes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import efficient_kan_form

IN, OUT = 5, 3

# in files of their own: pytest rewrites the code of tests
SOURCE = """
import torch
from torch import nn
from benchmarks import basis_forms, efficient_kan_form


class AlwaysBase(basis_forms.FastKANLayer):
    def forward(self, x):
        z = self.layernorm(x) if self.layernorm is not None else x
        return self.spline_linear(self.rbf(z).flatten(-2)) + self.base_linear(self.base_activation(x))


class BothNormed(basis_forms.FastKANLayer):
    def forward(self, x):
        if self.layernorm is not None:
            x = self.layernorm(x)
        return self.spline_linear(self.rbf(x).flatten(-2)) + self.base_linear(self.base_activation(x))


class NeverNormed(basis_forms.FastKANLayer):
    def forward(self, x):
        return self.spline_linear(self.rbf(x).flatten(-2)) + self.base_linear(self.base_activation(x))


class AlwaysBiased(basis_forms.NaiveFourierKANLayer):
    def forward(self, x):
        rows = x.reshape(-1, 1, self.inputdim, 1)
        angle = rows * torch.arange(1, self.gridsize + 1, device=x.device)
        y = (torch.cos(angle) * self.fouriercoeffs[0]).sum((-2, -1))
        y = y + (torch.sin(angle) * self.fouriercoeffs[1]).sum((-2, -1))
        y = y + self.bias
        return y.reshape(*x.shape[:-1], self.outdim)


class ByDegree(basis_forms.ChebyKANLayer):
    def forward(self, x):
        angle = torch.acos(torch.tanh(x).view(-1, self.inputdim, 1).expand(-1, -1, self.degree + 1))
        y = torch.einsum("bir,ior->bo", torch.cos(angle * self.arange), self.cheby_coeffs)
        if self.degree > 3:
            y = 2 * y
        return y


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)
"""


def module_of(folder: Path, text: str = SOURCE, name: str = "forks") -> ModuleType:
    (folder / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def efficient(folder: Path, name: str, *edits: tuple[str, str]) -> Any:
    """Return the class of a fork of efficient-kan: its file, edited."""
    text = Path(efficient_kan_form.__file__).read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return module_of(folder, text, name).KANLinear


HELPED = (
    ("self.b_splines(rows).flatten(1)", "self.basis(rows).flatten(1)"),
    ("    def forward(self, x: Tensor) -> Tensor:\n        assert",
     "    def basis(self, x: Tensor) -> Tensor:\n        return self.b_splines(x)\n\n"
     "    def forward(self, x: Tensor) -> Tensor:\n        assert"),
)  # fmt: skip
BY_ORDER = (
    ("        y = y + self.b_splines(rows)",
     "        if self.spline_order != 3:\n            y = 2 * y\n        y = y + self.b_splines(rows)"),
)  # fmt: skip

COPY = """

class Copy(basis_forms.FastKANLayer):
    def forward(self, x, use_layernorm=True):
        z = self.layernorm(x) if use_layernorm and self.layernorm is not None else x
        y = self.spline_linear(self.rbf(z).flatten(-2))
        return y + self.base_linear(self.base_activation(x)) if self.use_base_update else y
"""
