"""Section 4.3: the chains have their known mobility edges, and the fast run finds two of them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from harness import run_example

pytest.importorskip("scipy")
models: Any = importlib.import_module("examples.anderson_models")
MODELS = {model.name: model for model in models.MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_known_edge_separates_the_states(name: str) -> None:
    """97% of the states are where the formula says: 144 or 178 sites do not resolve the others."""
    model = MODELS[name]
    x, dimension = models.eigenstates(model, 40, 12 - (name == "MM"), seed=3)
    inputs = {name: x[..., i] for i, name in enumerate(model.inputs)}
    localised, expected = dimension < 0.5, model.g(inputs) > 0
    assert 0.2 < localised.mean() < 0.8
    assert (localised == expected).mean() > 0.97
    assert (localised == ~expected).mean() < 0.03


def test_chains_are_rings() -> None:
    """Symmetric, the hopping wraps around, and only every second site of the mosaic has a potential."""
    at = {"lambda": 0.7, "alpha": 0.3, "p": 1.2, "phi": 0.4}
    for model in MODELS.values():
        h = model.hamiltonian(at, 10)
        assert np.array_equal(h, h.T) and len(h) == 55 * (1 + (model.name == "MM"))
        assert h[0, 1] == h[0, -1] == pytest.approx(np.exp(-1.2) if model.name == "MAAM" else 1.0)
    mosaic = np.diag(MODELS["MM"].hamiltonian(at, 10))
    assert not mosaic[1::2].any() and mosaic[0] == pytest.approx(1.4 * np.cos(0.4))


def test_fractal_dimension_at_both_ends() -> None:
    states = np.stack([np.full(100, 0.1), np.eye(100)[3]], 1)
    assert models.fractal_dimension(states) == pytest.approx([1.0, 0.0], abs=1e-12)


def test_terms_of_a_product_are_chosen() -> None:
    """From states on both sides of x y = 1, the term x*y and nothing else; tolerance 0 wants the best."""
    sympy = pytest.importorskip("sympy")
    pytest.importorskip("sklearn")
    search: Any = importlib.import_module("examples.anderson_search")
    x = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    part = search.Part(x, (x.prod(1, keepdim=True) > 1).double(), 20)
    a, b = sympy.symbols("a b")
    formulas = search.choose_terms((a + b + 1) ** 2, ["a", "b"], part, most=3)
    found = search.simplest(formulas, part, 0.01)
    assert found.terms == [a * b]
    assert float(found.weights[0]) == pytest.approx(-found.constant, rel=0.02)
    assert part.accuracy(found) > 0.99


@pytest.mark.long
def test_edges_are_found() -> None:
    """(lambda E)^2 = 1 up to what 178 sites resolve, alpha E / 2 + lambda = 1, and nothing of phi."""
    pytest.importorskip("sympy")
    pytest.importorskip("sklearn")
    results = run_example("anderson")["models"]
    found = {result["model"]: result for result in results}
    weight = float(found["MM"]["found"].split("*")[0])
    assert found["MM"]["found"] == f"{weight}*E**2*lambda**2 - 1" and 0.8 < weight < 1.1
    product, strength = found["GAAM"]["found"].removesuffix("*lambda - 1").split("*E*alpha + ")
    assert 0.45 < float(product) < 0.55 and 0.95 < float(strength) < 1.05
    assert all("phi" not in result["found"] for result in results)
    assert all(result["accuracy"]["found"] > 0.97 for result in results)
