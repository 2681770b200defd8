"""`explain` describes the very case that a call runs, for every basis and every layer that has one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import peer_efficient_kan as peer
from harness import BACKENDS
from kan_kernels import KAN, KANConv2d, KANLinear, explain, functional, integrations, use_backend
from kan_kernels._engine import dispatch, layer, layer_norm_rbf, network
from kan_kernels.integrations import accelerate, cheby_kan, efficient_kan, fast_kan, fourier_kan

HALF = torch.bfloat16

MODULES: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: KANLinear(3, 2, 6, 2, base="identity"), "3 -> 2 on cpu, torch.float32: "),
    (lambda: KAN([3, 4, 2], dtype=torch.float64), "4 -> 2 on cpu, torch.float64: "),
    (lambda: efficient_kan.KAN([3, 4, 2], 6, 2), "4 -> 2 on cpu, torch.float32: "),
    (lambda: efficient_kan.KANLinear(3, 2, base_activation=nn.GELU), "3 -> 2 on cpu, torch.float32: "),
    (lambda: fast_kan.FastKAN([3, 4, 2], num_grids=5).to(HALF),
     "4 -> 2 on cpu, torch.bfloat16, 5 functions of 'rbf': "),
    (lambda: fast_kan.FastKANLayer(3, 2, use_layernorm=False), "torch.float32, 8 functions of 'rbf': "),
    (lambda: fast_kan.FastKANLayer(3, 2, use_base_update=False, backend="reference"),
     "8 functions of 'rbf': reference: asked for by backend="),
    (lambda: fast_kan.FastKANLayer(3, 2), "8 functions of 'rbf', layer_norm_rbf: "),
    (lambda: cheby_kan.ChebyKANLayer(3, 2, 4), "torch.float32, 5 functions of 'chebyshev': "),
    (lambda: fourier_kan.NaiveFourierKANLayer(3, 2, 4), "torch.float32, 8 functions of 'fourier': "),
]  # fmt: skip


def cases_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """The (case, backend) pairs that were chosen for."""
    seen: list[tuple[Any, Any]] = []
    choose = dispatch.choose

    def spy(case: Any, backend: str | None = None) -> Any:
        seen.append((case, backend))
        return choose(case, backend)

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "choose", spy)
        patch.setattr(layer, "_specs", {})
        patch.setattr(network, "_found", {})
        layer_norm_rbf._chosen.cache_clear()
        call()
    return seen


@pytest.mark.parametrize(("make", "text"), MODULES)
def test_the_case_that_runs(make: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    said: list[str] = []
    told = cases_of(monkeypatch, lambda: said.append(explain(module)))
    x = torch.randn(5, 3, dtype=next(module.parameters()).dtype)
    assert set(told) == set(cases_of(monkeypatch, lambda: module(x)))
    whole = isinstance(module, KAN)  # has a line for all layers too
    sizes = {(case.in_features, case.out_features) for case, _ in told}
    assert text in said[0] and len(said[0].splitlines()) == whole + len(sizes)


@pytest.mark.parametrize(
    ("basis", "functions"), [("rbf", 6), ("chebyshev", 6), ("chebyshev", 1), ("fourier", 6)]
)
def test_widths(basis: str, functions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case of `basis_linear` with a weight of this shape."""
    told = cases_of(
        monkeypatch, lambda: explain((3, 2), basis=basis, functions=functions, base=None, derivative=1)
    )
    grid = torch.linspace(-1, 1, functions + 1).expand(3, -1) if basis == "rbf" else None
    weight = torch.randn(3, functions, 2)
    x = torch.rand(5, 3)
    assert told == cases_of(
        monkeypatch, lambda: functional.basis_linear(x, weight, grid, basis=basis, derivative=1)
    )
    with use_backend("reference"):
        text = explain((3, 2), basis=basis, functions=functions)
    assert f"3 -> 2 on cpu, torch.float32, {functions} functions of '{basis}': reference: asked for" in text


