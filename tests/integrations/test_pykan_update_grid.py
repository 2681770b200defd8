"""update_grid_from_samples of an accelerated KANLayer where least squares have one solution and many."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels.integrations import accelerate
from pykan_cases import kan, room, same, same_parameters  # noqa: F401

F32, F64 = torch.float32, torch.float64


def samples(name: str, seed: int) -> Tensor:
    """(B, 3), float64."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(rows: int) -> Tensor:
        return torch.rand(rows, 3, generator=draw, dtype=F64)

    if name == "clusters":
        return torch.cat([0.01 * uniform(100) - 0.9, 0.01 * uniform(100) + 0.9])
    if name == "integers":
        return (3 * uniform(200)).floor()
    if name == "constant":
        return uniform(50) * torch.tensor([0.0, 1.0, 1.0]) + 0.25
    return 4 * uniform({"few": 6, "many": 500}[name]) - 2


@pytest.fixture
def own_fits() -> Iterator[list[torch.Size]]:
    """Grows with every fit that pykan's own code does, by the shape of its values."""
    code, fits = sys.modules["kan.KANLayer"].curve2coef.__code__, list[torch.Size]()

    def seen(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code:
            fits.append(frame.f_locals["y_eval"].shape)

    sys.setprofile(seen)
    yield fits
    sys.setprofile(None)


def updated(
    name: str, mode: str, dtype: torch.dtype, seed: int, fits: list[torch.Size]
) -> tuple[Any, Any, bool]:
    """pykan's layer, the accelerated one, and whether the latter ran pykan's fit."""
    x = samples(name, seed).to(dtype)
    layers, counts = [], []
    for fast in (False, True):
        torch.manual_seed(seed)
        layer = kan.KANLayer(in_dim=3, out_dim=4)
        torch.nn.Module.to(layer, dtype)
        if fast:
            assert accelerate(layer).taken
        fits.clear()
        layer.update_grid_from_samples(x, mode)
        counts.append(len(fits))
        layers.append(layer)
    assert counts[0] == 1
    return layers[0], layers[1], counts[1] == 1


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in ("clusters", "integers", "constant") for mode in ("sample", "grid")]
    + [("few", "sample")],  # eleven points of a new grid would decide eight coefficients
)
def test_many_solutions(name: str, mode: str, dtype: torch.dtype, own_fits: list[torch.Size]) -> None:
    """pykan's own code takes one. What ran is compared: two runs of it may differ, by 0.005 in float64."""
    for seed in range(3):
        want, got, own = updated(name, mode, dtype, seed, own_fits)
        assert own
        same(got.grid, want.grid, "knots", 0.0)
        assert got.coef.isfinite().all()


@pytest.mark.parametrize("mode", ["sample", "grid"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-4), (F64, 1e-11)])
def test_one_solution(dtype: torch.dtype, tolerance: float, mode: str, own_fits: list[torch.Size]) -> None:
    """One fit for each input and not for each edge."""
    for seed in range(3):
        want, got, own = updated("many", mode, dtype, seed, own_fits)
        assert not own
        same_parameters(got, want, tolerance)
