"""Activations and multi-head layers and MLPs: `python -m benchmarks.heads [--check]`.

Forward and backward, and inference, of one row's modules interleaved in one process on one thread, after
outputs and gradients of ours agreed with float64. The clock is the process' own CPU time, which a machine
that is shared with others leaves comparable. Writes benchmarks/results/heads.json and the table in
docs/heads.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .document import FORMAT, RESULTS, milliseconds, size
from .document import load as load_document
from .document import save as save_document
from .gate import TOLERANCE, relative_error
from .machine import describe
from .measure import FULL, QUICK, Budget, Cell, measure
from .memory import peak_extra_bytes
from .readme import refresh
from .report import markdown_table

PATH = RESULTS / "heads.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "heads.md"
COMMAND = "python -m benchmarks.heads"
RANGE = (-3.0, 3.0)  # of knots, for standard normal x


@dataclass(frozen=True)
class Row:
    """Our modules and what they are measured against, which comes first; the target of each of ours."""

    key: str
    label: str
    shape: tuple[int, ...]  # of x
    build: Callable[[], dict[str, nn.Module]]
    targets: dict[str, float]
    compiled: bool = False


def cpu_clock(call: Callable[[], object], inner: int) -> float:
    """CPU seconds of this process for `inner` calls."""
    start = time.process_time()
    for _ in range(inner):
        call()
    return time.process_time() - start


def _activations() -> dict[str, nn.Module]:
    from kan_kernels import KANActivation

    return {"GELU": nn.GELU(), "KANActivation": KANActivation(1024)}


def _layers(widths: tuple[int, ...], same_parameters: bool = True) -> Callable[[], dict[str, nn.Module]]:
    """Networks of the same widths, and the MLP with the parameters of 4 heads."""

    def build() -> dict[str, nn.Module]:
        from kan_kernels import MultiHeadKANLinear

        first, hidden, last = widths
        found: dict[str, nn.Module] = {"SiLU MLP": _mlp(widths)}
        for heads in (1, 4):
            layers = (
                MultiHeadKANLinear(i, o, heads, grid_range=RANGE)
                for i, o in ((first, hidden), (hidden, last))
            )
            found[f"{heads} head{'s' * (heads > 1)}"] = nn.Sequential(*layers)
        if same_parameters:
            count = sum(p.numel() for p in found["4 heads"].parameters())
            wide = max(1, round((count - last) / (first + last + 1)))
            found["SiLU MLP, parameters of 4 heads"] = _mlp((first, wide, last))
        return found

    return build


def _gpt_blocks() -> dict[str, nn.Module]:
    """The transformer blocks of examples/language_model.py, with the same number of parameters."""
    from examples.language_model import GPT, HEADS, Size

    kinds = {"GELU MLP": "MLP", **{kind.removeprefix("KAN, "): kind for kind in HEADS}}
    return {name: GPT(kind, 1, Size()).blocks for name, kind in kinds.items()}


def _mlp(widths: tuple[int, ...]) -> nn.Module:
    first, hidden, last = widths
    return nn.Sequential(nn.Linear(first, hidden), nn.SiLU(), nn.Linear(hidden, last))


ROWS = (
    Row("activation", "activation", (4096, 1024), _activations, {"KANActivation": 2.0}),
    Row(
        "narrow", "[256,256,256]", (4096, 256), _layers((256, 256, 256)), {"1 head": 1.5, "4 heads": 2.2},
        compiled=True,
    ),
    Row("wide", "[768,3072,768]", (512, 768), _layers((768, 3072, 768)), {"1 head": 1.3, "4 heads": 1.8}),
    Row("gpt", "GPT, 4 blocks, 128 wide", (16, 128, 128), _gpt_blocks, {"4 heads": 1.2}),
)  # fmt: skip


def numbers(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """y, dx and the gradients of the parameters in float64, for a fixed cotangent."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    (y * torch.cos(torch.arange(y.numel(), dtype=x.dtype)).view_as(y)).sum().backward()
    found = {"y": y, "dx": x.grad, **{name: p.grad for name, p in module.named_parameters()}}
    result = {name: value.detach().double() for name, value in found.items() if value is not None}
    module.zero_grad()
    return result


def _error(module: nn.Module, x: torch.Tensor) -> float:
    """Return the largest relative error of a module's numbers against the reference backend in float64."""
    from kan_kernels import use_backend

    with use_backend("reference"):
        expected = numbers(copy.deepcopy(module).double(), x.double())
    found = numbers(module, x)
    return max(relative_error(found[name], expected[name]) for name in expected)


