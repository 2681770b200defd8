"""An oracle that shares nothing with the package: textbook Cox-de Boor, dense, in float64, slow and plain.

The package's reference backend is proved against this one; every other backend is proved against the
reference.
`exact_basis` goes further: rational arithmetic, no rounding at all.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bases
from cases import Inputs


def basis(x: Tensor, grid: Tensor, order: int, derivative: int = 0) -> Tensor:
    """B_r^(m)(x[b, i]) as (B, I, G+k), from x (B, I) and knots (I, G+2k+1); de Boor's recursion with
    0/0 = 0.
    """
    last = grid[:, -1] + 1.0
    t = grid.unsqueeze(0)
    u = torch.where(x.isfinite(), x, last).unsqueeze(-1)
    value = ((u >= t[..., :-1]) & (u < t[..., 1:])).to(x.dtype)
    if derivative > order:
        value = torch.zeros_like(value[..., : value.shape[-1] - order])
    else:
        for p in range(1, order + 1):
            left, right = t[..., p:-1] - t[..., : -p - 1], t[..., p + 1 :] - t[..., 1:-p]
            low, high = value[..., :-1], value[..., 1:]
            if p > order - derivative:  # the last m steps differentiate
                value = p * (_ratio(low, left) - _ratio(high, right))
            else:
                value = _ratio((u - t[..., : -p - 1]) * low, left) + _ratio(
                    (t[..., p + 1 :] - u) * high, right
                )
    return torch.where(x.isnan().unsqueeze(-1), torch.full_like(value, torch.nan), value)


def values(kind: int, x: Tensor, grid: Tensor, functions: int, order: int, derivative: int) -> Tensor:
    """B_r^(m)(x[b, i]) of any basis, by its code."""
    return bases.values(kind, x, grid, functions, derivative) if kind else basis(x, grid, order, derivative)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)


@cache
def _sigmoid_polynomial(m: int) -> tuple[int, ...]:
    """Coefficients of the logistic function's m-th derivative as a polynomial in itself: P_{m+1} = P_m'(s) (s
    - s^2).
    """
    if m == 0:
        return (0, 1)
    derivative = [n * c for n, c in enumerate(_sigmoid_polynomial(m - 1))][1:]
    out = [0] * (len(derivative) + 2)
    for n, c in enumerate(derivative):
        out[n + 1] += c
        out[n + 2] -= c
    return tuple(out)


def sigmoid_derivative(x: Tensor, m: int) -> Tensor:
    """m-th derivative of the logistic function: its polynomial at -|x|, in long double, as the terms
    alternate.
    """
    if m == 0:
        return torch.sigmoid(x)
    s: Any = 1.0 / (1.0 + np.exp(np.abs(x.numpy().astype(np.longdouble))))
    value: Any = np.zeros_like(s)
    for c in reversed(_sigmoid_polynomial(m)):
        value = value * s + np.longdouble(c)
    half = torch.from_numpy(value.astype(np.float64))
    return torch.where(x > 0, (-1.0) ** (m + 1) * half, half)


def silu_scale(m: int) -> float:
    """Size of silu^(m) and of the terms it is summed from: like m!/pi^m, as the nearest poles are +-i pi.

    silu itself is one product, whose error is relative; only where exp(x) leaves float32's normal numbers,
    below x = -87, may it be flushed to zero: an error of 87 exp(-87) = 1.4e-36, 8 eps times 1.5e-30.
    """
    if m == 0:
        return 2e-30
    return 0.5 + math.factorial(m) / math.pi**m


def base(x: Tensor, code: int, m: int) -> Tensor:
    """m-th derivative of the base activation: 0 none, 1 silu, 2 identity. NaN stays NaN."""
    if code == 1:
        value = x * sigmoid_derivative(x, m)
        return value + m * sigmoid_derivative(x, m - 1) if m else value
    if code == 2:
        value = x if m == 0 else torch.full_like(x, 1.0 if m == 1 else 0.0)
        return torch.where(x.isnan(), x, value)
    return torch.zeros_like(x)


def forward(x, s, spline_weight, base_weight, bias, grid, functions, order, code, m, kind=0) -> Tensor:  # type: ignore[no-untyped-def]
    """The op of the same name, arguments in schema order, dense."""
    s = torch.ones_like(x) if s is None else s
    y = torch.einsum("bi,bir,iro->bo", s, values(kind, x, grid, functions, order, m), spline_weight)
    if code:
        y = y + (s * base(x, code, m)) @ base_weight
    return y if bias is None else y + bias


def input(x, spline_weight, base_weight, g, grid, functions, order, code, m, kind=0) -> Tensor:  # type: ignore[no-untyped-def]
    """The op of the same name, arguments in schema order, dense."""
    t = torch.einsum("bo,bir,iro->bi", g, values(kind, x, grid, functions, order, m), spline_weight)
    return t + (g @ base_weight.t()) * base(x, code, m) if code else t


def weight(x, s, g, grid, functions, order, code, m, kind=0) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """The op of the same name, arguments in schema order, dense."""
    s = torch.ones_like(x) if s is None else s
    d_spline = torch.einsum("bi,bo,bir->iro", s, g, values(kind, x, grid, functions, order, m))
    return d_spline, (s * base(x, code, m)).t() @ g if code else x.new_empty(0)


def backward(x, spline_weight, base_weight, g, grid, functions, order, code, m, kind=0):  # type: ignore[no-untyped-def]
    """The op of the same name: input at order m+1 and weight at order m."""
    return (
        input(x, spline_weight, base_weight, g, grid, functions, order, code, m + 1, kind),
        *weight(x, None, g, grid, functions, order, code, m, kind),
    )


def run(op: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The named op in float64, always as a tuple."""
    out = globals()[op](*inputs.to(torch.float64).args(op))
    return out if isinstance(out, tuple) else (out,)


