"""Property-based tests: random shapes, knots and points against the oracle; linearity; the three symmetric
forms.

The profile is deterministic (same examples in every run); HYPOTHESIS_PROFILE=explore looks for new ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
from cases import HALF, OPS, Case, build
from harness import DEVICE, FUSED, check_op, run_op
from kan_kernels import functional as F

LAYOUTS = ("contiguous", "contiguous", "transposed", "sliced", "expanded", "column")
KNOTS = ("uniform", "ranges", "adaptive", "steep", "repeated", "clamped", "collapsed")
POINTS = ("inside", "extension", "outside", "knots", "mixed", "nan", "inf")


@st.composite
def cases(
    draw: Any, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64), small: bool = False
) -> Case:
    """Any case that fits in a millisecond; sizes lean to the neighbourhood of powers of two, where
    tiles end.
    """
    edge = st.sampled_from((1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129))
    limit = 12 if small else 140
    size = st.one_of(edge, st.integers(1, limit))
    dtype = draw(st.sampled_from(dtypes))
    layout = draw(st.sampled_from(LAYOUTS))
    batch = draw(size) if layout in ("expanded", "column") else draw(st.one_of(size, st.just(0)))
    order = draw(st.integers(0, 10))
    return Case(
        min(batch, limit),
        min(draw(size), 20 if small else 33),
        min(draw(size), limit),
        draw(st.integers(1, 40)),
        order,
        draw(st.integers(0, min(order + 2, 5))) if dtype not in HALF else draw(st.integers(0, 1)),
        draw(st.sampled_from(KNOTS if dtype not in HALF else KNOTS[:3])),
        draw(st.sampled_from(POINTS)),
        dtype,
        draw(st.sampled_from((None, torch.float32))) if dtype in HALF else None,
        draw(st.sampled_from((None, "silu", "identity"))),
        draw(st.booleans()),
        draw(st.booleans()),
        layout,
    )


@settings(max_examples=250)
@given(cases(), st.sampled_from(list(OPS)))
def test_any_case(case: Case, op: str) -> None:
    """Random cases, every fused backend, one op each, as in test_kernels."""
    for backend in FUSED:
        check_op(backend, op, case, build(case, DEVICE))


@settings(max_examples=80)
@given(cases(HALF), st.sampled_from(list(OPS)))
def test_any_16_bit_case(case: Case, op: str) -> None:
    """The same for 16-bit storage."""
    for backend in FUSED:
        check_op(backend, op, case, build(case, DEVICE))


@settings(max_examples=60)
@given(cases((torch.float64,), small=True), st.sampled_from(list(OPS)))
def test_reference_on_any_case(case: Case, op: str) -> None:
    """And the reference itself against the textbook."""
    check_op("reference", op, case, build(case, DEVICE))


finite = st.floats(-4.0, 4.0, allow_nan=False, allow_subnormal=False, width=64)


@settings(max_examples=150)
@given(st.integers(0, 6), st.lists(finite, min_size=2, max_size=9), st.data())
def test_arbitrary_knots(order: int, inner: list[float], data: Any) -> None:
    """Knots and points that hypothesis thinks up (ties, zeros, tiny gaps), against rational arithmetic.

    Gaps are 0 or at least 1e-300: the reciprocal of a subnormal one is not a number.

    The values of the basis come from convex combinations, so even on such knots they are right to a few eps.
    """
    extra = data.draw(st.lists(finite, min_size=2 * order, max_size=2 * order))
    knots = sorted(inner + extra)
    assume(all(b == a or b - a > 1e-300 for a, b in pairwise(knots)))
    x = data.draw(st.one_of(finite, st.sampled_from(knots)))
    basis = F.bspline_basis(
        torch.tensor([[x]], dtype=torch.float64), torch.tensor([knots], dtype=torch.float64), order
    )
    exact = oracle.exact_basis(x, knots, order)
    for have, want in zip(basis[0, 0].tolist(), exact, strict=True):
        assert abs(have - float(want)) <= 16 * (order + 1) * 2.0**-52
    grid = torch.tensor([knots], dtype=torch.float64, device=DEVICE)
    c = torch.eye(len(exact), dtype=torch.float64, device=DEVICE)[None]
    point = torch.tensor([[x]], dtype=torch.float64, device=DEVICE)
    for backend in FUSED:
        got = F.kan_linear(point, c, grid, spline_order=order, base=None, backend=backend)
        for have, want in zip(got[0].tolist(), exact, strict=True):
            assert abs(have - float(want)) <= 16 * (order + 1) * 2.0**-52


def only_finite(case: Case) -> Case:
    return Case(
        **{**vars(case), "points": "mixed" if case.points in ("nan", "inf") else case.points, "bias": False}
    )


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()


@settings(max_examples=80)
@given(cases((torch.float64,), small=True))
def test_three_forms_of_one_number(case: Case) -> None:
    """<F(x, s, C), g> = <W(x, s, g), C> = <s, X(x, C, g)> = T_m(x; s, C, g), base row included."""
    inputs = build(only_finite(case), DEVICE)
    if inputs.s is None:
        inputs.s = torch.ones_like(inputs.x)
    for backend in FUSED:
        y = run_op(backend, "forward", inputs)[0]
        t = run_op(backend, "input", inputs)[0]
        d_spline, d_base = run_op(backend, "weight", inputs)
        by_y, by_x = dot(y, inputs.g), dot(inputs.s, t)
        by_c = dot(d_spline, inputs.spline_weight)
        if inputs.base_weight is not None:
            by_c = by_c + dot(d_base, inputs.base_weight)
        size = float(dot(oracle.magnitude("forward", inputs)[0], inputs.g.abs()))
        for other in (by_c, by_x):
            assert abs(float(by_y - other)) <= 1e-13 * size + 1e-290


@settings(max_examples=60)
@given(cases((torch.float64,), small=True), st.floats(-3, 3), st.integers(0, 99))
def test_linear_in_everything_but_x(case: Case, factor: float, seed: int) -> None:
    """F, X and W are linear in s, C and g: f(a + factor b) = f(a) + factor f(b)."""
    case = only_finite(case)
    torch.manual_seed(seed)
    for backend in FUSED:
        for op, name in (
            ("forward", "s"),
            ("forward", "C"),
            ("input", "C"),
            ("input", "g"),
            ("weight", "s"),
            ("weight", "g"),
        ):
            results: list[Any] = []
            scale = 0.0
            first = build(case, DEVICE)
            first.s = torch.ones_like(first.x) if first.s is None else first.s
            a: Any = (first.spline_weight, first.base_weight) if name == "C" else (getattr(first, name), None)
            b: Any = tuple(None if t is None else torch.randn_like(t) for t in a)
            both: Any = tuple(None if p is None else p + factor * q for p, q in zip(a, b, strict=True))
            for operands in (a, b, both):
                if name == "C":
                    first.spline_weight, first.base_weight = operands
                else:
                    setattr(first, name, operands[0])
                results.append(run_op(backend, op, first))
                scale = max(
                    scale, *(float(m.max()) if m.numel() else 0.0 for m in oracle.magnitude(op, first))
                )
            for p, q, r in zip(*results, strict=True):
                assert bool(((p + factor * q - r).abs() <= 1e-13 * scale + 1e-290).all()), (op, name)


@settings(max_examples=40)
@given(cases((torch.float32,), small=True))
def test_rows_are_independent(case: Case) -> None:
    """Reversing the batch reverses the result, bit for bit; a row alone gives what it gives in company."""
    if case.batch < 2 or case.layout == "expanded":
        return
    inputs, again = build(case, DEVICE), build(case, DEVICE)
    again.x, again.g = inputs.x.flip(0), inputs.g.flip(0)
    again.s = None if inputs.s is None else inputs.s.flip(0)
    for backend in FUSED:
        for op in ("forward", "input"):
            a, b = run_op(backend, op, inputs)[0], run_op(backend, op, again)[0].flip(0)
            scale = oracle.magnitude(op, inputs)[0]
            same = (a.double() - b.double()).abs() <= 4e-6 * scale + 1e-30
            assert bool((same | ~scale.isfinite() | (a.isnan() & b.isnan())).all()), op
