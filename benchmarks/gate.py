"""The correctness gate: no time is printed for numbers that were not checked in the same process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .modes import Numbers, Runner, second_derivative
from .providers import Provider
from .providers.unfused import TextbookModel, textbook_network
from .workloads import FORWARD, SECOND, Problem

# Largest error of an entry relative to the largest entry. The textbook recursion in float32 lands between
# 1e-7 and 2e-5 on the workloads, so this leaves a decent float32 kernel room, and TF32 none.
TOLERANCE = 1e-4
# A rival between the two is timed, marked inexact. Beyond this its numbers are another function, or the
# adapter is wrong, and it is not timed.
MEANINGLESS = 0.1

_CHUNK_BYTES = 256 * 2**20


@dataclass
class Verdict:
    """Outcome of the gate: kind "exact" (compared with float64) or "finite" (other mathematics)."""

    kind: str
    passed: bool
    timed: bool
    errors: dict[str, float] = field(default_factory=dict)
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reference_numbers(problem: Problem, mode: str) -> Numbers:
    """The float64 numbers of a mode, from the textbook recursion (which shares no code with kan_kernels).

    Rows are independent and parameter gradients are sums over rows, so it runs in chunks of bounded memory.
    """
    w = problem.workload
    network = textbook_network(problem.layers, w.spline_order, torch.float64)
    per_row = 8 * 6 * (w.spline_order + 1) * (w.bases + w.spline_order) * max(w.widths[:-1])
    rows = max(1, _CHUNK_BYTES // per_row)
    ys, dxs, seconds = [], [], []
    for x32, cotangent in zip(problem.x.split(rows), problem.cotangent.split(rows), strict=True):
        x = x32.double().requires_grad_(mode != FORWARD)
        if mode == FORWARD:
            with torch.no_grad():
                ys.append(network(x))
        elif mode == SECOND:
            y, second = second_derivative(network, x)
            second.sum().backward(inputs=list(network.parameters()))
            ys.append(y.detach())
            seconds.append(second.detach())
        else:
            y = network(x)
            y.backward(cotangent.double())
            ys.append(y.detach())
            assert x.grad is not None
            dxs.append(x.grad)
    gradients = None
    if mode != FORWARD:
        gradients = TextbookModel(network).gradients()
    return Numbers(
        torch.cat(ys), torch.cat(dxs) if dxs else None, torch.cat(seconds) if seconds else None, gradients
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest expected entry; inf for a wrong shape or a NaN."""
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((found.double() - expected).abs().max() / scale).item()
    return error if error == error else float("inf")


def compare(found: Numbers, expected: Numbers) -> dict[str, float]:
    """Relative errors of whatever both sides have."""
    errors = {}
    for name in ("y", "dx", "second"):
        one, other = getattr(found, name), getattr(expected, name)
        if one is not None and other is not None:
            errors[name] = relative_error(one, other)
    if found.gradients is not None and expected.gradients is not None:
        pairs = zip(found.gradients, expected.gradients, strict=True)
        for layer, ((spline, base), (spline64, base64)) in enumerate(pairs):
            errors[f"d_spline{layer}"] = relative_error(spline, spline64)
            errors[f"d_base{layer}"] = relative_error(base, base64)
    return errors


def judge(provider: Provider, runner: Runner, expected: Numbers, tolerance: float = TOLERANCE) -> Verdict:
    """Run the provider once and decide whether its time may be shown."""
    found = runner.numbers()
    finite = bool(torch.isfinite(found.y).all()) and runner.finite()
    if not provider.exact:
        message = "other mathematics: checked for finite numbers only" if finite else "produced NaN or inf"
        return Verdict("finite", finite, finite, {}, message)
    errors = compare(found, expected)
    worst = max(errors.values()) if finite else float("inf")
    if worst <= tolerance:
        return Verdict("exact", True, True, errors)
    where = max(errors, key=lambda key: errors[key])
    message = f"{where} is off by {worst:.1e} of its largest entry (gate {tolerance:.0e})"
    # a red gate of ours never gets a time; a rival's is shown with a mark, or leaving it out would flatter us
    return Verdict("exact", False, provider.kind == "peer" and worst < MEANINGLESS, errors, message)