def test_fast_kan_in_plain_torch() -> None:
    """A layer that no kernel runs says so."""
    layer = fast_kan.FastKANLayer(3, 2)
    layer.rbf.grid.requires_grad_()
    assert "3 -> 2 on cpu, torch.float32: plain torch, since the centres ask for a gradient" in explain(layer)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: explain((3, 2), basis="wavelet"), ValueError, "basis: got 'wavelet', expected one of"),
        (lambda: explain((3, 2), basis="fourier", functions=3), ValueError, "functions: got 3"),
        (lambda: explain((3, 2), basis=None), TypeError, "basis: got None, expected one of 'bspline'"),
        (lambda: explain((3, 2), basis="rbf", functions=0), ValueError, "functions: got 0"),
        (lambda: explain((3, 2), basis="rbf", functions=2.0), TypeError, "functions: got 2.0"),
        (lambda: explain((3, 2), basis="rbf", functions=257), ValueError,
         "functions: got 257"),
        (lambda: explain(3), TypeError,
         "model_or_widths: got int, expected a torch.nn.Module, or the widths"),
        (lambda: explain("net"), TypeError, "model_or_widths: got 'net', expected a sequence"),
        (lambda: explain(KANLinear), TypeError, "model_or_widths: got type, expected a torch.nn.Module"),
        (lambda: explain((3,)), ValueError, "model_or_widths: got 1 of them"),
        (lambda: explain((3, 2), spline_order=11), ValueError, "spline_order: got 11"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


class Block(nn.Module):
    """A user's module, with layers of every origin in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3)
        self.conv = KANConv2d(2, 4, (3, 1), groups=2)
        self.kan, self.peer, self.cheby = KAN([4, 3, 2]), peer.KAN([3, 2]), cheby_kan.ChebyKANLayer(3, 2, 4)
        self.again = self.conv


def test_every_layer_of_a_tree() -> None:
    """One paragraph a layer, by its name, once; what is no layer of ours is not mentioned."""
    model = Block()
    accelerate(model.peer)
    paragraphs = [line for line in explain(model).splitlines() if not line.startswith("  ")]
    starts = [
        "conv (KANConv2d): 2 -> 4, 3x1 on cpu, torch.float32, kan_conv: ",
        "kan (KAN): kan_network runs all layers in one call",
        "kan.layers.0 (KANLinear): 4 -> 3 on cpu, torch.float32: ",
        "kan.layers.1 (KANLinear): 3 -> 2 on cpu, torch.float32: ",
        "peer.layers.0 (AcceleratedKANLinear): runs the kernels",
        "cheby (ChebyKANLayer): 3 -> 2 on cpu, torch.float32, 5 functions of 'chebyshev': ",
    ]
    for paragraph, start in zip(paragraphs, starts, strict=True):
        assert paragraph.startswith(start), paragraph
    model.peer.layers[0].grid.requires_grad_()
    assert "peer.layers.0 (AcceleratedKANLinear): runs the peer's own code: " in explain(model)


def test_one_function() -> None:
    """The name in `integrations` is this one; of a tree without our layers it says that there are none."""
    assert integrations.explain is explain is dispatch.explain
    assert explain(nn.Sequential(nn.Linear(3, 2))) == "nothing in this model is accelerated"
    assert explain(KANLinear(3, 3)).replace("(the model)", "0") == explain(nn.Sequential(KANLinear(3, 3)))


@pytest.mark.skipif("triton" in BACKENDS, reason="Triton runs here")
@pytest.mark.parametrize("make", [KANLinear, lambda *sizes, **options: KANConv2d(*sizes, 3, **options)])
def test_a_backend_that_cannot_run(make: Any) -> None:
    """The reason that the call would raise, not an error; the layers beside it are told of too."""
    text = explain(nn.Sequential(make(3, 4, backend="triton"), KANLinear(4, 2)))
    assert "cannot run: backend 'triton', asked for by backend=, cannot run this case: " in text
    assert "1 (KANLinear): 4 -> 2 on cpu" in text
    assert "cannot run: backend 'triton'" in explain((3, 4), backend="triton")


def test_compiled_and_wrapped_models() -> None:
    """Layers are found under the names that their wrappers give them."""
    assert "_orig_mod.layers.0 (KANLinear): 3 -> 2 on cpu" in explain(torch.compile(KAN([3, 2])))
    pruned = KANLinear(3, 2)
    nn.utils.parametrizations.weight_norm(pruned, "spline_weight")
    assert "3 -> 2 on cpu, torch.float32: " in explain(pruned)
