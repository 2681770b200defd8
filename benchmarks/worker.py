"""The process that measures: one workload (or a few) at one thread count, events as JSON lines on stdout.

A process of its own keeps thread counts, compiler caches and memory of one workload away from the next, and a
provider that kills it takes only that workload's cells along.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any, TextIO

import torch

from . import measure as timing
from .gate import TOLERANCE, judge, reference_numbers
from .machine import fma_peak
from .memory import peak_extra_bytes
from .modes import Numbers, Runner
from .providers import Model, Provider, find_provider
from .workloads import FORWARD, SECOND, STEP, TRAIN, Problem, Workload, find_workload, make_problem

BUDGETS = {"full": timing.FULL, "quick": timing.QUICK, "smoke": timing.SMOKE}


@dataclass
class Job:
    """What one worker does. ``skip`` maps "workload/provider/mode" to a reason decided by the parent."""

    modes: dict[str, list[str]]  # by workload, in the order they run
    providers: list[str]
    threads: int
    level: str
    skip: dict[str, str]


class Worker:
    """Runs a Job and sends events: peak, cell (one result), done."""

    def __init__(self, job: Job, stream: Any) -> None:
        self.job, self.stream = job, stream
        self.budget = BUDGETS[job.level]

    def send(self, event: str, **data: Any) -> None:
        print(json.dumps({"event": event, **data}), file=self.stream, flush=True)

    def run(self) -> None:
        self.send("peak", gflops=fma_peak(self.job.threads))
        for name in self.job.modes:
            torch.compiler.reset()
            self.run_workload(find_workload(name))
        self.send("done")

    def run_workload(self, workload: Workload) -> None:
        problem = make_problem(workload)
        models: dict[tuple[str, bool], Model] = {}
        trained: dict[str, Numbers] = {}
        modes = self.job.modes[workload.name]
        for mode in modes:
            # one float64 run of forward+backward serves the forward and the training step as well
            same = TRAIN if mode == STEP or (mode == FORWARD and TRAIN in modes) else mode
            if same not in trained:
                self.send("busy", workload=workload.name, mode=mode, provider="float64 reference")
                trained[same] = reference_numbers(problem, same)
            self.run_mode(problem, mode, trained[same], models)

    def run_mode(
        self, problem: Problem, mode: str, expected: Numbers, models: dict[tuple[str, bool], Model]
    ) -> None:
        workload = problem.workload
        results: dict[str, dict[str, Any]] = {}
        runners: dict[str, Runner] = {}
        for key in self.job.providers:
            provider = find_provider(key)
            result = results[key] = blank(workload.name, mode, key, self.job.threads)
            self.send("busy", workload=workload.name, mode=mode, provider=key)
            skipped = self.job.skip.get(f"{workload.name}/{key}/{mode}")
            try:
                reason = provider.unavailable() or provider.refuses(workload, mode) or skipped
                if reason is not None:
                    result.update(status="absent", reason=reason)
                    continue
                slot = (key, mode == SECOND)  # one model for the first-order modes
                if slot not in models:
                    torch.manual_seed(0)
                    models[slot] = provider.build(problem, mode)
                runner = Runner(models[slot], problem, mode)
                if admit(result, provider, runner, expected):
                    runners[key] = runner
            except Exception as error:  # a rival may fail in any way; the table must say how
                result.update(status="failed", reason=timing.describe(error))
        self.send("busy", workload=workload.name, mode=mode, provider="timing, interleaved")
        take_times(results, runners, self.budget)
        flops = workload.useful_flops(mode)
        for key, result in results.items():
            if "median_ms" in result and flops is not None and result["kind"] == "ours":
                result["useful_gflops"] = flops / (result["median_ms"] * 1e6)
            if "median_ms" in result and mode == TRAIN:
                peak, method = peak_extra_bytes(runners[key].call, runners[key].release)
                result.update(peak_extra_bytes=peak, memory_method=method)
            self.send("cell", result=result)


def blank(workload: str, mode: str, key: str, threads: int) -> dict[str, Any]:
    """Return what stands in a result before anything was done."""
    provider = find_provider(key)
    about = {"provider": key, "label": provider.label, "kind": provider.kind}
    return {"workload": workload, "mode": mode, **about, "threads": threads}


def admit(
    result: dict[str, Any],
    provider: Provider,
    runner: Runner,
    expected: Numbers,
    tolerance: float = TOLERANCE,
) -> bool:
    """Run the gate and enter its verdict; whether the time may be taken."""
    parameters = runner.model.parameter_count()
    share = parameters / runner.problem.workload.kan_parameters
    verdict = judge(provider, runner, expected, tolerance)
    result.update(parameters=parameters, parameter_ratio=share, gate=verdict.to_json())
    result["status"] = "ok" if verdict.passed else "inexact" if verdict.timed else "gated"
    if not verdict.passed:
        result["reason"] = verdict.message if verdict.timed else f"time withheld: {verdict.message}"
    return verdict.timed


def take_times(
    results: dict[str, dict[str, Any]],
    runners: dict[str, Runner],
    budget: timing.Budget,
    clock: timing.Clock = timing.wall_clock,
) -> None:
    """Time the runners in turn and enter what was measured, or why nothing was, in their results."""
    cells = [timing.Cell(key, runner.call) for key, runner in runners.items()]
    timing.measure(cells, budget, clock=clock)
    for cell in cells:
        if cell.error is not None or not cell.samples:
            results[cell.key].update(status="failed", reason=cell.error or "no sample was taken")
        else:
            results[cell.key].update(cell.summary())


def event_stream() -> TextIO:
    """The real stdout, for events; from here on what libraries print goes to stderr, and warnings nowhere."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.filterwarnings("ignore")
    return stream


def main() -> None:
    """Read a Job as JSON from stdin, write events to the real stdout."""
    stream = event_stream()
    job = Job(**json.load(sys.stdin))
    torch.set_num_threads(job.threads)
    Worker(job, stream).run()


if __name__ == "__main__":
    main()
