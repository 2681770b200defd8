"""Images and a table: MLPs, multi-head KANs and KANs of the same size, on scikit-learn's data.

    python -m examples.digits_and_diabetes [--seeds 0 1 2 3 4] [--fast] [--check]

Handwritten digits (1797 images of 64 numbers, 10 classes) and diabetes (442 rows of 10 numbers). Of every
seed a fifth of the rows is for the test and a fifth of the rest chooses the learning rate and the step to
stop at. The clock is the process' own CPU time on one thread. Writes
benchmarks/results/digits_and_diabetes.json and a table in docs/heads.md.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.document import RESULTS
from benchmarks.readme import refresh
from benchmarks.report import markdown_table
from kan_kernels import KANLinear, MultiHeadKANLinear

PATH = RESULTS / "digits_and_diabetes.json"
PAGE = Path(__file__).absolute().parent.parent / "docs" / "heads.md"
COMMAND = "python -m examples.digits_and_diabetes"
RATES = (1e-3, 3e-3, 1e-2)
HEADS = 2
KINDS = ("MLP", "multi-head KAN", "KAN")


@dataclass(frozen=True)
class Task:
    name: str
    loader: str  # of sklearn.datasets
    outputs: int
    parameters: int
    score: str


TASKS = (
    Task("digits", "load_digits", 10, 10_000, "test accuracy"),
    Task("diabetes", "load_diabetes", 1, 500, "test R²"),
)


def data(task: Task, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return (x, y) to learn, to choose by and to test; inputs standardised by the first."""
    from sklearn import datasets  # an extra

    x, y = (torch.from_numpy(a) for a in getattr(datasets, task.loader)(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, chosen, learnt = order.split([len(x) // 5, len(x) // 6, len(x) - len(x) // 5 - len(x) // 6])
    mean, std = x[learnt].mean(0), x[learnt].std(0).clamp_min(1e-6)
    x = ((x - mean) / std).clamp(-3, 3).float()
    number = task.outputs == 1
    y = ((y - y[learnt].mean()) / y[learnt].std()).float().unsqueeze(1) if number else y.long()
    return [(x[rows], y[rows]) for rows in (learnt, chosen, test)]


def model_of(kind: str, inputs: int, hidden: int, outputs: int) -> nn.Module:
    options: dict[str, Any] = {"grid_size": 5, "grid_range": (-3.0, 3.0)}
    if kind == "MLP":
        return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
    norm = nn.LayerNorm(hidden, elementwise_affine=False)
    if kind == "KAN":
        return nn.Sequential(
            KANLinear(inputs, hidden, **options), norm, KANLinear(hidden, outputs, bias=True, **options)
        )
    last = 1 if outputs % HEADS else HEADS
    return nn.Sequential(
        MultiHeadKANLinear(inputs, hidden, HEADS, **options),
        norm,
        MultiHeadKANLinear(hidden, outputs, last, bias=True, **options),
    )


def sized(kind: str, inputs: int, task: Task) -> nn.Module:
    """Return the model whose number of parameters comes closest to the task's."""
    step = HEADS if kind == "multi-head KAN" else 1
    one, two = (count(model_of(kind, inputs, n * step, task.outputs)) for n in (1, 2))
    hidden = max(step, round((task.parameters - one) / (two - one) + 1) * step)
    return model_of(kind, inputs, hidden, task.outputs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def score(prediction: Tensor, y: Tensor) -> float:
    """Return the accuracy of classes, or R² of numbers."""
    if y.dtype == torch.long:
        return float((prediction.argmax(1) == y).double().mean())
    return float(1 - (prediction - y).square().mean() / y.var(correction=0))


def train(kind: str, task: Task, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """Return the score on the test rows of the step that was best on those to choose by."""
    torch.manual_seed(seed)
    (x, y), (x_chosen, y_chosen), (x_test, y_test) = data(task, seed)
    model = sized(kind, x.shape[1], task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    loss_of: Callable[..., Tensor] = F.cross_entropy if y.dtype == torch.long else F.mse_loss
    best, kept, seconds = float("inf"), copy.deepcopy(model), 0.0
    for step in range(steps):
        began = time.process_time()
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            loss_of(model(x[rows]), y[rows]).backward()
            optimizer.step()
        seconds += time.process_time() - began
        if step % 2 == 1:
            with torch.no_grad():
                found = float(loss_of(model(x_chosen), y_chosen))
            if found < best:
                best, kept = found, copy.deepcopy(model)
    with torch.no_grad():
        reached = score(kept(x_test), y_test)
    return {
        "task": task.name, "kind": kind, "seed": seed, "rate": rate, "parameters": count(model),
        "chosen": best, "score": reached, "seconds": seconds / steps,
    }  # fmt: skip


def run(seeds: list[int], steps: int) -> dict[str, Any]:
    """Return a record of each task, kind and seed, of the learning rate best on the rows to choose by."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    runs = []
    for task in TASKS:
        for kind in KINDS:
            for seed in seeds:
                tried = [train(kind, task, seed, rate, steps) for rate in RATES]
                runs.append(min(tried, key=lambda r: r["chosen"]))
            of = [r["score"] for r in runs[-len(seeds) :]]
            print(f"{task.name}, {kind}: {statistics.fmean(of):.3f}", flush=True)
    return {"python": platform.python_version(), "torch": torch.__version__, "steps": steps, "runs": runs}


def block(result: dict[str, Any]) -> str:
    """Return the Markdown between the markers of the page."""
    rows = []
    for task in TASKS:
        for kind in KINDS:
            of = [r for r in result["runs"] if (r["task"], r["kind"]) == (task.name, kind)]
            scores = [r["score"] for r in of]
            reached = f"{statistics.fmean(scores):.3f} ± {statistics.pstdev(scores):.3f}"
            milliseconds = 1000 * statistics.median(r["seconds"] for r in of)
            rows.append(
                [task.name, kind, f"{of[0]['parameters']:,}", task.score, reached, f"{milliseconds:.1f}"]
            )
    heads = ["data", "model", "parameters", "score", "mean ± standard deviation", "CPU ms an epoch"]
    seeds = len({r["seed"] for r in result["runs"]})
    note = f"{seeds} seeds, {result['steps']} epochs, float32, one thread; torch {result['torch']}."
    return "\n".join([markdown_table(heads, rows, (0, 1, 3)), "", note, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fast", action="store_true", help="one seed and a few steps, for tests")
    parser.add_argument("--check", action="store_true", help="compare the page with the result file")
    options = parser.parse_args()
    if options.check:
        return refresh(PAGE, block(json.loads(PATH.read_text())), True, COMMAND, "small-data")
    result = run(options.seeds[:1] if options.fast else options.seeds, 6 if options.fast else 60)
    if options.fast:
        path = Path(__file__).parent / "results" / "digits_and_diabetes.fast.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    return refresh(PAGE, block(result), False, COMMAND, "small-data")


if __name__ == "__main__":
    sys.exit(main())
