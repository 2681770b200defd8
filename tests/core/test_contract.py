"""The B-spline contract itself, and the reference backend that every other test trusts.

Truth here is rational arithmetic (`oracle.exact_basis`), scipy, mpmath and finite differences, never the
package.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
from cases import OPS, ORDERS, TABLE, Case, build
from harness import DEVICE, FLOOR, assert_close, ops_of, relative_error, run_op
from kan_kernels import functional as F
from knots_and_points import make_grid, make_points

KNOTS = ("uniform", "ranges", "adaptive", "steep", "repeated", "clamped", "collapsed")


def knots_and_points(
    kind: str, grid_size: int, order: int, points: str, count: int = 24
) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(order * 1009 + grid_size)
    grid = make_grid(kind, 2, grid_size, order, gen)
    return make_points(points, count, grid, order, gen), grid


@pytest.mark.parametrize("case", [c for c in TABLE if c.dtype == torch.float64], ids=lambda c: c.name)
def test_reference_is_the_textbook(case: Case) -> None:
    """The reference in float64 is dense Cox-de Boor on every float64 case of the table."""
    inputs = build(case, DEVICE)
    for op in OPS:
        truth, scales = oracle.run(op, inputs), oracle.magnitude(op, inputs)
        for got, want, scale in zip(run_op("reference", op, inputs), truth, scales, strict=True):
            assert_close(got, want, scale, 0.0, torch.float64, f"reference.{op}[{case.name}]")


# each order with three kinds of knots, which rotate along with it
@pytest.mark.parametrize(
    "order,kind", [(k, KNOTS[(3 * k + n) % len(KNOTS)]) for k in ORDERS for n in range(3)]
)
def test_basis_is_exact(order: int, kind: str) -> None:
    """Every derivative of every basis function against rational arithmetic, row by row, to FLOOR (k+1)
    eps.
    """
    x, grid = knots_and_points(kind, 4, order, "mixed", 8)
    for m in range(order + 2):
        got = F.bspline_basis(x, grid, order, m)
        for b in range(x.shape[0]):
            exact = oracle.exact_basis(float(x[b, 0]), grid[0].tolist(), order, m)
            peak = max((abs(v) for v in exact), default=Fraction(0))
            for have, want in zip(got[b, 0].tolist(), exact, strict=True):
                error = abs(Fraction(have) - want)
                assert error <= FLOOR * (order + 1) * 2.0**-52 * peak, (m, b, have, float(want))
                assert have == 0.0 if want == 0 and peak == 0 else True


@pytest.mark.parametrize("kind", ("uniform", "adaptive", "repeated", "clamped"))
@pytest.mark.parametrize("order", ORDERS)
def test_partition_of_unity(order: int, kind: str) -> None:
    """Inside [t_k, t_{G+k}) the values are not negative and sum to 1, their derivatives sum to 0."""
    x, grid = knots_and_points(kind, 7, order, "inside", 300)
    x = torch.minimum(x, torch.nextafter(grid[:, -order - 1], torch.full((2,), -10.0, dtype=x.dtype)))
    values = F.bspline_basis(x, grid, order)
    assert values.shape == (300, 2, 7 + order) and bool((values >= 0).all())
    torch.testing.assert_close(values.sum(-1), torch.ones_like(x), rtol=0, atol=8 * (order + 1) * 2.0**-52)
    for m in range(1, order + 1):
        d = F.bspline_basis(x, grid, order, m)
        assert bool((d.sum(-1).abs() <= 64 * (order + 1) * 2.0**-52 * d.abs().sum(-1)).all())


@pytest.mark.parametrize("order", ORDERS)
def test_local_support(order: int) -> None:
    """B_r vanishes exactly outside [t_r, t_{r+k+1}), so at most k+1 values are not zero; partial in the
    extension.
    """
    x, grid = knots_and_points("adaptive", 6, order, "mixed", 200)
    values = F.bspline_basis(x, grid, order)
    outside = (x.unsqueeze(-1) < grid[:, : -order - 1]) | (x.unsqueeze(-1) >= grid[:, order + 1 :])
    assert bool((values[outside] == 0).all())
    assert int((values != 0).sum(-1).max()) <= order + 1
    if order:
        x, grid = knots_and_points("adaptive", 6, order, "extension", 200)
        total = F.bspline_basis(x, grid, order).sum(-1)
        assert bool(((total > 0) & (total < 1)).any()) and bool((total <= 1 + 1e-14).all())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("order", (0, 1, 3))
def test_cells_are_half_open(backend: str, order: int, dtype: torch.dtype) -> None:
    """A knot opens its cell and closes the one before; the last knot lies in none. One ulp decides, at every
    knot.

    Read through the k-th derivative, which is constant on a cell and jumps at every knot.
    """
    for kind in ("uniform", "ranges", "adaptive"):
        gen = torch.Generator().manual_seed(7)
        grid = make_grid(kind, 1, 9, order, gen).to(dtype)
        t, rows = grid[0], 9 + order
        weight = torch.randn(1, rows, 1, dtype=dtype, generator=gen)
        middle = (t[1:] + t[:-1]) / 2
        below, above = (torch.nextafter(t, torch.full_like(t, v)) for v in (-torch.inf, torch.inf))

        def at(x: Tensor, grid: Tensor = grid, weight: Tensor = weight, rows: int = rows) -> Tensor:
            args = (
                x[:, None].to(DEVICE),
                None,
                weight.to(DEVICE),
                None,
                None,
                grid.to(DEVICE),
                rows,
                order,
                0,
                order,
                0,
            )
            return ops_of(backend)["forward"](*args)[:, 0].cpu()

        zero = torch.zeros(1, dtype=dtype)
        cell = at(middle)
        size = float(cell.abs().max())
        assert float((cell[1:] - cell[:-1]).abs().min()) > 1e-3 * size, (
            "neighbouring cells must be told apart"
        )
        opened, closed = torch.cat([cell, zero]), torch.cat([zero, cell])
        for x, want in ((t, opened), (above, opened), (below, closed)):
            torch.testing.assert_close(at(x), want, rtol=0, atol=1e-5 * size, msg=f"{kind} knots")


def test_zero_length_cells(backend: str) -> None:
    """0/0 = 0: with all knots equal the spline is zero everywhere, at the knot too, and no NaN appears."""
    for order in (0, 1, 3, 10):
        inputs = build(
            Case(9, 2, 3, 4, order, 0, "collapsed", "knots", torch.float64, base=None, bias=False), DEVICE
        )
        for op in OPS:
            assert all(not bool(t.any()) for t in run_op(backend, op, inputs))


def test_nan_in_nan_out(backend: str) -> None:
    """NaN reaches every result it touches and no other, for every order and past the last derivative."""
    for order, base in ((0, None), (1, "silu"), (3, "identity"), (4, None)):
        for m in (0, 1, order + 1, order + 2):
            inputs = build(Case(6, 3, 4, 5, order, m, points="inside", base=base), DEVICE)
            inputs.x[2, 1] = torch.nan
            y = run_op(backend, "forward", inputs)[0]
            assert bool(y[2].isnan().all()) and not bool(y[torch.arange(6) != 2].isnan().any())
            for op in ("input", "backward"):
                t = run_op(backend, op, inputs)[0]
                assert bool(t[2, 1].isnan()) and int(t.isnan().sum()) == 1
            for d_spline, d_base in (
                run_op(backend, "weight", inputs),
                run_op(backend, "backward", inputs)[1:],
            ):
                assert bool(d_spline[1].isnan().all()) and not bool(d_spline[[0, 2]].isnan().any())
                if base:
                    assert bool(d_base[1].isnan().all()) and not bool(d_base[[0, 2]].isnan().any())


def test_infinity(backend: str) -> None:
    """At +-inf the spline and its derivatives are zero and the base is what torch makes of it, in every
    width.
    """
    x = torch.tensor([[torch.inf], [-torch.inf]], dtype=torch.float64, device=DEVICE)
    grid = make_grid("uniform", 1, 5, 3, torch.Generator()).to(DEVICE)
    run = ops_of(backend)

    def both(width: int, code: int, m: int) -> list[Tensor]:
        c, w, g = (x.new_ones(*shape) for shape in ((1, 8, width), (1, width), (2, width)))
        base = w if code else None
        y = run["forward"](x, None, c, base, None, grid, 8, 3, code, m, 0)[:, 0]
        return [y, run["input"](x, c, base, g, grid, 8, 3, code, m, 0)[:, 0] / width]

    for width in (1, 6, 8, 16, 21):
        for got in both(width, 0, 0) + both(width, 0, 1) + both(width, 2, 2):
            assert got.tolist() == [0.0, 0.0]
        for got in both(width, 2, 1):
            assert got.tolist() == [1.0, 1.0]
        for got in both(width, 2, 0):
            assert got.tolist() == [torch.inf, -torch.inf]
        for got in both(width, 1, 0):
            torch.testing.assert_close(got, torch.nn.functional.silu(x)[:, 0], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("order", (1, 2, 3, 5, 8, 10))
def test_agrees_with_scipy(order: int) -> None:
    """scipy.interpolate.BSpline on the same knots, with all its derivatives, inside the grid."""
    interpolate = pytest.importorskip("scipy.interpolate", reason="scipy is a test extra")
    x, grid = knots_and_points("adaptive", 6, order, "inside", 60)
    for m in range(min(order, 4) + 1):
        want = np.stack(
            [
                interpolate.BSpline(grid[0].numpy(), row, order)(x[:, 0].numpy(), nu=m)
                for row in np.eye(6 + order)
            ],
            -1,
        )
        got = F.bspline_basis(x, grid, order, m)[:, 0].numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("m", range(1, 5))
@pytest.mark.parametrize("base", (None, "silu", "identity"))
def test_derivatives_are_derivatives(backend: str, base: str | None, m: int) -> None:
    """forward at order m is the central difference of forward at m-1: step 1e-4, error O(h^2) and O(eps
    / h).
    """
    case = Case(50, 3, 4, 5, 6, m, "adaptive", "inside", torch.float64, base=base, bias=False)
    inputs, h = build(case, DEVICE), 1e-4
    inputs.x = inputs.x * 0.9
    (got,) = run_op(backend, "forward", inputs)
    x, shifted = inputs.x, []
    inputs.derivative = m - 1
    for step in (-h, h):
        inputs.x = x + step
        shifted.append(run_op(backend, "forward", inputs)[0])
    difference = (shifted[1] - shifted[0]) / (2 * h)
    # h^2/6 times the (m+2)-nd derivative's size, which knots closer than h would spoil: 1e-5 relative has
    # room for both
    torch.testing.assert_close(difference, got, rtol=0, atol=1e-5 * float(got.abs().max()) + 1e-9)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("m", (0, 1, 2, 3, 4, 7, 12))
def test_silu_derivatives(backend: str, m: int, dtype: torch.dtype) -> None:
    """silu^(m) against mpmath at 60 digits, from deep in the tails to the middle.

    Error in units of eps times (|silu^(m)(x)| + the size of the terms it is summed from).
    """
    mp = pytest.importorskip("mpmath", reason="mpmath is a test extra")
    points = [
        -90.0,
        -30.5,
        -8.25,
        -3.0,
        -1.2785,
        -0.25,
        -1e-3,
        0.0,
        1e-6,
        0.5,
        1.0,
        2.4,
        4.0,
        9.0,
        18.0,
        45.0,
        88.0,
    ]
    x = torch.tensor(points, dtype=dtype, device=DEVICE)[:, None]
    one = torch.ones(1, 1, dtype=dtype, device=DEVICE)
    zero = torch.zeros(1, 1, 1, dtype=dtype, device=DEVICE)
    grid = torch.tensor([[200.0, 201.0]], dtype=dtype, device=DEVICE)
    got = ops_of(backend)["forward"](x, None, zero, one, None, grid, 1, 0, 1, m, 0)[:, 0].tolist()
    with mp.workdps(60):
        want = [silu_derivative(mp, mp.mpf(v), m) for v in x[:, 0].tolist()]
    eps = torch.finfo(dtype).eps
    scale = oracle.silu_scale(m)
    for v, have, true in zip(points, got, want, strict=True):
        assert abs(have - true) <= FLOOR * eps * (abs(true) + scale), (v, have, true)


def silu_derivative(mp, x, m: int) -> float:  # type: ignore[no-untyped-def]
    """m-th derivative of x / (1 + exp(-x)) at 60 digits: the polynomial in the logistic function, exactly."""

    def sigma(n: int):  # type: ignore[no-untyped-def]
        s = 1 / (1 + mp.exp(-x))
        return sum(c * s**p for p, c in enumerate(oracle._sigmoid_polynomial(n)))

    return float(x * sigma(m) + (m * sigma(m - 1) if m else 0))


def test_silu_oracle_against_autograd() -> None:
    """The oracle's own base derivatives against nested torch.autograd, so that a slip there cannot hide one
    here.
    """
    x = torch.linspace(-9, 9, 41, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.silu(x)
    for m in range(6):
        torch.testing.assert_close(oracle.base(x.detach(), 1, m), y.detach(), rtol=1e-11, atol=1e-12)
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)


def test_relative_error_helper() -> None:
    """The yardstick itself: largest error in units of the scale, entries that must be zero left to
    assert_close.
    """
    got, truth = torch.tensor([1.0, 2.5, 0.0]), torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert relative_error(got, truth, torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64)) == 0.125
    with pytest.raises(AssertionError, match="1 of 3 entries are wrong; at \\(1,\\)"):
        assert_close(got, truth, torch.ones(3, dtype=torch.float64), 0.0, torch.float32, "y")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(got[:2], truth, truth, 0.0, torch.float32, "y")
