"""Fast paths of the CPU, on and off: `python -m benchmarks paths [--quick] [--check] [--workloads NAMES]`.

A path stays if it wins by 1.3x or more on two workloads. A word in KAN_KERNELS_OFF switches it off, which a
process reads once: so each side of a pair is a process of its own. Both build the same tensors, what they
compute is compared, and then they take turns. Writes benchmarks/results/paths.json and the table in
docs/design.md.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .basis_forms import FastKANLayer
from .contests import accelerated
from .document import FORMAT, RESULTS, load, milliseconds, save, times
from .gate import TOLERANCE, relative_error
from .machine import describe
from .measure import FULL, QUICK, Budget, Cell, measure, quantiles, wall_clock
from .measure import describe as what_failed
from .readme import refresh
from .report import markdown_table

SWITCH = "KAN_KERNELS_OFF"
WIN, WANTED = 1.3, 2
COMMAND = "python -m benchmarks paths"
COMMITTED = RESULTS / "paths.json"
PAGE = Path(__file__).absolute().parents[1] / "docs" / "design.md"
ANSWER = 120.0  # seconds in which a side says something

Call = Callable[[], list[Tensor]]  # y and every gradient


@dataclass(frozen=True)
class FastPath:
    """``name``: its word in KAN_KERNELS_OFF. ``workloads``: by title what builds the call, on or off.

    A path with a keyword instead of the word looks at the argument.
    """

    name: str
    label: str
    workloads: dict[str, Callable[[bool], Call]]


def _training(module: Callable[[Tensor], Tensor], x: Tensor, weights: list[Any]) -> Call:
    """Forward and backward, into x too."""
    inputs = [x.requires_grad_(), *weights]

    def call() -> list[Tensor]:
        y = module(x)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    return call


def _layer(make: Callable[[int, int], nn.Module], fan_in: int, fan_out: int, batch: int, on: bool) -> Call:
    """Another codebase's layer, accelerated."""
    layer = accelerated(make(fan_in, fan_out))
    weights = [p for p in layer.parameters() if p.requires_grad]
    return _training(layer, torch.rand(batch, fan_in) * 2 - 1, weights)


def _fit(widths: list[int], on: bool) -> Call:
    """The mean squared error of a KAN and its gradient, as `training.fit` takes them."""
    from kan_kernels import KAN
    from kan_kernels.training.objective import Objective

    net = KAN(widths, dtype=torch.float64)
    x = torch.rand(1000, widths[0], dtype=torch.float64) * 2 - 1
    y = x.square().sum(1, keepdim=True).sin()
    evaluate = Objective(net, None, 0.0, {}).on(x, y)

    def call() -> list[Tensor]:
        net.zero_grad()
        made = evaluate()
        made.backward(1.0)
        return [made.value, *(p.grad for p in net.parameters() if p.grad is not None)]

    return call


def _lbfgs(widths: list[int], on: bool) -> Call:
    """Three steps of LBFGS in `training.fit`."""
    from kan_kernels import KAN
    from kan_kernels.training import fit

    net = KAN(widths, dtype=torch.float64)
    first = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.rand(1000, widths[0], dtype=torch.float64) * 2 - 1
    y = x.square().sum(1, keepdim=True).sin()

    def call() -> list[Tensor]:
        net.load_state_dict(first)
        fit(net, (x, y), steps=3, progress=False)
        return [p.detach() for p in net.parameters()]

    return call


def _ensemble(widths: list[int], batch: int, on: bool) -> Call:
    """The gradients of 64 networks of the same data, by torch.vmap."""
    from kan_kernels import KAN

    nets = [KAN(widths) for _ in range(64)]
    parameters, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
    x = torch.rand(batch, widths[0]) * 2 - 1

    def loss(*state: Any) -> Tensor:
        return torch.func.functional_call(nets[0], state, (x,)).square().mean()

    def call() -> list[Tensor]:
        return list(torch.func.vmap(torch.func.grad(loss))(parameters, buffers).values())

    return call


_NORM = {
    f"FastKANLayer [{i},{o}] B=1000": partial(_layer, FastKANLayer, i, o, 1000)
    for i, o in ((2, 5), (4, 5), (16, 8), (64, 8))
}
_FIT = {
    f"mean squared error of [{','.join(map(str, widths))}] B=1000, float64": partial(_fit, widths)
    for widths in ([2, 5, 1], [4, 5, 1], [2, 5, 5, 1])
}
_LBFGS = {
    f"three steps of LBFGS on [{','.join(map(str, widths))}] B=1000, float64": partial(_lbfgs, widths)
    for widths in ([2, 5, 1], [4, 5, 1])
}
_STACKS = {f"64 networks [2,5,1] B={batch}": partial(_ensemble, [2, 5, 1], batch) for batch in (100, 1000)}
PATHS = (
    FastPath("layer_norm_rbf", "layer norm + RBF layer in one op", _NORM),
    FastPath("kan_network", "all layers in one call, `fit` without autograd", _FIT),
    FastPath("lbfgs", "LBFGS in the library", _LBFGS),
    FastPath("stacks", "networks side by side under vmap", _STACKS),
)


