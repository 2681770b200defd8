"""The shared case table: every situation a kernel must survive, usable by every backend on any device.

A `Case` is plain data; `build(case, device)` turns it into tensors, always the same ones. A backend is proved
by running its four ops on `TABLE`. To add a situation, add a case here and every backend is tested on it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import bases
from knots_and_points import grid_dtype, make_grid, make_points

BASE_CODE = {None: 0, "silu": 1, "identity": 2}
HALF = (torch.bfloat16, torch.float16)
ORDERS = tuple(range(11))
WIDTHS = (1, 5, 10, 16, 64, 100, 257)


@dataclass(frozen=True)
class Case:
    """One situation. `points` says where x lies, `knots` how the grid is made, `layout` how tensors are
    strided.
    """

    batch: int = 13
    in_features: int = 3
    out_features: int = 5
    grid_size: int = 5
    order: int = 3
    derivative: int = 0
    knots: str = "uniform"
    points: str = "mixed"
    dtype: torch.dtype = torch.float32
    x_dtype: torch.dtype | None = None
    base: str | None = "silu"
    bias: bool = True
    side: bool = False
    layout: str = "contiguous"
    # of full support: grid_size + order functions
    basis: str = "bspline"

    @property
    def name(self) -> str:
        """Short id: the sizes, then whatever differs from the defaults."""
        parts = [f"B{self.batch}-I{self.in_features}-O{self.out_features}-G{self.grid_size}"]
        parts.append(f"k{self.order}-m{self.derivative}")
        for field in fields(self)[6:]:
            value = getattr(self, field.name)
            if value != field.default:
                text = str(value).replace("torch.", "")
                parts.append(f"{field.name}={text}" if isinstance(value, bool) or value is None else text)
        return "-".join(parts)


@dataclass
class Inputs:
    """The tensors of one case, named as in the op schemas; the ints are the constants that they take."""

    x: Tensor
    s: Tensor | None
    spline_weight: Tensor
    base_weight: Tensor | None
    bias: Tensor | None
    g: Tensor
    grid: Tensor
    functions: int
    order: int
    base: int
    derivative: int
    basis: int = 0

    def args(self, op: str) -> tuple[Any, ...]:
        """Arguments of the op of the short name `op` (see OPS), in schema order."""
        tail = self.grid, self.functions, self.order, self.base, self.derivative, self.basis
        if op == "forward":
            return (self.x, self.s, self.spline_weight, self.base_weight, self.bias, *tail)
        if op == "weight":
            return (self.x, self.s, self.g, *tail)
        return (self.x, self.spline_weight, self.base_weight, self.g, *tail)

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers on the CPU, contiguous, every tensor in `dtype`: what an oracle takes."""

        def cast(t: Tensor) -> Tensor:
            return t.detach().cpu().to(dtype).contiguous()

        return Inputs(
            cast(self.x),
            None if self.s is None else cast(self.s),
            cast(self.spline_weight),
            None if self.base_weight is None else cast(self.base_weight),
            None if self.bias is None else cast(self.bias),
            cast(self.g),
            cast(self.grid),
            self.functions,
            self.order,
            self.base,
            self.derivative,
            self.basis,
        )


def _lay_out(case: Case, inputs: Inputs) -> None:
    """Give the tensors the strides of `case.layout`; the numbers of expanded ones change, all others stay."""
    if case.layout == "transposed":  # feature-major x and g, weights as torch.nn.Linear orders them
        inputs.x = inputs.x.t().contiguous().t()
        inputs.g = inputs.g.t().contiguous().t()
        inputs.spline_weight = inputs.spline_weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        if inputs.base_weight is not None:
            inputs.base_weight = inputs.base_weight.t().contiguous().t()
        inputs.grid = inputs.grid.t().contiguous().t()
        if inputs.s is not None:
            inputs.s = inputs.s.t().contiguous().t()
    elif case.layout == "sliced":  # every second row and column of a larger buffer full of NaN

        def slice_of(t: Tensor) -> Tensor:
            big = torch.full([2 * n + 3 for n in t.shape], torch.nan, dtype=t.dtype, device=t.device)
            view = big[tuple(slice(2, 2 + 2 * n, 2) for n in t.shape)]
            return view.copy_(t)

        inputs.x, inputs.g, inputs.spline_weight = map(slice_of, (inputs.x, inputs.g, inputs.spline_weight))
        inputs.grid = slice_of(inputs.grid)
        inputs.base_weight = None if inputs.base_weight is None else slice_of(inputs.base_weight)
        inputs.bias = None if inputs.bias is None else slice_of(inputs.bias)
        inputs.s = None if inputs.s is None else slice_of(inputs.s)
    elif case.layout == "expanded":  # one row for the whole batch, and what y.sum().backward() sends as g
        inputs.x = inputs.x[:1].expand(case.batch, -1)
        inputs.g = inputs.g[:1, :1].expand(case.batch, case.out_features)
        inputs.grid = inputs.grid[:1].expand(case.in_features, -1)
        inputs.s = None if inputs.s is None else inputs.s[:1].expand(case.batch, -1)
        inputs.spline_weight = inputs.spline_weight[:1].expand(case.in_features, -1, -1)
    elif case.layout == "column":  # one column for all features: the stride of the fast axis is 0
        inputs.x = inputs.x[:, :1].expand(-1, case.in_features)
        inputs.s = None if inputs.s is None else inputs.s[:, :1].expand(-1, case.in_features)
        inputs.g = inputs.g[:, :1].expand(-1, case.out_features)
    elif case.layout != "contiguous":
        raise ValueError(f"unknown layout {case.layout!r}")


