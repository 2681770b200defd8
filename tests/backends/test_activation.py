"""The four ops of kan_activation of every backend against float64, on the shared case table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from activation_cases import OPS, build_activation, check_activation, run_activation
from bases import CODES
from cases import TABLE, Case, sparse
from harness import bits, check_same_bits
from kan_kernels.functional import kan_activation

BACKENDS = ("reference", "native")
MORE = [
    # several tiles of rows and of features, uneven ones, several tasks, split rows
    Case(300, 37, 1), Case(257, 130, 3, side=True), Case(1030, 70, 4), Case(3000, 5, 2, side=True),
    Case(2600, 17, 1, 9, 2), Case(520, 33, 3, 4, 1, 1), Case(700, 20, 4, 12), Case(300, 9, 1, 20),
    Case(300, 9, 1, 40), Case(1030, 18, 1, dtype=torch.float64), Case(1030, 18, 4, dtype=torch.bfloat16),
    Case(400, 20, 1, dtype=torch.float16, x_dtype=torch.float32, points="nan"),
    Case(400, 20, 1, knots="adaptive", points="nan"), Case(400, 20, 3, knots="repeated", points="knots"),
    Case(300, 20, 4, order=2, points="inf", base="identity"), Case(300, 16, 1, layout="transposed"),
    Case(300, 16, 3, layout="sliced", side=True), Case(300, 16, 3, layout="column"),
    *(Case(300, 20, 1, 5, 3, m, "adaptive") for m in range(1, 6)),
    *(
        Case(140, 18, 3, 9, 3, m, basis=basis, dtype=dtype, base=base)
        for basis in CODES if basis != "bspline"
        for m, dtype, base in ((0, torch.float32, "silu"), (2, torch.float64, None))
    ),
]  # fmt: skip


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.long), "native"])
@pytest.mark.parametrize("case", [*sparse(TABLE, 12), *MORE], ids=lambda c: c.name)
def test_op(backend: str, case: Case) -> None:
    """Every op on every case, outputs poisoned before the run."""
    inputs = build_activation(case)
    for op in OPS:
        check_activation(backend, op, case, inputs)


@pytest.mark.parametrize(
    "case",
    [Case(3000, 70, 2), Case(2100, 9, 3, 40), Case(1500, 20, 1, dtype=torch.float64), Case(5000, 1, 1)],
    ids=lambda c: c.name,
)
def test_same_bits(case: Case) -> None:
    """The same inputs give the same bits with 1 thread, 2 and 3, and in other strides."""
    inputs = build_activation(case)
    strided = replace(inputs)
    for name in ("x", "g", "spline_weight", "base_weight", "grid"):
        t = getattr(inputs, name)
        setattr(strided, name, t.transpose(0, -1).contiguous().transpose(0, -1))
    for op in OPS:
        check_same_bits(lambda op=op: run_activation("native", op, inputs))
        for a, b in zip(
            run_activation("native", op, inputs), run_activation("native", op, strided), strict=True
        ):
            assert torch.equal(bits(a.contiguous()), bits(b.contiguous())), op


@pytest.mark.parametrize("order", (1, 2, 3, 4))
def test_infinite_coefficients_stay_where_their_functions_are(order: int) -> None:
    """An infinite coefficient reaches the cells of its function, and no others."""
    inputs = build_activation(Case(200, 3, 1, order=order, points="inside"))
    inputs.spline_weight[1, 0, :] = torch.inf
    (v,) = run_activation("native", "forward", inputs)
    reached = (inputs.x[:, 1] < inputs.grid[1, order + 1]).unsqueeze(1).expand_as(v[:, 1])
    assert torch.equal(v[:, 1].isinf(), reached)
    assert v[:, ::2].isfinite().all() and not v.isnan().any()


def test_heads_lie_as_matrices() -> None:
    """Each head is (B, in) with neighbouring features, as a GEMM takes it in place."""
    inputs = build_activation(Case(20, 6, 3))
    (v,) = run_activation("native", "forward", inputs)
    assert v.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0)])
def test_empty_sizes(shape: tuple[int, int, int]) -> None:
    """No rows, no features and no heads give results of the right shape, sums of nothing being zero."""
    batch, features, heads = shape
    x, grid = torch.zeros(batch, features), torch.linspace(-1, 1, 12).repeat(features, 1)
    weight, base, g = torch.ones(features, 8, heads), torch.ones(features, heads), torch.ones(shape)
    ops = torch.ops.kan_kernels
    assert ops.kan_activation(x, None, weight, base, grid, 8, 3, 1, 0, 0).shape == shape
    dx, d_spline, d_base = ops.kan_activation_backward(x, weight, base, g, grid, 8, 3, 1, 0, 0)
    assert dx.shape == x.shape and d_spline.shape == weight.shape and d_base.shape == base.shape
    assert not dx.any() and not d_spline.any() and not d_base.any()


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 3, 2), (2, 3, 1)])
def test_strides_are_those_of_the_fake(shape: tuple[int, int, int]) -> None:
    """Also of what has no numbers."""
    batch, features, heads = shape
    x, weight, grid = torch.rand(batch, features), torch.rand(features, 8, heads), torch.rand(features, 12)
    arguments = x, None, weight, None, grid.sort(1).values
    constants = 8, 3, 0, 0, 0
    real = torch.ops.kan_kernels.kan_activation(*arguments, *constants)
    with FakeTensorMode() as mode:
        fakes = [a if a is None else mode.from_tensor(a) for a in arguments]
        fake = torch.ops.kan_kernels.kan_activation(*fakes, *constants)
    assert real.shape == fake.shape == shape and real.stride() == fake.stride()


def even_knots(low: float, high: float, cells: int, order: int) -> torch.Tensor:
    """Return the float32 knots of `cells` equal cells from low to high, extended on both sides."""
    return torch.linspace(
        low - order * (high - low) / cells,
        high + order * (high - low) / cells,
        cells + 2 * order + 1,
        dtype=torch.float64,
    ).float()


@pytest.mark.parametrize("cells", (1, 2, 3, 5, 6, 7, 10, 13, 20, 24))
@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("low,high", ((-1.0, 1.0), (0.3, 0.7), (-100.0, 171.3), (4000.0, 4001.0)))
def test_a_knot_belongs_to_the_cell_on_its_right(low: float, high: float, order: int, cells: int) -> None:
    """Cells of even knots are computed from x; steps of the k-th derivative show what is beside a knot."""
    knots, width = even_knots(low, high, cells, order), (high - low) / cells
    at = torch.cat([knots, knots.nextafter(knots - 1), knots.nextafter(knots + 1)])
    x = torch.cat([at, torch.tensor([-torch.inf, torch.inf, 3e38, -3e38])]).unsqueeze(1).repeat(1, 8)
    weight = torch.randn(8, cells + order, 2, generator=torch.Generator().manual_seed(order))
    grid, constants = knots.repeat(8, 1), {"spline_order": order, "base": None}
    precision = 1e-5 * max(1.0, 0.01 * max(abs(low), abs(high)) / width)
    for m in range(order + 1):
        v = kan_activation(x, weight, grid, derivative=m, backend="native", **constants)
        expected = kan_activation(x.double(), weight.double(), grid.double(), derivative=m, **constants)
        scale = weight.abs().max() * (2 * order / width) ** m
        outside = (x.abs() > 1e4).unsqueeze(-1)
        assert torch.where(outside, v, v - expected).abs().max() <= precision * scale, m
