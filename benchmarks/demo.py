"""``python -m benchmarks.demo``: KANs and MLPs of the same size on real data, one table and one picture."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

from tools.extras import MissingExtra, require

from .demo_speed import speed_table
from .demo_tasks import KAN_NAME, MLP_NAME, Result, make_tasks, time_steps, train
from .document import milliseconds, size, times
from .machine import all_threads, cpu_model, kernel_isa
from .report import markdown_table, show


def learn(seeds: int, scale: float) -> list[Result]:
    """Train every candidate of every task with every seed, then time its step; a progress bar runs along."""
    results = []
    tasks = make_tasks(scale)
    total = sum(task.steps * len(task.candidates) * seeds for task in tasks)
    interval = 0.2 if sys.stderr.isatty() else 5.0  # a log does not need every step
    with require("tqdm").tqdm(total=total, unit="step", mininterval=interval, dynamic_ncols=True) as bar:
        for task in tasks:
            group = [Result(task, candidate) for candidate in task.candidates]
            for seed in range(seeds):
                for result in group:
                    bar.set_description(f"{task.name}: {result.candidate.text}, seed {seed}")
                    result.runs.append(train(task, result.candidate, seed, bar.update))
            bar.set_description(f"{task.name}: timing one step")
            time_steps(group)
            results += group
    return results


def score(result: Result) -> str:
    """Mean over the seeds and its standard deviation."""
    if result.task.classify:
        return f"{result.mean:.2f} ± {result.spread:.2f} %"
    return f"RMSE {result.mean:.1e} ± {result.spread:.0e}"


def show_results(results: list[Result]) -> None:
    """Print the one table, and what it says."""
    head = ["task", "model", "parameters", f"test score, {len(results[0].runs)} seeds", "ms per step"]
    head += ["samples/s", "peak memory", "ms / MLP's"]
    mlp = {r.task.name: r for r in results if r.candidate.name == MLP_NAME}
    body = []
    for index, r in enumerate(results):
        first = index == 0 or results[index - 1].task is not r.task
        row = [r.candidate.text, f"{r.parameters:,}", score(r), milliseconds(r.step_ms)]
        row += [f"{1e3 * r.task.batch / r.step_ms:,.0f}", size(r.peak_bytes)]
        row += [times(r.step_ms / mlp[r.task.name].step_ms)]
        if r.candidate.name == KAN_NAME:
            row = [f"**{text}**" for text in row]
        body.append([f"{r.task.name}, B={r.task.batch}" if first else "", *row])
    parts = ["## KANs and MLPs with the same number of parameters", markdown_table(head, body, (0, 1))]
    parts.append(
        "A step is zero_grad, forward, loss, backward, fused AdamW; median of interleaved runs. Scores are "
        "on data never trained on. Peak memory is what one step needs beyond model and batch."
    )
    show("\n\n".join([*parts, *verdict(results)]))


def verdict(results: list[Result]) -> list[str]:
    """What the table says, in words, whoever wins."""
    lines = []
    for kan in (r for r in results if r.candidate.name == KAN_NAME):
        for other in (r for r in results if r.task is kan.task and r is not kan):
            ratio = kan.step_ms / other.step_ms
            speed = f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x slower"
            if kan.task.classify:
                gap = kan.mean - other.mean
                noise = (kan.spread**2 + other.spread**2) ** 0.5
                sense = "no real difference" if abs(gap) <= noise else "better" if gap > 0 else "worse"
                quality = f"{gap:+.2f} points of accuracy ({sense})"
            else:
                factor = other.mean / kan.mean
                quality = f"{factor:.1f}x smaller error" if factor >= 1 else f"{1 / factor:.1f}x larger error"
            rival = other.candidate.text
            lines.append(f"- {kan.task.name}: the KAN against {rival}: {speed} a step, {quality}.")
    return lines


def environment() -> str:
    """Processor, threads, versions, and the backend that runs, in one line."""
    package = importlib.import_module("kan_kernels")
    available = [name for name, reason in package.available_backends().items() if reason is None]
    return (
        f"{cpu_model()}, {torch.get_num_threads()} of {all_threads()} threads, torch {torch.__version__}, "
        f"kan_kernels {package.__version__} ({', '.join(available)}; ISA {kernel_isa() or 'none'}), float32"
    )


def main(arguments: list[str] | None = None) -> int:
    """Train, print the table, save the picture. Status 2 with one line when something is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each model (default 5)")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the training, one seed")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    started = time.monotonic()
    try:
        for module in ("rich", "tqdm", "sklearn", "matplotlib", "kan_kernels"):
            require(module)
        print(environment())
        results = learn(1 if options.quick else options.seeds, 0.05 if options.quick else 1.0)
    except MissingExtra as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    show_results(results)
    show(speed_table())
    from .demo_plot import draw  # needs matplotlib, checked above

    picture = draw(results, options.output / "kan_demo.png", environment())
    print(f"{time.monotonic() - started:.0f} s; picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
