"""The committed table of knots as tensors: standardised inputs, signatures as classes, a fixed split."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .knots_data import NUMBERS, TABLE

GROUPS = ("0", "D3", "D4", "D6", "D8", "Z/2 + Z/2")  # a column each, as in the paper's data
GEOMETRY = ("CS", "cusp", "$\\lambda$", "Im $\\mu$", "Re $\\mu$", "volume")
LABELS = (*GEOMETRY, *GROUPS[:-1], "$Z_2^2$")  # of a picture
TRANSLATIONS = ("longitudinal_translation", "meridional_translation_real", "meridional_translation_imag")
PARTS = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Knots:
    """Rows are knots. x: (n, features), standardised by the training rows' mean and std; y: (n,) classes."""

    features: list[str]
    x: Tensor
    mean: Tensor
    std: Tensor
    signature: Tensor
    y: Tensor
    classes: Tensor
    rows: dict[str, Tensor]

    def part(self, name: str, features: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """(x, y) of the training, validation or test rows, of some of the features."""
        x = self.x[self.rows[name]]
        return (x if features is None else x[:, features]), self.y[self.rows[name]]

    def raw(self, name: str, feature: str) -> Tensor:
        """A feature as it is, of some rows."""
        i = self.features.index(feature)
        return self.x[self.rows[name], i] * self.std[i] + self.mean[i]

    def slope(self, name: str) -> Tensor:
        """The natural slope Re(l / mu) = l r / (r^2 + m^2) of some rows."""
        length, r, m = (self.raw(name, feature) for feature in TRANSLATIONS)
        return length * r / (r.square() + m.square())

    def scale_free(self) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        """((r / l, m / l) by their standard deviations, signatures) of each part, and the deviations."""
        raw = {p: [self.raw(p, name) for name in TRANSLATIONS] for p in PARTS}
        uv = {p: torch.stack([r / length, m / length], 1) for p, (length, r, m) in raw.items()}
        std = uv["train"].std(0)
        return {p: (uv[p] / std, self.signature[self.rows[p]].unsqueeze(1)) for p in PARTS}, std


def load(crossings: int | None = None) -> Knots:
    """The knots of the table, or those of up to so many crossings; split by a shuffle with seed 0."""
    with np.load(TABLE) as file:
        table = {name: file[name] for name in file.files}
    if crossings is not None:
        few = table["crossings"] <= crossings
        table = {name: v[few] if len(v) == len(few) else v for name, v in table.items()}
    group = table["symmetry_groups"][table["symmetry"]]
    columns = [table[name].astype(np.float64) for name in NUMBERS] + [1.0 * (group == g) for g in GROUPS]
    x, signature = torch.from_numpy(np.stack(columns, 1)), torch.from_numpy(table["signature"]).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    sizes = [round(len(x) * share) for share in list(PARTS.values())[:-1]]
    rows = dict(zip(PARTS, order.tensor_split(np.cumsum(sizes).tolist()), strict=True))
    mean, std = x[rows["train"]].mean(0), x[rows["train"]].std(0)
    classes = signature.unique()
    return Knots(
        features=[*NUMBERS, *(f"symmetry {g}" for g in GROUPS)],
        x=(x - mean) / std.where(std > 0, 1.0),
        mean=mean,
        std=std,
        signature=signature.double(),
        y=torch.searchsorted(classes, signature),
        classes=classes,
        rows=rows,
    )