def build(case: Case, device: torch.device | str = "cpu") -> Inputs:
    """The tensors of `case`: the same numbers in every process and on every device."""
    gen = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    rows = case.grid_size + case.order
    shape_in, shape_out = (case.batch, case.in_features), (case.batch, case.out_features)

    def normal(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    x_dtype = case.x_dtype or case.dtype
    if case.basis == "bspline":
        grid = make_grid(case.knots, case.in_features, case.grid_size, case.order, gen)
    else:
        grid = bases.make_grid(case.basis, case.knots, case.in_features, rows, gen)
    grid = grid.to(grid_dtype(case.dtype))
    knots, order = (grid, case.order) if case.basis == "bspline" else (bases.points_grid(case.basis, grid), 0)
    inputs = Inputs(
        x=bases.within_reach(case.basis, make_points(case.points, case.batch, knots, order, gen)).to(x_dtype),
        s=normal(*shape_in, dtype=x_dtype) if case.side else None,
        spline_weight=normal(case.in_features, rows, case.out_features),
        base_weight=normal(case.in_features, case.out_features) if case.base else None,
        bias=normal(case.out_features) if case.bias else None,
        g=normal(*shape_out),
        grid=grid,
        functions=rows,
        order=case.order if case.basis == "bspline" else 0,
        base=BASE_CODE[case.base],
        derivative=case.derivative,
        basis=bases.CODES[case.basis],
    )
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Tensor):
            setattr(inputs, field.name, value.to(device))
    _lay_out(case, inputs)
    return inputs


