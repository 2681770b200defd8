"""Polynomials by their recurrence for the CUDA kernels: examples, and plain loops in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

import cuda_host

CODE = 4  # csrc/basis/registry.h
SILU = 1
F32, F64, BFLOAT, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16


def grid_of(family: str, functions: int) -> Tensor:
    """A row of the grid: a, b and c of every function."""
    r = torch.arange(functions, dtype=F64).clamp(min=1)
    a, b, c = {
        "legendre": ((2 * r - 1) / r, 0 * r, (r - 1) / r),
        "gegenbauer": (2 * (r - 0.3) / r, 0 * r, (r - 0.6) / r),  # lambda = 0.7
        "hermite": (1 + 0 * r, 0 * r, r - 1),
        "laguerre": (-1 / r, (2 * r - 1) / r, (r - 1) / r),
    }[family]
    for numbers, first in ((a, 0.0), (b, 1.0), (c, 0.0)):
        numbers[0] = first
    c[1:2] = 0  # P_{-1} has no part in the classical families
    return torch.cat([a, b, c])


def values(x: Tensor, grid: Tensor, functions: int, m: int) -> Tensor:
    """P_r^(m)(x[b, i]) as (B, I, R), by Leibniz's rule on all orders; NaN where x is not finite."""
    a, b, c = grid.view(len(grid), 3, functions).unbind(1)
    zero = x - x
    now, before = [zero + 1] + [zero] * m, [zero] * (m + 1)
    rows = []
    for r in range(functions):
        factor = a[:, r] * x + b[:, r]
        after = [
            factor * now[j] + (j * a[:, r] * now[j - 1] if j else 0) - c[:, r] * before[j]
            for j in range(m + 1)
        ]
        now, before = after, now
        rows.append(now[m])
    return torch.stack(rows, -1)


@dataclass
class Example:
    functions: int
    batch: int
    inputs: int
    outputs: int
    m: int = 0
    dtype: torch.dtype = F32
    family: str = "legendre"
    base: bool = True
    special: bool = False  # NaN and infinities in x


EXAMPLES = [
    *(Example(9, 21, 5, 20, m, family="gegenbauer") for m in range(6)),
    *(Example(70, 21, 3, 5, m, F64, base=False) for m in range(5)),
    Example(6, 9, 3, 20, 32, F64, "hermite", base=False),
    Example(40, 9, 1, 5, 32, F64, base=False),
    Example(13, 33, 3, 17, 2, F64, "laguerre"),
    Example(256, 33, 2, 5),
    Example(32, 40, 3, 18),  # as many as a tile holds, and one more with the base
    Example(64, 40, 3, 18, base=False),
    Example(5, 9, 150, 20),  # inputs in parts
    Example(5, 5000, 2, 17),  # rows in parts
    Example(70, 4100, 1, 3, special=True),  # and an input's gradient in parts
    Example(8, 70, 5, 130, base=False),  # a kernel for each gradient
    Example(1, 1, 1, 1),
    Example(9, 70, 5, 136, dtype=BFLOAT, special=True),
    Example(6, 70, 9, 20, 1, BFLOAT, "laguerre"),
    Example(13, 33, 3, 40, dtype=HALF),
]


