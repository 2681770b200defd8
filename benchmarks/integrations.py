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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .contests import CONTESTS, Contest
from .document import FORMAT, RESULTS, milliseconds, size
from .document import load as load_document
from .document import save as save_document
from .gate import TOLERANCE, relative_error
from .machine import all_threads, describe
from .measure import FULL, QUICK, Budget, Cell, measure
from .memory import peak_extra_bytes
from .readme import refresh
from .report import markdown_table

PATH = RESULTS / "integrations.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "integrations.md"
COMMAND = "python -m benchmarks.integrations"
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
    """Return the largest relative error of y, dx and (`all_names`) every gradient."""
    names = expected if all_names else ("y", "dx")
    missing = torch.empty(0)
    return max(relative_error(found.get(name, missing), expected[name]) for name in names)


def step(
    network: Callable[[torch.Tensor], torch.Tensor],
    module: nn.Module,
    x: torch.Tensor,
    penalty: Penalty | None,
) -> Callable[[], object]:
    """A training step of a module, called as `network`: zero_grad, forward, mean square, penalty, AdamW."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = network(x).square().mean()
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
    variants: dict[str, tuple[Any, nn.Module]] = {"own": (own, own), "ours": (fast, fast)}
    if contest.compiled:
        for key, module in (("compiled", own), ("ours_compiled", fast)):
            twin = copy.deepcopy(module)
            variants[key] = (torch.compile(twin, dynamic=False), twin)
    calls = {key: step(*variant, x, penalty) for key, variant in variants.items()}
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


HEAD = ["training step, ms", "shape", "its own code", "torch.compile of it", "on our kernels"]
HEAD += ["torch.compile of ours", "faster than its own", "and than torch.compile of it"]
HEAD += ["peak extra memory, its own and ours"]


def table(document: dict[str, Any]) -> str:
    """Return the Markdown table of a result document."""
    body = []
    for r in document["results"]:
        if "reason" in r:
            body.append([r["label"], r["shape"], r["reason"], *[""] * (len(HEAD) - 3)])
            continue
        own, ours, compiled = r["own"], r["ours"], r.get("compiled", {})
        ratio = f"{own['median_ms'] / ours['median_ms']:.1f}x"
        ratio += f" (asked {r['target']:g}x)" if r["target"] else ""
        over = f"{compiled['median_ms'] / ours['median_ms']:.1f}x" if "median_ms" in compiled else "-"
        memory = f"{size(own['peak_bytes'])}, {size(ours['peak_bytes'])}"
        timed = (_cell(r.get(key)) for key in ("own", "compiled", "ours", "ours_compiled"))
        body.append([r["label"], r["shape"], *timed, ratio, over, memory])
    m = document["meta"]
    said = (
        f"float32, {m['threads']} thread(s); medians, 10th and 90th percentile of interleaved steps "
        "(zero_grad, forward, backward, AdamW), in float64 equal to the peer's own numbers to "
        f"{EXACT:g} before they were timed. {m['cpu']}; torch {m['torch']}, {m['isa_kan_kernels']}, "
        f"Python {m['python']}; {m['date']}."
    )
    return f"{markdown_table(HEAD, body, (0, 1))}\n\n{said}\n"


def _cell(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "-"
    if "error" in summary:
        return f"fails: {summary['error'][:60]}"
    return "{1} ({0} to {2})".format(
        *(milliseconds(summary[f"{key}_ms"]) for key in ("p10", "median", "p90"))
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short, nothing compiled, nothing written")
    parser.add_argument("--check", action="store_true", help="exit 1 when the page's table is out of date")
    parser.add_argument("--only", help="comma-separated keys; nothing is written")
    options = parser.parse_args(arguments)
    if options.check:
        return refresh(PAGE, table(load_document(PATH, COMMAND)), True, COMMAND)
    known = {c.key: c for c in CONTESTS}
    keys = list(known) if options.only is None else options.only.split(",")
    unknown = sorted(set(keys) - known.keys())
    if unknown:
        parser.error(f"--only: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    chosen = [c for key, c in known.items() if key in keys]
    if options.quick:
        chosen = [replace(c, compiled=False) for c in chosen]
    threads = all_threads()
    torch.set_num_threads(threads)
    results = []
    for contest in chosen:
        print(f"{contest.label}, {contest.shape}", file=sys.stderr)
        results.append(run(contest, QUICK if options.quick else FULL))
    document = {"format": FORMAT, "meta": {**describe(), "threads": threads}, "results": results}
    print(table(document))
    if not options.quick and options.only is None:
        save_document(document, PATH)
        refresh(PAGE, table(document), False, COMMAND)
    return 1 if any("error_float64" in r and "reason" in r for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
