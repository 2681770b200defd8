"""A step on Poisson's equation, eager and as one graph: `python -m benchmarks.equation_steps [--check]`.

The residual u_xx + u_yy - f, its mean square and the gradients of all parameters, interleaved in one process
on one thread, after all of them agreed. The clock is the process' own CPU time, which a machine that is
shared with others leaves comparable. Writes benchmarks/results/equation_steps.json and the table in
docs/recipes/pinn.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

from .document import FORMAT, RESULTS, milliseconds
from .document import load as load_document
from .document import save as save_document
from .heads import cpu_clock
from .machine import describe
from .measure import FULL, QUICK, Budget, Cell, measure
from .readme import refresh
from .report import markdown_table

PATH = RESULTS / "equation_steps.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "recipes" / "pinn.md"
COMMAND = "python -m benchmarks.equation_steps"
ROWS = (([2, 5, 1], 100), ([2, 5, 1], 1000), ([2, 20, 20, 1], 1000))
AGREE = 1e-9  # relative, in float64: sums in another order
Step = tuple[dict[str, Tensor], Tensor]


def by_autograd(net: nn.Module, x: Tensor) -> Step:
    """Return the gradients and the loss as people write them."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    bends = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    loss = (bends[0] + bends[1] - x.detach().sum(1)).square().mean()
    found = torch.autograd.grad(loss, list(net.parameters()))
    return dict(zip(dict(net.named_parameters()), found, strict=True)), loss.detach()


def by_func(net: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Step:
    """Return the same by torch.func."""

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        def slope(x: Tensor) -> Tensor:
            return grad(lambda v: functional_call(net, parameters, (v,)).sum())(x)

        bends = [grad(lambda v, i=i: slope(v)[:, i].sum())(x)[:, i] for i in range(2)]
        return (bends[0] + bends[1] - x.sum(1)).square().mean()

    return grad_and_value(loss)(parameters)


def check(got: Step, want: Step, what: str) -> None:
    """Raise RuntimeError where two steps differ by more than rounding."""
    for name, value in want[0].items():
        error = float((got[0][name] - value).abs().max() / value.abs().max())
        if not error <= AGREE:
            raise RuntimeError(f"{what}: the gradient of {name} differs by {error:.1e}")
    if not abs(float(got[1] / want[1]) - 1) <= AGREE:
        raise RuntimeError(f"{what}: the loss is {float(got[1])}, expected {float(want[1])}")


def run(widths: list[int], rows: int, budget: Budget) -> list[dict[str, Any]]:
    """Record, compile, compare, and time one row."""
    from kan_kernels import KAN

    torch.manual_seed(0)
    net = KAN(widths, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    x = torch.rand(rows, 2, dtype=torch.float64) * 1.6 - 0.8
    began = time.perf_counter()
    record = make_fx(lambda p, x: by_func(net, p, x), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = record(parameters, x)
    recorded = time.perf_counter() - began
    began = time.perf_counter()
    compiled = torch.compile(graph, fullgraph=True, dynamic=True)
    compiled(parameters, x)
    seconds = {"recorded": recorded, "recorded, compiled": recorded + time.perf_counter() - began}
    calls = {
        "torch.autograd": lambda: by_autograd(net, x),
        "torch.func": lambda: by_func(net, parameters, x),
        "recorded": lambda: graph(parameters, x),
        "recorded, compiled": lambda: compiled(parameters, x),
    }
    want = by_autograd(net, x)
    for name, call in calls.items():
        check(call(), want, name)
    cells = [Cell(name, call) for name, call in calls.items()]
    measure(cells, budget, cpu_clock)
    label = f"[{','.join(map(str, widths))}], {rows} points"
    results = []
    for cell in cells:
        if cell.error:
            raise RuntimeError(f"{label}, {cell.key}: {cell.error}")
        once = {"row": label, "name": cell.key, "seconds_once": seconds.get(cell.key)}
        results.append({**once, **cell.summary()})
    return results


HEAD = ["network", "step", "CPU ms", "25th to 75th percentile", "ratio", "once, s"]


def table(document: dict[str, Any]) -> str:
    """Return the Markdown table of a result document."""
    body = []
    first: dict[str, float] = {}
    for r in document["results"]:
        rival = first.setdefault(r["row"], r["median_ms"])
        spread = f"{milliseconds(r['p25_ms'])} to {milliseconds(r['p75_ms'])}"
        once = f"{r['seconds_once']:.0f}" if r["seconds_once"] else ""
        cells = [r["row"], r["name"], milliseconds(r["median_ms"]), spread]
        body.append([*cells, f"{r['median_ms'] / rival:.2f}x", once])
    m = document["meta"]
    said = (
        "float64; medians of the CPU time of interleaved calls on one thread, ratios to `torch.autograd` "
        f'with `create_graph=True`. All agreed to {AGREE:g} before they were timed. "Once" is time on the '
        "wall, of a machine that others used, without Inductor's cache. "
        f"{m['cpu']}; torch {m['torch']}, {m['isa_kan_kernels']}, Python {m['python']}; {m['date']}."
    )
    return f"{markdown_table(HEAD, body, (0, 1))}\n\n{said}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one row, short, nothing written")
    parser.add_argument("--check", action="store_true", help="exit 1 when the page's table is out of date")
    options = parser.parse_args(arguments)
    if options.check:
        return refresh(PAGE, table(load_document(PATH, COMMAND)), True, COMMAND)
    torch.set_num_threads(1)
    results = []
    for widths, rows in ROWS[: 1 if options.quick else None]:
        print(widths, rows, file=sys.stderr)
        torch._dynamo.reset()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            results += run(widths, rows, QUICK if options.quick else FULL)
    document = {"format": FORMAT, "meta": {**describe(), "threads": 1}, "results": results}
    print(table(document))
    if not options.quick:
        save_document(document, PATH)
        refresh(PAGE, table(document), False, COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