def _table() -> list[Case]:
    f32, f64 = torch.float32, torch.float64
    cases: list[Case] = []
    # every order with every derivative, past the last one that is not zero; shapes and knots rotate along
    knots = ("uniform", "adaptive", "ranges", "repeated", "clamped", "uniform", "steep")
    for order in ORDERS:
        for n, m in enumerate(sorted({0, 1, 2, 3, 4, order, order + 1, order + 3})):
            turn = order + n
            cases.append(
                Case(
                    (17, 9, 33)[turn % 3],
                    (2, 5)[turn % 2],
                    WIDTHS[turn % 7],
                    (1, 4, 7, 5, 2)[turn % 5],
                    order,
                    m,
                    knots[turn % 7],
                    dtype=(f32, f64)[(turn // 2) % 2],
                    base=("silu", None, "identity")[turn % 3],
                    bias=turn % 2 == 0,
                    side=n % 2 == 1,
                )
            )
    # sizes that are a multiple of no tile, narrow and wide, empty and single
    for turn, (batch, out) in enumerate(product((0, 1, 2, 31, 130), WIDTHS)):
        cases.append(
            Case(
                batch,
                (1, 3, 19, 66)[turn % 4],
                out,
                (5, 8, 3)[turn % 3],
                (3, 2, 3, 1)[turn % 4],
                turn % 2,
                side=turn % 3 == 0,
            )
        )
    cases += [Case(1000, 1, 1), Case(777, 2, 5), Case(3, 300, 1), Case(130, 17, 300)]
    # sorted in strips: the last one short, more features than go together, uneven panels
    cases += [Case(257, 64, 64, side=True), Case(1090, 19, 85, 4, 3, side=True)]
    # more rows than one block, split for the weights' sums, outputs in more than one group, many inputs
    cases += [
        Case(700, 18, 64, 3, 2, 1, "adaptive", dtype=f64),
        Case(600, 9, 70, points="nan", dtype=HALF[0]),
        Case(2100, 3, 20),
        Case(4500, 2, 3, side=True),
        Case(1100, 2, 9, 4, 5, 1, dtype=f64),
        Case(5, 2, 1100),
        Case(70, 130, 3, order=2),
        Case(2600, 1, 4, 9, 2, dtype=torch.bfloat16),
    ]
    for turn, size in enumerate((1, 2, 3, 16, 33, 64, 100, 128, 300)):
        cases.append(Case(40, 3, 7, size, turn % 5, turn % 2, ("uniform", "adaptive")[turn % 2]))
        cases.append(Case(40, 2, 18, size, 3, 0, ("adaptive", "ranges")[turn % 2], dtype=f64, side=True))
    # knots against points: half-open cells, zero-length cells, the last knot, NaN and infinities
    for turn, (kind, points) in enumerate(
        product(
            ("uniform", "ranges", "adaptive", "steep", "repeated", "clamped", "collapsed"),
            ("inside", "extension", "outside", "knots", "nan", "inf"),
        )
    ):
        for m, dtype in ((0, f32), (turn % 3, f64)):
            cases.append(
                Case(
                    23,
                    4,
                    6,
                    5,
                    (3, 2, 0, 1, 5)[turn % 5],
                    m,
                    kind,
                    points,
                    dtype,
                    base=("silu", None, "identity")[(turn + turn // 6) % 3],
                    side=turn // 6 % 2 == 1,
                )
            )
    for m in (1, 3, 5):  # past the order only NaN may appear
        cases.append(Case(9, 3, 4, 4, 2, m, points="nan", base=None))
        cases.append(Case(9, 3, 4, 4, 2, m, points="knots", base="silu", dtype=f64))
    # strides
    layouts = product(("transposed", "sliced", "expanded", "column"), (f32, f64))
    for turn, (layout, dtype) in enumerate(layouts):
        for side in (False, True):
            cases.append(
                Case(37, 6, 11, 5, 3, turn % 2, "adaptive", "mixed", dtype, side=side, layout=layout)
            )
    # 16-bit storage, x in 16 bits or float32
    for turn, (dtype, wide) in enumerate(product(HALF, (False, True))):
        x_dtype = f32 if wide else None
        for n, points in enumerate(("inside", "mixed", "knots", "nan")):
            cases.append(
                Case(
                    29,
                    5,
                    (9, 64, 17, 1)[n],
                    4,
                    (3, 2, 1, 4)[n],
                    (turn + n) % 3 % 2,
                    ("uniform", "adaptive")[n % 2],
                    points,
                    dtype,
                    x_dtype,
                    ("silu", "identity", None)[n % 3],
                    side=n % 2 == 1,
                )
            )
        cases.append(Case(0, 3, 4, dtype=dtype, x_dtype=x_dtype))
        cases.append(Case(70, 33, 40, 8, 3, 0, dtype=dtype, x_dtype=x_dtype))
        cases.append(
            Case(21, 6, 11, 4, 3, 1, "adaptive", dtype=dtype, x_dtype=x_dtype, side=True, layout="sliced")
        )
        cases.append(Case(21, 6, 11, 4, 2, 0, "adaptive", dtype=dtype, x_dtype=x_dtype, layout="transposed"))
    return list(dict.fromkeys(cases))


def _facts(case: Case) -> set[tuple]:
    """What a case exercises: every setting by itself, and the combinations that kernels branch on."""
    past = (case.derivative > case.order) + (case.derivative >= case.order)
    window = (case.knots in ("uniform", "ranges"), min(case.order, 4), past)
    width = 0 if case.out_features <= 16 else 1 if case.out_features <= 64 else 2
    rows = case.grid_size + case.order
    size = (rows > 4) + (rows > 8) + (rows > 32)
    sizes = ("batch", "in_features", "out_features", "grid_size")
    facts: set[tuple] = {(f.name, getattr(case, f.name)) for f in fields(case) if f.name not in sizes}
    facts |= {(case.dtype, *window), (case.dtype, case.base, case.side, past > 1), (case.dtype, width, size)}
    facts |= {("rows", min(case.batch, 2), case.batch > 16, case.batch > 600), (case.knots, case.points)}
    facts |= {(case.points, case.base, past > 1), (case.dtype, case.x_dtype, width), (case.layout, width > 0)}
    return facts


def _covering(table: list[Case]) -> list[Case]:
    """A part of the table with every fact of the whole, greedily: the most new ones for its size first."""
    chosen: list[Case] = []
    missing = set().union(*map(_facts, table))
    while missing:
        best = max(
            table,
            key=lambda c: (
                len(_facts(c) & missing) / (3 + (c.batch * c.out_features) ** 0.25 + c.in_features / 8)
            ),
        )
        chosen.append(best)
        missing -= _facts(best)
    return chosen


TABLE = _table()
COVERING = _covering(TABLE)  # for backends that are slow to run, such as an interpreter
SMALL = [case for n, case in enumerate(TABLE) if n % 9 == 4]  # for tests that cost much on each case
OPS = {
    "forward": "kan_linear",
    "input": "kan_linear_grad_input",
    "weight": "kan_linear_grad_weight",
    "backward": "kan_linear_backward",
}
"""Short names of the four contractions -> the ops' own."""


def sparse(cases: list[Any], step: int = 8) -> list[Any]:
    """Return the cases as parameters: `make test` takes one of every `step`, `make test-all` all of them."""
    marks = [pytest.mark.long if n % step else () for n in range(len(cases))]
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=mark) for value, mark in zip(values, marks, strict=True)]
