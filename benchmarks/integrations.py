"""Other people's layers before and after: `python -m benchmarks.integrations [--quick] [--check]`.

A training step of the peer's own module and of the same on our kernels, each also under torch.compile,
interleaved in one process at all threads, after outputs and gradients agreed with the peer's in float64.
Writes benchmarks/results/integrations.json and the table in docs/integrations.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .contests import CONTESTS, Contest
from .document import RESULTS, milliseconds, size
from .document import load as load_document
from .document import save as save_document
from .machine import all_threads, describe
from .measure import FULL, QUICK, Budget, Cell, measure
from .memory import peak_extra_bytes
from .readme import render

PATH = RESULTS / "integrations.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "integrations.md"
# As the harness's gate: float32 against float64, relative to the largest entry.
TOLERANCE = 1e-4
EXACT = 1e-9  # float64 against float64


Penalty = Callable[[Any], torch.Tensor]


def numbers(module: nn.Module, x: torch.Tensor, penalty: Penalty | None = None) -> dict[str, torch.Tensor]:
    """y, dx and the gradients of the parameters, for a fixed cotangent and the penalty."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    loss = (y * torch.cos(torch.arange(y.numel(), dtype=x.dtype)).view_as(y)).sum()
    if penalty is not None:
        loss = loss + penalty(module)
    loss.backward()
    found = {"y": y.detach(), "dx": x.grad}
    found |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return {name: value.double() for name, value in found.items() if value is not None}


def disagreement(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], all_names: bool) -> float:
    """Largest difference relative to the largest entry, over y, dx and (`all_names`) every gradient."""
    names = expected if all_names else ("y", "dx")
    worst = 0.0
    for name in names:
        if name not in found:
            return float("inf")
        scale = expected[name].abs().max().clamp_min(1e-30)
        worst = max(worst, float((found[name] - expected[name]).abs().max() / scale))
    return worst if worst == worst else float("inf")


