"""What the Triton backend knows of knots: whether they are uniform, looked at once and never out of date.

Runs in Triton's interpreter, in a process of its own (`make interpret`).
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from cases import OPS, Case, Inputs, build
from harness import FUSED, INTERPRETED, run_op
from kan_kernels.functional import linear as functional

pytestmark = pytest.mark.skipif(
    not (INTERPRETED and "triton" in FUSED),
    reason="needs TRITON_INTERPRET=1 and triton in KAN_TEST_BACKENDS: `make interpret` runs it",
)
if INTERPRETED:
    from kan_kernels.backends.triton import knots


def test_knots_are_looked_at_once() -> None:
    """Values of knots are read when a grid is first seen and after it was written, and at no other time."""
    grid = build(Case(1, 3, 1)).grid
    with mock.patch.object(knots, "_look", wraps=knots._look) as look:
        assert knots.are_uniform(grid) and knots.are_uniform(grid.detach()) and look.call_count == 1
        grid[1, 4] += 0.05
        assert not knots.are_uniform(grid) and look.call_count == 2
        knots.are_uniform(grid)
        assert look.call_count == 2
        shared = build(Case(1, 3, 1)).grid[:1].expand(3, -1)  # one row of knots for all features
        for _ in range(3):
            run_op("triton", "forward", replace_grid(Case(4, 3, 40, dtype=torch.bfloat16), shared))
        assert look.call_count == 3
    with torch.inference_mode():
        assert not knots.are_uniform(grid.clone())  # whose writes nobody counts


def replace_grid(case: Case, grid: torch.Tensor) -> Inputs:
    """The inputs of a case with other knots."""
    inputs = build(case)
    inputs.grid = grid
    return inputs


def test_knots_of_16_bits_are_converted_once() -> None:
    """`functional` widens 16-bit knots, on a GPU: the same tensor as long as they are not written."""
    inputs = build(Case(4, 3, 40, dtype=torch.bfloat16, base=None))
    grid = (torch.arange(12).float() / 4 - 2.0).bfloat16().repeat(3, 1)
    with (
        mock.patch.object(knots, "_look", wraps=knots._look) as look,
        mock.patch.object(functional, "_widened", functional._kept_copy),  # what it does with CUDA tensors
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
        mock.patch.object(torch.cuda, "current_stream"),
        mock.patch.object(torch.Tensor, "record_stream"),
    ):
        for _ in range(3):
            functional.kan_linear(
                inputs.x, inputs.spline_weight, grid, spline_order=3, base=None, backend="triton"
            )
        assert look.call_count == 1
        grid[0, 0] -= 0.5
        functional.kan_linear(
            inputs.x, inputs.spline_weight, grid, spline_order=3, base=None, backend="triton"
        )
        assert look.call_count == 2


def test_what_is_known_dies_with_its_grid() -> None:
    """Memory of a grid that is gone may become another grid of the same shape and version."""
    for _ in range(20):
        uniform = build(Case(1, 3, 1)).grid
        assert knots.are_uniform(uniform)
        del uniform
        adaptive = build(Case(1, 3, 1, knots="adaptive")).grid
        assert not knots.are_uniform(adaptive)
        del adaptive


@pytest.mark.parametrize("op", OPS)
def test_a_write_that_torch_does_not_count(op: str) -> None:
    """Knots that stopped being uniform behind torch's back give NaN, never numbers of the old knots."""
    for width in (40, 300):
        inputs = build(Case(20, 5, width, dtype=torch.bfloat16))
        good = run_op("triton", op, inputs)
        assert not any(t.isnan().any() for t in good)
        inputs.grid.data[2, 6] += 0.1
        assert knots.are_uniform(inputs.grid)
        assert all(t.isnan().any() for t in run_op("triton", op, inputs)[:2][: 2 if op == "backward" else 1])


def test_nearly_uniform_knots() -> None:
    """float32's own rounding of uniform knots passes; a hundredth of a cell or far-off knots do not."""
    step = 2.0 / 128
    grid = (torch.arange(135) - 3).float()[None, :] * step - 1.0
    assert knots.are_uniform(grid)
    moved = grid.clone()
    moved[0, 60] += 0.01 * step
    assert not knots.are_uniform(moved)
    assert not knots.are_uniform(torch.zeros(2, 12))
    assert not knots.are_uniform(torch.arange(12).float()[None, :] * 3.0 + 1e5)
