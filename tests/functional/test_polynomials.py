"""Orthogonal polynomials: the classical families against scipy, their derivatives, their domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

from harness import BACKENDS
from kan_kernels import functional as F
from kan_kernels.functional.polynomials import orthogonal_polynomials

FAMILIES: list[tuple[str, dict[str, float], Callable[[int, Any], Any]]] = [
    ("legendre", {}, special.eval_legendre),
    ("jacobi", {"alpha": 0.5, "beta": -0.3}, lambda n, x: special.eval_jacobi(n, 0.5, -0.3, x)),
    ("jacobi", {"alpha": -0.5, "beta": -0.5}, lambda n, x: special.eval_jacobi(n, -0.5, -0.5, x)),
    ("jacobi", {"alpha": -0.9, "beta": 3.0}, lambda n, x: special.eval_jacobi(n, -0.9, 3.0, x)),
    ("gegenbauer", {"lam": 0.7}, lambda n, x: special.eval_gegenbauer(n, 0.7, x)),
    ("gegenbauer", {"lam": -0.3}, lambda n, x: special.eval_gegenbauer(n, -0.3, x)),
    ("hermite", {}, special.eval_hermite),
    ("laguerre", {}, special.eval_laguerre),
    ("laguerre", {"alpha": -0.4}, lambda n, x: special.eval_genlaguerre(n, -0.4, x)),
]


def values(grid: torch.Tensor, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """(points, R): every function of feature 0."""
    eye = torch.eye(grid.shape[1] // 3, dtype=x.dtype).unsqueeze(0)
    return F.basis_linear(x, eye, grid[:1], basis="orthogonal", **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "parameters", "known"), FAMILIES)
def test_classical(family: str, parameters: dict[str, float], known: Any, backend: str) -> None:
    """Degrees 0 to 12 on [-1, 1], ends included, as scipy has them."""
    x = torch.linspace(-1, 1, 41, dtype=torch.float64).unsqueeze(1)
    grid = orthogonal_polynomials(family, 13, 2, dtype=torch.float64, **parameters)
    got = values(grid, x, backend=backend).numpy()
    want = np.stack([known(n, x[:, 0].numpy()) for n in range(13)], 1)
    largest = np.abs(want).max(0)
    np.testing.assert_allclose(got / largest, want / largest, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", (1, 2, 5, 13))
def test_derivatives(m: int, backend: str) -> None:
    """P_n^(a,b) derives to Jacobi polynomials of higher parameters (DLMF 18.9.15), to 0 past its degree."""
    a, b = 0.4, -0.2
    x = torch.linspace(-1, 1, 17, dtype=torch.float64).unsqueeze(1)
    grid = orthogonal_polynomials("jacobi", 13, 1, alpha=a, beta=b, dtype=torch.float64)
    got = values(grid, x, derivative=m, backend=backend).numpy()
    for n in range(13):
        if n < m:
            assert not got[:, n].any()
            continue
        factor = special.poch(n + a + b + 1, m) / 2.0**m
        want = factor * special.eval_jacobi(n - m, a + m, b + m, x[:, 0].numpy())
        np.testing.assert_allclose(got[:, n], want, rtol=1e-11, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("jacobi", {"alpha": -1.0, "beta": 0.0}, r"alpha: got -1\.0, expected a finite number > -1"),
        ("jacobi", {"alpha": 0.0, "beta": -1.5}, r"beta: got -1\.5"),
        ("jacobi", {"alpha": 0.0}, "beta: got None"),
        ("laguerre", {"alpha": float("nan")}, "alpha: got nan"),
        ("gegenbauer", {"lam": -0.5}, "lam: got -0.5"),
        ("gegenbauer", {"lam": 0.0}, "lam: got 0"),
        ("legendre", {"alpha": 1.0}, "alpha: got 1.0, expected None"),
        ("bessel", {}, "family: got 'bessel', expected one of 'legendre'"),
    ],
)
def test_outside_its_domain(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        orthogonal_polynomials(family, 4, 1, **options)
    with pytest.raises(ValueError, match=r"functions: got 257, expected an int in 1\.\.256"):
        orthogonal_polynomials("legendre", 257, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_coefficients(backend: str) -> None:
    grid = orthogonal_polynomials("legendre", 4, 2)
    weight = torch.zeros(2, 4, 1)
    with pytest.raises(ValueError, match=r"grid: got shape \(2, 11\), expected \(2, 12\)"):
        F.basis_linear(torch.zeros(1, 2), weight, grid[:, :-1], basis="orthogonal", backend=backend)
    grid[1, 5] = torch.inf
    with pytest.raises(ValueError, match="column 5 of feature 1 is inf, expected finite numbers"):
        F.basis_linear(torch.zeros(1, 2), weight, grid, basis="orthogonal", backend=backend)
