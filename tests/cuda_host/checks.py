"""How results of the dense path are judged: its operands may be rounded."""

from __future__ import annotations

import torch

import oracle
from cases import Case, build
from harness import (
    assert_close,
    compute_dtype,
    expected_dtypes,
    poisoned_memory,
    relative_error,
    run_op,
)

__all__ = ["check_dense", "dense_runs"]


def dense_runs(op: str, case: Case) -> bool:
    """What csrc/cuda says of the dense path, of matrix units for a basis that reaches everywhere."""
    highest = case.derivative + (op == "backward")
    if case.basis != "bspline":
        return case.dtype == torch.bfloat16 or (case.dtype == torch.float16 and highest <= 1)
    knots = case.grid_size + 2 * case.order + 1
    limit = 1 if case.dtype == torch.float16 else 3
    return case.dtype != torch.float64 and 1 <= case.order <= 3 and knots <= 96 and highest <= limit


# What rounding both operands costs, in units of the sums of absolute values: half a last place of each.
OPERANDS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-11}


def check_dense(op: str, case: Case, tf32: bool) -> None:
    """As check_op; 16-bit and TF32 operands are rounded, strict float32 has no more slack than everywhere.

    Beside rounded operands, uniform knots are where arithmetic puts them, not where float32 rounded them:
    2^-18 of a basis' largest value (harness.position_slack).
    """
    inputs = build(case)
    with poisoned_memory():
        got = run_op("cuda_host", op, inputs)
    wide, narrow = inputs.to(torch.float64), inputs.to(compute_dtype(case.dtype))
    truth, plain = run_op("reference", op, wide), run_op("reference", op, narrow)
    scales = oracle.magnitude(op, wide)
    strict = case.dtype == torch.float32 and not tf32
    rounded = 0.0 if strict else OPERANDS[case.dtype]
    slacks: tuple = (None,) * len(got)
    if not strict and case.basis == "bspline" and case.knots in ("uniform", "ranges"):
        slacks = tuple(2.0**-18 * scale for scale in oracle.magnitude(op, wide, anywhere=True))
    terms = case.batch if case.layout == "expanded" else 0
    for value, dtype, true, scale, same, slack in zip(
        got, expected_dtypes(op, case), truth, scales, plain, slacks, strict=True
    ):
        error = relative_error(same, true, scale) + rounded
        assert_close(value, true, scale, error, dtype, f"dense {op}[{case.name}]", terms, 0.0, slack)
