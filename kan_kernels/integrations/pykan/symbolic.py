"""What the symbolic half of a pykan layer adds, edge by edge only where there is something to add.

pykan evaluates every edge's function and multiplies by its mask. An edge that is masked and never was given a
function adds 0 * (c * 0 + d) = 0 as long as the input and the affine parameters are finite.
"""

import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .code import is_zero

# The tables of functions seen last: layer -> attribute -> (a copy, the edges with functions of their own)
_seen: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


class Symbolic(NamedTuple):
    """The edges of one layer that have functions: column n belongs to the edge inputs[n] -> outputs[n]."""

    inputs: Tensor  # (n,) indices
    outputs: Tensor  # (n,)
    columns: Tensor  # (B, n), carrying gradients

    def add_to(self, y: Tensor) -> Tensor:
        """Return y (B, out) plus every edge's values."""
        return y.index_add(1, self.outputs, self.columns)


def evaluate(layer: Any, x: Tensor, singularity_avoiding: bool, y_th: float) -> Symbolic | None:
    """Return the edges of a Symbolic_KANLayer that may add something at x; None if all add 0.

    Raises:
        NotFinite: x or the affine parameters are such that masked edges give NaN.
    """
    active = _active(layer, singularity_avoiding)
    affine = layer.affine
    if len(active) < layer.in_dim * layer.out_dim and not math.isfinite(
        float(x.detach().sum() + affine.detach().sum())
    ):
        raise NotFinite
    if not active:
        return None
    outputs, inputs = torch.tensor(active, device=x.device).T
    a, b, c, d = affine[outputs, inputs].unbind(1)
    arguments = x[:, inputs] * a + b
    threshold = torch.tensor(y_th, device="cpu")
    columns = []
    for n, (j, i) in enumerate(active):
        argument = arguments[:, n : n + 1]
        if singularity_avoiding:
            columns.append(layer.funs_avoid_singularity[j][i](argument, threshold)[1])
        else:
            columns.append(layer.funs[j][i](argument))
    values = layer.mask[outputs, inputs] * (c * torch.cat(columns, dim=1) + d)
    return Symbolic(inputs, outputs, values)


class NotFinite(Exception):
    """The error where pykan's own code has to say where NaN comes from."""


def _active(layer: Any, singularity_avoiding: bool) -> list[tuple[int, int]]:
    """Return (output, input) of every edge that is not masked or ever was given a function."""
    given = _given(layer, "funs_avoid_singularity" if singularity_avoiding else "funs")
    mask = layer.mask.detach()
    if not mask.any():
        return given
    unmasked = mask.nonzero().tolist()
    return sorted({*given, *map(tuple, unmasked)}) if given else [(j, i) for j, i in unmasked]


def _given(layer: Any, attribute: str) -> list[tuple[int, int]]:
    """Return (output, input) of every edge with another function than the one it was made with.

    Kept until the table of functions changes: comparing it with a copy is far cheaper than reading it.
    """
    table = getattr(layer, attribute)
    seen = _seen.setdefault(layer, {})
    kept = seen.get(attribute)
    if kept is not None and kept[0] == table:
        return kept[1]
    avoiding = attribute == "funs_avoid_singularity"
    given = [
        (j, i)
        for j, row in enumerate(table)
        for i, function in enumerate(row)
        if not is_zero(function, avoiding)
    ]
    seen[attribute] = ([list(row) for row in table], given)
    return given