def magnitude(op: str, inputs: Inputs, anywhere: bool = False) -> tuple[Tensor, ...]:
    """What rounding errors of the named op scale with: the same sums over absolute values, float64.

    A basis row counts with the largest |B^(m)| of its cell if the cell touches it and with 0 otherwise, so a
    row that must be exactly zero has no slack. The base row counts as |base^(m)(x)| plus the size of the
    terms whose sum it is.
    anywhere: every row counts, with the largest |B^(m)| that the feature's basis has: what errors of x scale
    with; of a basis that is not local, with 1.
    """
    f = inputs.to(torch.float64)
    a_s = torch.ones_like(f.x) if f.s is None else f.s.abs()

    def phi(m: int) -> Tensor:
        if f.basis and anywhere:
            return f.x.new_ones(*f.x.shape, f.spline_weight.shape[1])
        if f.basis:
            return bases.magnitude(f.basis, f.x, f.grid, f.functions, m)
        if anywhere:
            samples = f.grid[:, :-1] + torch.linspace(0, 1, 9)[:-1, None, None] * f.grid.diff(dim=1)
            peaks = basis(samples.transpose(1, 2).flatten(0, 1), f.grid, f.order, m).abs().amax((0, 2))
            return peaks[None, :, None].expand(f.x.shape[0], -1, f.spline_weight.shape[1])
        peak = basis(f.x, f.grid, f.order, m).abs().amax(-1, keepdim=True)
        u, k = f.x.unsqueeze(-1), f.order
        touched = (u >= f.grid[:, : -k - 1]) & (u < f.grid[:, k + 1 :])
        return peak * (touched | u.isnan())

    def rho(m: int) -> Tensor:
        return base(f.x, f.base, m).abs() + (silu_scale(m) if f.base == 1 else 0.0)

    c, w = f.spline_weight.abs(), None if f.base_weight is None else f.base_weight.abs()
    g, m = f.g.abs(), f.derivative
    if op == "forward":
        y = torch.einsum("bi,bir,iro->bo", a_s, phi(m), c)
        y = y if w is None else y + (a_s * rho(m)) @ w
        return (y if f.bias is None else y + f.bias.abs(),)
    out: tuple[Tensor, ...] = ()
    if op in ("input", "backward"):
        n = m + (op == "backward")
        t = torch.einsum("bo,bir,iro->bi", g, phi(n), c)
        out += (t if w is None else t + (g @ w.t()) * rho(n),)
    if op in ("weight", "backward"):
        side = a_s if op == "weight" else torch.ones_like(a_s)
        d_spline = torch.einsum("bi,bo,bir->iro", side, g, phi(m))
        out += (d_spline, (side * rho(m)).t() @ g if f.base else f.x.new_empty(0))
    return out


def exact_basis(x: float, knots: list[float], order: int, derivative: int = 0) -> list[Fraction]:
    """B_r^(m)(x), r = 0 .. len(knots)-k-2, in rational arithmetic: the binary floats are taken as they
    are.
    """
    u, t = Fraction(x), [Fraction(v) for v in knots]
    value = [Fraction(int(a <= u < b)) for a, b in pairwise(t)]
    if derivative > order:
        return [Fraction(0)] * (len(value) - order)
    for p in range(1, order + 1):
        new = []
        for j in range(len(value) - 1):
            left, right = t[j + p] - t[j], t[j + p + 1] - t[j + 1]
            if p > order - derivative:
                low, high = p * value[j], -p * value[j + 1]
            else:
                low, high = (u - t[j]) * value[j], (t[j + p + 1] - u) * value[j + 1]
            new.append((low / left if left else Fraction(0)) + (high / right if right else Fraction(0)))
        value = new
    return value
