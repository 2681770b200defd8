"""What the tests against the real pykan share: a model beside an accelerated one, and how to compare them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels.integrations import accelerate

kan = pytest.importorskip("kan", reason="pykan is not installed; it is part of the extra 'test'")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

METRICS = (
    "edge_forward_spline_n",
    "edge_forward_spline_u",
    "edge_forward_sum",
    "edge_backward",
    "node_backward",
)
STATISTICS = (
    "acts",
    "acts_premult",
    "spline_preacts",
    "spline_postacts",
    "spline_postsplines",
    "acts_scale",
    "acts_scale_spline",
    "edge_actscale",
    "subnode_actscale",
)
# Constructor's options, each a case. Sums of a few hundred float64 numbers in another order: 1e-10 is ample.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "zero": {"base_fun": "zero"},
    "identity": {"base_fun": "identity"},
    "fine": {"k": 5, "grid": 7},
    "linear": {"k": 1, "grid": 4},
    "affine": {"affine_trainable": True},
    "products": {"width": [2, [3, 2], 1], "mult_arity": 2},
    "triples": {"width": [2, [2, 2], [2, 1], 1], "mult_arity": 3, "affine_trainable": True},
    "uneven": {"width": [2, [2, 2], 1], "mult_arity": [[], [2, 3], []]},
    "sparse": {"width": [4, 4, 2], "sparse_init": True},
    "frozen": {"sp_trainable": False, "sb_trainable": False},
    "numerical": {"symbolic_enabled": False},
    "sine": {"base_fun": torch.sin},  # pykan's own code in the layers
}


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pykan writes into the working directory, and takes its dtype from torch's default."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def twins(**options: Any) -> tuple[Any, Any]:
    """A pykan model, and an equal one that is accelerated."""
    options = {"width": [2, 5, 1], "seed": 3, "auto_save": False, "noise_scale": 0.5, **options}
    want = kan.KAN(**copy.deepcopy(options))
    got = copy.deepcopy(want)
    assert accelerate(got).taken
    return want, got


def data(model: Any, batch: int = 60, seed: int = 0) -> Tensor:
    """Inputs inside the grid, in its extension and outside."""
    generator = torch.Generator().manual_seed(seed)
    dtype = model.act_fun[0].coef.dtype
    return torch.randn(batch, model.width_in[0], generator=generator, dtype=torch.float64).to(dtype)


def same(got: Tensor | None, want: Tensor | None, what: str, tolerance: float = 1e-10) -> None:
    """Equal up to rounding, also in being absent and in carrying gradients; NaN where the other has it."""
    assert (got is None) == (want is None), f"{what}: {got is None}, expected {want is None}"
    if got is None or want is None:
        return
    assert got.requires_grad == want.requires_grad, what
    assert got.shape == want.shape and got.dtype == want.dtype, what
    torch.testing.assert_close(
        got, want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def same_parameters(got: Any, want: Any, tolerance: float = 1e-10, gradients: bool = False) -> None:
    """All parameters, by name; their gradients in place of them."""
    a, b = dict(got.named_parameters()), dict(want.named_parameters())
    assert a.keys() == b.keys()
    for name in a:
        if gradients:
            same(a[name].grad, b[name].grad, f"gradient of {name}", tolerance)
        else:
            same(a[name], b[name], name, tolerance)


def same_statistics(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    """Everything that pykan keeps of a forward pass."""
    for name in STATISTICS:
        a, b = getattr(got, name), getattr(want, name)
        assert type(a) is list and len(a) == len(b), name
        for n, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{name}[{n}]", tolerance)


def give_functions(*models: Any) -> None:
    """Symbolic edges of several kinds: alone, beside a spline, taken back, and one of the user's own."""
    for model in models:
        model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False, log_history=False)
        model.fix_symbolic(0, 1, 0, "x^2", fit_params_bool=False, log_history=False)
        model.set_mode(0, 1, 0, "sn", mask_n=0.7)
        model.fix_symbolic(0, 1, 1, lambda x: torch.tanh(x) + 1, fit_params_bool=False, log_history=False)
        model.fix_symbolic(1, 0, 0, "exp", fit_params_bool=False, log_history=False)
        model.unfix_symbolic(1, 0, 0, log_history=False)
        model.fix_symbolic(1, 2, 0, "0", fit_params_bool=False, log_history=False)
        with torch.no_grad():
            for layer in model.symbolic_fun:
                affine = layer.affine
                affine += 0.1 * torch.linspace(-1, 1, affine.numel()).view_as(affine)