@contextmanager
def side(path: FastPath, title: str, on: bool) -> Iterator[Callable[..., Any]]:
    """Run one side of a pair in a process of its own; yields what asks it, or raises RuntimeError.

    ask(n): the seconds of n calls; ask(0): the tensors of one.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    arguments = (path.workloads[title], on, torch.get_num_threads(), other)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    kept = os.environ.pop(SWITCH, None)
    try:
        os.environ |= {} if on else {SWITCH: path.name}
        process.start()
    finally:
        os.environ.pop(SWITCH, None)
        os.environ |= {} if kept is None else {SWITCH: kept}
    other.close()

    def ask(what: int) -> Any:
        try:
            with suppress(BrokenPipeError):  # it is gone, but may have said why
                pipe.send(what)
            answer = pipe.recv() if pipe.poll(ANSWER) else f"no answer in {ANSWER:g} s"
        except (EOFError, OSError):
            process.join()
            answer = f"its process ended with status {process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.join()


def _serve(make: Callable[[bool], Call], on: bool, threads: int, pipe: Any) -> None:
    """What the process of a side does: build, then answer until it is ended."""
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        call = make(on)
        while True:
            count = pipe.recv()
            pipe.send(wall_clock(call, count) if count else [t.detach().double().numpy() for t in call()])
    except Exception as error:
        pipe.send(what_failed(error))


def compare(path: FastPath, title: str, budget: Budget) -> dict[str, Any]:
    """Gate and time of one pair; a reason in place of times where there are none."""
    row: dict[str, Any] = {"path": path.name, "label": path.label, "workload": title}
    with side(path, title, on=True) as on, side(path, title, on=False) as off:
        try:
            pairs = zip(on(0), off(0), strict=True)
            row["error"] = max(relative_error(*map(torch.as_tensor, pair)) for pair in pairs)
        except RuntimeError as error:
            return {**row, "reason": str(error)}
        if not row["error"] <= TOLERANCE:
            return {**row, "reason": f"on and off differ by {row['error']:.1e} of the largest entry"}
        cells = [Cell("on", on), Cell("off", off)]
        measure(cells, budget, clock=lambda ask, inner: ask(inner))  # type: ignore[call-arg]
    for cell in cells:
        if cell.error is not None:
            return {**row, "reason": f"{cell.key}: {cell.error}"}
        row[cell.key] = cell.summary()
    ratios = [b / a for a, b in zip(cells[0].samples, cells[1].samples, strict=False)]
    low, median, high = quantiles(ratios, 25, 50, 75)
    return {**row, "ratio": {"median": median, "p25": low, "p75": high}}


def verdicts(document: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """By path: whether it stays, and the sentence that says why."""
    found = {}
    for name in dict.fromkeys(row["path"] for row in document["results"]):
        rows = [row for row in document["results"] if row["path"] == name]
        wins = sum("ratio" in row and row["ratio"]["median"] >= WIN for row in rows)
        text = f"`{name}` {'stays' if wins >= WANTED else 'goes'}: {WIN:g}x or more on {wins} of {len(rows)}"
        found[name] = (wins >= WANTED, text)
    return found


def _status(document: dict[str, Any]) -> int:
    return int(not all(stays for stays, _ in verdicts(document).values()))


def table(document: dict[str, Any] | None) -> str:
    """The Markdown block of docs/design.md."""
    if document is None:
        return f"Not measured yet: `{COMMAND}`.\n"
    body = []
    for row in document["results"]:
        cells = [row["label"], row["workload"], row.get("reason", "-"), "-", "-"]
        if "ratio" in row:
            low, middle, high = (times(row["ratio"][key]) for key in ("p25", "median", "p75"))
            cells[2:] = [milliseconds(row[side]["median_ms"]) for side in ("off", "on")]
            cells += [f"{middle} [{low} to {high}]"]
        body.append(cells)
    m = document["meta"]
    said = [text for _, text in verdicts(document).values()]
    said += [f"float32 unless said, {m['threads']} thread(s), medians and quartiles of turns"]
    said += [f"{m['cpu']}, torch {m['torch']}, {m['isa_kan_kernels']}, {m['date']}"]
    head = ["fast path", "forward + backward", "off, ms", "on, ms", "off / on"]
    return f"{markdown_table(head, body, (0, 1))}\n\n{'; '.join(said)}.\n"


def main(quick: bool, check: bool, names: list[str] | None = None) -> int:
    """Return the exit status: 1 for a path that does not earn its place, a failed pair, a stale page.

    A quick run, and one of some paths alone, print and write nothing.
    """
    if check:
        document = load(COMMITTED) if COMMITTED.exists() else None
        stale = refresh(PAGE, table(document), True, COMMAND, "paths")
        return stale or (0 if document is None else _status(document))
    unknown = set(names or []) - {path.name for path in PATHS}
    if unknown:
        raise ValueError(f"unknown path {min(unknown)!r}; known: {', '.join(path.name for path in PATHS)}")
    torch.set_num_threads(1)  # idle threads of one side would spin beside the other
    results = []
    for path in PATHS:
        for title in path.workloads if names is None or path.name in names else ():
            print(f"{path.name}: {title}", file=sys.stderr, flush=True)
            results.append(compare(path, title, QUICK if quick else FULL))
    meta = {**describe(), "threads": torch.get_num_threads()}
    document = {"format": FORMAT, "name": "paths", "meta": meta, "results": results}
    print(table(document))
    if quick or names is not None:
        return int(any("reason" in row for row in results))
    save(document, COMMITTED)
    refresh(PAGE, table(document), False, COMMAND, "paths")
    return _status(document)