def step(
    module: Callable[[torch.Tensor], torch.Tensor],
    parameters: list[Any],
    x: torch.Tensor,
    penalty: Penalty | None = None,
) -> Callable[[], object]:
    """A training step: zero_grad, forward, mean square and penalty, backward, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = module(x).square().mean()
        if penalty is not None:
            loss = loss + penalty(module)
        loss.backward()
        optimizer.step()

    return call


def run(contest: Contest, budget: Budget) -> dict[str, Any]:
    """Gate, then time and memory of one contest; a reason in their place where it cannot run."""
    result: dict[str, Any] = {"key": contest.key, "label": contest.label, "shape": contest.shape}
    result |= {"target": contest.target}
    reason = contest.unavailable()
    if reason is not None:
        return result | {"reason": reason}
    torch.manual_seed(0)
    own = contest.build()
    fast = contest.fast(copy.deepcopy(own))
    x = contest.x()
    penalty = contest.penalty
    expected = numbers(copy.deepcopy(own).double(), x.double(), penalty)
    twice = numbers(copy.deepcopy(fast).double(), x.double(), penalty)
    exact = disagreement(twice, expected, contest.same_names)
    error = disagreement(numbers(fast, x, penalty), expected, contest.same_names)
    result |= {"error_float64": exact, "error_float32": error}
    if exact > EXACT or error > TOLERANCE:
        return result | {"reason": f"numbers differ: {exact:.1e} in float64, {error:.1e} in float32"}
    variants: dict[str, tuple[Any, list[Any]]] = {"own": (own, _trained(own)), "ours": (fast, _trained(fast))}
    if contest.compiled:
        for key, module in (("compiled", own), ("ours_compiled", fast)):
            twin = copy.deepcopy(module)
            variants[key] = (torch.compile(twin, dynamic=False), _trained(twin))
    calls = {key: step(module, parameters, x, penalty) for key, (module, parameters) in variants.items()}
    for key in calls.keys() & {"compiled", "ours_compiled"}:
        with contextlib.suppress(Exception):  # `measure` meets it again, and keeps what it says
            calls[key]()  # compiling is no part of a step
    cells = [Cell(key, call) for key, call in calls.items()]
    measure(cells, budget)
    for cell in cells:
        result[cell.key] = {"error": cell.error} if cell.error else cell.summary()
    for key in ("own", "ours"):
        peak, how = peak_extra_bytes(calls[key], variants[key][0].zero_grad)
        result[key] |= {"peak_bytes": peak, "memory": how}
    return result


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def table(document: dict[str, Any]) -> str:
    """The Markdown table of a result document."""
    lines = [
        "| training step, ms | shape | its own code | torch.compile of it | on our kernels "
        "| torch.compile of ours | faster than its own | and than torch.compile of it "
        "| peak extra memory, its own and ours |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for r in document["results"]:
        if "reason" in r:
            lines.append(f"| {r['label']} | {r['shape']} | {r['reason']} | | | | | | |")
            continue
        own, ours = r["own"], r["ours"]
        ratio = f"{own['median_ms'] / ours['median_ms']:.1f}x"
        compiled = r.get("compiled", {})
        over = f"{compiled['median_ms'] / ours['median_ms']:.1f}x" if "median_ms" in compiled else "-"
        wanted = f" (asked {r['target']:g}x)" if r["target"] else ""
        memory = f"{size(own['peak_bytes'])}, {size(ours['peak_bytes'])}"
        lines.append(
            f"| {r['label']} | {r['shape']} | {_cell(own)} | {_cell(r.get('compiled'))} | {_cell(ours)} "
            f"| {_cell(r.get('ours_compiled'))} | {ratio}{wanted} | {over} | {memory} |"
        )
    m = document["meta"]
    lines.append(
        f"\nfloat32, {m['threads']} thread(s); medians, 10th and 90th percentile of interleaved steps "
        "(zero_grad, forward, backward, AdamW), in float64 equal to the peer's own numbers to "
        f"{EXACT:g} before they were timed. {m['cpu']}; torch {m['torch']}, {m['isa_kan_kernels']}, "
        f"Python {m['python']}; {m['date']}.\n"
    )
    return "\n".join(lines)


def _cell(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "-"
    if "error" in summary:
        return f"fails: {summary['error'][:60]}"
    low, middle, high = (milliseconds(summary[f"{key}_ms"]) for key in ("p10", "median", "p90"))
    return f"{middle} ({low} to {high})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integrations", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="short samples, nothing compiled, nothing written"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when the page's table is out of date")
    parser.add_argument("--only", help="comma-separated keys; nothing is written")
    options = parser.parse_args(arguments)
    if options.check:
        document = load_document(PATH, "python -m benchmarks.integrations")
        fresh = render(PAGE.read_text(), table(document)) == PAGE.read_text()
        print(
            f"{PAGE.name} is "
            + ("up to date" if fresh else "OUT OF DATE: run python -m benchmarks.integrations")
        )
        return 0 if fresh else 1
    keys = [c.key for c in CONTESTS] if options.only is None else options.only.split(",")
    unknown = set(keys) - {c.key for c in CONTESTS}
    if unknown:
        known = ", ".join(c.key for c in CONTESTS)
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected some of {known}")
    chosen = [c for c in CONTESTS if c.key in keys]
    if options.quick:
        chosen = [Contest(**{**c.__dict__, "compiled": False}) for c in chosen]
    threads = all_threads()
    torch.set_num_threads(threads)
    results = []
    for contest in chosen:
        print(f"{contest.label}, {contest.shape}", file=sys.stderr)
        results.append(run(contest, QUICK if options.quick else FULL))
    document = {"format": 1, "meta": {**describe(), "threads": threads}, "results": results}
    print(table(document))
    if not options.quick and options.only is None:
        save_document(document, PATH)
        PAGE.write_text(render(PAGE.read_text(), table(document)))
    return 1 if any("error_float64" in r and "reason" in r for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