def run(e: Example) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Every op's results, what they should be, and the sums of absolute values."""
    gen = torch.Generator().manual_seed(e.functions + e.batch + e.m)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=gen, dtype=F64) * 2 - 1

    wide = F64 if e.dtype == F64 else F32
    grid = grid_of(e.family, e.functions).repeat(e.inputs, 1).to(wide)
    x, scale, g = random(e.batch, e.inputs), random(e.batch, e.inputs), random(e.batch, e.outputs)
    weight, base_weight = random(e.inputs, e.functions, e.outputs), random(e.inputs, e.outputs)
    if e.special:
        x[:: max(1, e.batch // 3), 0] = torch.nan
        x[1, -1] = torch.inf
    x, scale, g, weight, base_weight = (t.to(e.dtype) for t in (x, scale, g, weight, base_weight))
    base = base_weight if e.base else None
    numbers = (grid, e.functions, 0, SILU if e.base else 0)
    tail = (e.m, CODE)
    y = cuda_host.kan_linear(x, scale, weight, base, None, *numbers, *tail)
    t = cuda_host.kan_linear_grad_input(x, weight, base, g, *numbers, *tail)
    w = cuda_host.kan_linear_grad_weight(x, scale, g, *numbers, *tail)
    both = cuda_host.kan_linear_backward(x, weight, base, g, *numbers, *tail)

    x, scale, g, weight, base_weight = (v.double() for v in (x, scale, g, weight, base_weight))
    sizes = {
        m: values(torch.linspace(-1, 1, 33, dtype=F64).view(-1, 1), grid[:1].double(), e.functions, m)
        for m in (e.m, e.m + 1)
    }
    basis = {m: values(x, grid.double(), e.functions, m) for m in (e.m, e.m + 1)}
    silu = {m: _silu(x, m) for m in (e.m, e.m + 1)}
    size = {m: v.abs().amax(0).expand_as(basis[m]) for m, v in sizes.items()}

    def forward(basis: Tensor, silu: Tensor, s: Tensor, weight: Tensor, base_weight: Tensor) -> Tensor:
        y = torch.einsum("bi,bir,iro->bo", s, basis, weight)
        return y + (s * silu) @ base_weight if e.base else y

    def input(basis: Tensor, silu: Tensor, weight: Tensor, base_weight: Tensor, g: Tensor) -> Tensor:
        t = torch.einsum("bir,iro,bo->bi", basis, weight, g)
        return t + silu * (g @ base_weight.T) if e.base else t

    def weights(basis: Tensor, silu: Tensor, s: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("bi,bir,bo->iro", s, basis, g), (s * silu).T @ g

    results = []

    def add(what: str, got: Tensor, want: Tensor, scale: Tensor) -> None:
        results.append((what, got.double(), want, scale))

    b, s, m = basis[e.m], silu[e.m], e.m
    finite = torch.where(s.isfinite(), s, 0).abs()
    add(
        "y",
        y,
        forward(b, s, scale, weight, base_weight),
        forward(size[m], finite, scale.abs(), weight.abs(), base_weight.abs()),
    )
    add(
        "input",
        t,
        input(b, s, weight, base_weight, g),
        input(size[m], finite, weight.abs(), base_weight.abs(), g.abs()),
    )
    one = torch.ones_like(scale)
    for what, got, factor in (("weight", w, scale), ("backward", both[1:], one)):
        for part, v, want, size_ in zip(
            ("spline", "base"),
            got,
            weights(b, s, factor, g),
            weights(size[m], finite, factor.abs(), g.abs()),
            strict=True,
        ):
            if part == "spline" or e.base:
                add(f"{what}.{part}", v, want, size_)
    b, s = basis[m + 1], silu[m + 1]
    finite = torch.where(s.isfinite(), s, 0).abs()
    add(
        "backward.input",
        both[0],
        input(b, s, weight, base_weight, g),
        input(size[m + 1], finite, weight.abs(), base_weight.abs(), g.abs()),
    )
    return results


def _silu(x: Tensor, m: int) -> Tensor:
    """silu^(m)(x) = x s^(m) + m s^(m-1), with the derivatives of s as polynomials of s."""
    s, slope = x.sigmoid(), Polynomial([0, 1, -1])
    power = [Polynomial([0, 1])]
    for _ in range(m):
        power.append(power[-1].deriv() * slope)

    def at(n: int) -> Tensor:
        return torch.from_numpy(power[n](s.numpy()))

    return x * at(m) + (m * at(m - 1) if m else 0)


ROUNDING = {F64: 1e-12, F32: 2e-6, BFLOAT: 2.0**-7, HALF: 2.0**-10}


def check(e: Example) -> None:
    for what, got, want, scale in run(e):
        assert torch.equal(got.isnan(), want.isnan()), f"{e}: {what}: NaN elsewhere"
        use = want.isfinite()
        error = (got - want).abs()[use] - ROUNDING[e.dtype] * (scale[use] + want.abs()[use]) * max(
            4, e.functions / 4
        )
        assert use.any() or e.special, f"{e}: {what}: nothing to compare"
        assert not (error > 1e-30).any(), f"{e}: {what}: off by {error.max()}"
