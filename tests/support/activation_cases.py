"""The shared case table for kan_activation: the same situations, without a sum over the features."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kan_kernels
import oracle
from cases import Case, Inputs, build
from harness import (
    assert_close,
    compute_dtype,
    expected_dtypes,
    operand_eps,
    poisoned_memory,
    reduced,
    relative_error,
)

OPS = {
    "forward": "kan_activation",
    "input": "kan_activation_grad_input",
    "weight": "kan_activation_grad_weight",
    "backward": "kan_activation_backward",
}
"""Short names of the four contractions -> the ops' own."""

AXES = {"forward": (1,), "input": (1,), "weight": (0, 0), "backward": (1, 0, 0)}
"""Where the results have their features."""


def build_activation(case: Case, device: torch.device | str = "cpu") -> Inputs:
    """The tensors of a case: its outputs are heads, of which there are fewer, and g is (B, in, heads)."""
    heads = 1 + case.out_features % 5 if case.out_features != 100 else 9
    case = replace(case, out_features=heads, bias=False)
    inputs = build(case, device)
    gen = torch.Generator().manual_seed(zlib.crc32(case.name.encode()) + 1)
    shape = (case.batch, case.in_features, heads)
    inputs.g = torch.randn(shape, generator=gen, dtype=torch.float64).to(device, case.dtype)
    if case.layout == "transposed":
        inputs.g = inputs.g.transpose(0, 2).contiguous().transpose(0, 2)
    elif case.layout == "sliced":
        inputs.g = torch.stack([inputs.g, inputs.g], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., 1]
    elif case.layout == "expanded":
        inputs.g = inputs.g[:1, :1, :1].expand(shape)
    elif case.layout == "column":
        inputs.g = inputs.g[:, :, :1].expand(shape)
    return inputs


def arguments(op: str, inputs: Inputs) -> tuple:
    """Those of the op, which knows no bias."""
    args = inputs.args(op)
    return args[:4] + args[5:] if op == "forward" else args


def run_activation(backend: str, op: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The op's results, always as a tuple."""
    module = importlib.import_module(f"kan_kernels.backends.{backend}")
    assert kan_kernels.available_backends()[backend] is None
    out = getattr(module, OPS[op])(*arguments(op, inputs))
    return tuple(out) if isinstance(out, tuple) else (out,)


def one_feature(inputs: Inputs) -> Iterator[Inputs]:
    """Each feature by itself: a layer with one input, whose sum is its only term."""
    for i in range(inputs.x.shape[1]):
        yield replace(
            inputs,
            x=inputs.x[:, i : i + 1],
            s=None if inputs.s is None else inputs.s[:, i : i + 1],
            spline_weight=inputs.spline_weight[i : i + 1],
            base_weight=None if inputs.base_weight is None else inputs.base_weight[i : i + 1],
            g=inputs.g[:, i],
            grid=inputs.grid[i : i + 1],
        )


def by_features(op: str, inputs: Inputs, call: Callable[..., Any] = oracle.run) -> tuple[Tensor, ...]:
    """What textbook layers of one input compute; with another call, of the op and them, what that does."""
    found = [call(op, one) for one in one_feature(inputs)]
    results = []
    for parts, axis in zip(zip(*found, strict=True), AXES[op], strict=True):
        if op == "forward":
            results.append(torch.stack(parts, 1))
        elif parts[0].dim() == 1:  # no base
            results.append(parts[0])
        else:
            results.append(torch.cat(parts, axis))
    return tuple(results)


def position_slack(
    backend: str, op: str, case: Case, wide: Inputs, results: int
) -> tuple[Tensor | None, ...]:
    """As `harness.position_slack` has it: beside 16-bit numbers, uniform knots are where arithmetic puts
    them.
    """
    local = case.basis == "bspline" and case.knots in ("uniform", "ranges")
    if backend != "triton" or not (local or case.basis == "rbf") or not reduced(case):
        return (None,) * results
    factor = 2.0**-18 if local else 2.0**-25 if case.dtype == torch.float16 else 0.0
    found = by_features(op, wide, partial(oracle.magnitude, anywhere=True))
    return tuple(factor * scale for scale in found)


def check_activation(backend: str, op: str, case: Case, inputs: Inputs) -> None:
    """Run the op in poisoned memory and compare every entry with a float64 oracle that shares nothing."""
    with poisoned_memory():
        got = run_activation(backend, op, inputs)
    wide, narrow = inputs.to(torch.float64), inputs.to(compute_dtype(case.dtype))
    truth = by_features(op, wide)
    plain = run_activation("reference", op, wide if case.dtype == torch.float64 else narrow)
    scales = by_features(op, wide, oracle.magnitude)
    names = {"forward": ["v"], "input": ["t"], "weight": ["d_spline", "d_base"]}
    labels = names.get(op, ["t", "d_spline", "d_base"])
    assert len(got) == len(labels)
    slacks = position_slack(backend, op, case, wide, len(labels))
    for name, value, want, true, scale, same, slack in zip(
        labels, got, expected_dtypes(op, case), truth, scales, plain, slacks, strict=True
    ):
        what = f"{backend}.{op}[{case.name}].{name}"
        assert value.dtype == want, f"{what}: dtype {value.dtype}, expected {want}"
        terms = case.batch if case.layout == "expanded" and name.startswith("d_") else 0
        rounded = operand_eps(backend, name, case) if name == "d_spline" else 0.0
        assert_close(
            value.cpu(), true, scale, relative_error(same, true, scale), want, what, terms, rounded, slack
        )