def train(network: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, x: torch.Tensor) -> Any:
    """Forward and backward with a gradient for x, as inside a network."""
    x = x.clone().requires_grad_()
    g = torch.randn_like(module(x))

    def call() -> None:
        x.grad = None
        module.zero_grad()
        network(x).backward(g)

    return call


def infer(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """The forward pass without gradients."""

    def call() -> None:
        with torch.no_grad():
            network(x)

    return call


def run(row: Row, budget: Budget, compiled: bool) -> list[dict[str, Any]]:
    """Gate, then times and memory of one row."""
    torch.manual_seed(0)
    modules, x = row.build(), torch.randn(row.shape)
    errors = {name: _error(module, x[:256]) for name, module in modules.items()}
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise RuntimeError(f"{row.label}, {name}: numbers differ by {error:.1e} from float64")
    networks: dict[str, Any] = dict(modules)
    if compiled and row.compiled:
        networks |= {f"{name}, compiled": torch.compile(modules[name], dynamic=False) for name in modules}
    of = {name: modules[name.removesuffix(", compiled")] for name in networks}
    calls = {name: train(network, of[name], x) for name, network in networks.items()}
    inference = {name: infer(network, x) for name, network in networks.items()}
    for call in (*calls.values(), *inference.values()):
        call()  # compiling is no part of a step
    results: dict[str, dict[str, Any]] = {}
    for mode, table in (("train", calls), ("infer", inference)):
        cells = [Cell(name, call) for name, call in table.items()]
        measure(cells, budget, cpu_clock)
        for cell in cells:
            if cell.error:
                raise RuntimeError(f"{row.label}, {cell.key}: {cell.error}")
            results.setdefault(cell.key, {"key": row.key, "row": row.label, "name": cell.key})
            results[cell.key][mode] = cell.summary()
    for name, result in results.items():
        peak, how = peak_extra_bytes(calls[name], of[name].zero_grad)
        result |= {
            "peak_bytes": peak,
            "memory": how,
            "parameters": sum(p.numel() for p in of[name].parameters()),
        }
        result |= {"error_float32": errors.get(name), "target": row.targets.get(name)}
    return list(results.values())


HEAD = ["workload", "module", "parameters", "forward + backward, CPU ms", "ratio", "to reach"]
HEAD += ["inference, CPU ms", "ratio", "peak extra memory"]


def table(document: dict[str, Any]) -> str:
    """Return the Markdown table of a result document."""
    body = []
    first: dict[str, dict[str, Any]] = {}
    for r in document["results"]:
        rival = first.setdefault(r["key"], r)
        cells = [r["row"], r["name"], f"{r['parameters']:,}"]
        for mode in ("train", "infer"):
            cells.append(milliseconds(r[mode]["median_ms"]))
            cells.append(f"{r[mode]['median_ms'] / rival[mode]['median_ms']:.2f}x")
            if mode == "train":
                cells.append(f"{r['target']:g}x" if r["target"] else "")
        body.append([*cells, size(r["peak_bytes"])])
    m = document["meta"]
    said = (
        "float32; medians of the CPU time of interleaved calls on one thread, x with a gradient; ratios to "
        "the first line of a workload. Ours agreed with the reference in float64 to "
        f"{TOLERANCE:g} before they were timed. {m['cpu']}; torch {m['torch']}, {m['isa_kan_kernels']}, "
        f"Python {m['python']}; {m['date']}."
    )
    return f"{markdown_table(HEAD, body, (0, 1))}\n\n{said}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short, nothing written")
    parser.add_argument("--check", action="store_true", help="exit 1 when the page's table is out of date")
    parser.add_argument(
        "--compiled", action="store_true", help="also under torch.compile; nothing is written"
    )
    parser.add_argument("--only", help="comma-separated rows; nothing is written")
    options = parser.parse_args(arguments)
    if options.check:
        return refresh(PAGE, table(load_document(PATH, COMMAND)), True, COMMAND)
    known = {row.key: row for row in ROWS}
    keys = list(known) if options.only is None else options.only.split(",")
    unknown = sorted(set(keys) - known.keys())
    if unknown:
        parser.error(f"--only: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    torch.set_num_threads(1)
    results = []
    for key in keys:
        print(known[key].label, file=sys.stderr)
        results += run(known[key], QUICK if options.quick else FULL, options.compiled)
    document = {"format": FORMAT, "meta": {**describe(), "threads": 1}, "results": results}
    print(table(document))
    if not (options.quick or options.compiled or options.only):
        save_document(document, PATH)
        refresh(PAGE, table(document), False, COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
