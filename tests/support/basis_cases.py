"""Cases of the bases of full support: their table, orders of the weights, leaves for autograd."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from cases import HALF, Case, build
from kan_kernels import functional as F
from kan_kernels._core.bases import FULL_SUPPORT

F32, F64 = torch.float32, torch.float64
NAMES = FULL_SUPPORT


def case(basis: str, functions: int, *sizes: int, **facts: Any) -> Case:
    """A case of batch, in_features, out_features with so many functions, or one more where they are pairs."""
    functions += basis == "fourier" and functions % 2
    batch, fan_in, fan_out = sizes or (13, 3, 5)
    return Case(batch, fan_in, fan_out, functions, 0, basis=basis, **facts)


def _table() -> list[Case]:
    cases = []
    for basis in NAMES:
        # functions in one block of a micro-kernel, in two and in many; every order of derivative among them
        for turn, (functions, m) in enumerate(product((1, 2, 5, 8, 12, 13, 25, 33), (0, 1, 2, 3))):
            cases.append(
                case(
                    basis, functions, (17, 9, 40)[turn % 3], (2, 5)[turn % 2], (1, 18, 64, 5, 33)[turn % 5],
                    derivative=m, knots=("uniform", "adaptive")[turn // 3 % 2],
                    points=("inside", "knots")[turn % 2], dtype=(F32, F64)[turn // 2 % 2],
                    base=("silu", None, "identity")[turn % 3], bias=turn % 2 == 0, side=turn % 3 == 1,
                )
            )  # fmt: skip
        for m in (4, 5, 9):
            cases.append(case(basis, 7, derivative=m, points="inside", dtype=F64, base="silu"))
            cases.append(case(basis, 7, derivative=m, points="inside"))
        # x of every kind, in the dtypes and with each base
        kinds = product(("mixed", "outside", "knots", "nan", "inf"), (F32, F64, *HALF))
        for turn, (points, dtype) in enumerate(kinds):
            x_dtype = F32 if dtype in HALF and turn % 2 else None
            for m in (0, 1):
                facts = {"points": points, "dtype": dtype, "x_dtype": x_dtype, "derivative": m}
                base = ("silu", None, "identity")[turn % 3]
                cases.append(case(basis, 6, 23, 4, (6, 20)[m], base=base, side=turn % 2 == 0, **facts))
        # empty, single, past one block of rows, rows that are split, many inputs, wide, few outputs
        for turn, sizes in enumerate(
            (
                (0, 3, 4),
                (1, 1, 1),
                (2, 19, 257),
                (700, 3, 5),
                (1100, 66, 16),
                (5000, 2, 3),
                (3, 90, 1),
                (70, 5, 1100),
            )
        ):
            facts = {"points": "inside", "side": turn % 2 == 1}
            cases.append(case(basis, (8, 14)[turn % 2], *sizes, **facts))
            cases.append(case(basis, (14, 8)[turn % 2], *sizes, base=None, dtype=F64, **facts))
        cases.append(
            case(basis, 14, 40, 70, 9, points="inside")
        )  # more than are summed and multiplied at once
        for layout, dtype in product(("transposed", "sliced", "expanded", "column"), (F32, F64)):
            cases.append(case(basis, 9, 37, 6, 11, dtype=dtype, side=True, layout=layout, points="inside"))
    return list(dict.fromkeys(cases))


TABLE = _table()

LAYOUTS = {
    "out-in-functions": (1, 2, 0),
    "in-out-functions": (0, 2, 1),
}  # of a contiguous tensor's dimensions


def laid_out(weight: Tensor, layout: str) -> Tensor:
    """The same weights (in, R, out), stored in another order."""
    there = LAYOUTS[layout]
    back = tuple(there.index(n) for n in range(3))
    return weight.permute(back).contiguous().permute(there)


def tensors(basis: str, functions: int, base: str | None, dtype: torch.dtype = F64) -> dict[str, Any]:
    """x, weight, base_weight and bias as leaves that require grad, and the grid."""
    inputs = build(case(basis, functions, 4, 2, 3, points="inside", dtype=dtype, base=base))
    leaves = {"x": inputs.x * 0.95, "weight": inputs.spline_weight, "base_weight": inputs.base_weight}
    leaves["bias"] = inputs.bias
    grid = inputs.grid if inputs.grid.shape[1] else None
    return {"grid": grid, **{k: None if t is None else t.clone().requires_grad_() for k, t in leaves.items()}}


def as_function(t: dict[str, Any], **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """basis_linear as a function of its leaves, and those."""
    names = [k for k, v in t.items() if k != "grid" and v is not None]

    def function(*a: Tensor) -> Tensor:
        return F.basis_linear(**{**t, **dict(zip(names, a, strict=True))}, **options)

    return function, tuple(t[k] for k in names)
