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
from .gate import judge, reference_numbers
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
        results: dict[str, dict[str, Any]] = {}
        cells: list[timing.Cell] = []
        runners: dict[str, Runner] = {}
        for key in self.job.providers:
            provider = find_provider(key)
            result: dict[str, Any] = {
                "workload": problem.workload.name,
                "mode": mode,
                "provider": key,
                "label": provider.label,
                "kind": provider.kind,
                "threads": self.job.threads,
            }
            results[key] = result
            self.send("busy", workload=problem.workload.name, mode=mode, provider=key)
            try:
                reason = self.reason(provider, problem.workload, mode)
                if reason is not None:
                    result.update(status="absent", reason=reason)
                    continue
                runner = self.prepare(provider, problem, mode, expected, models, result)
            except Exception as error:  # a rival may fail in any way; the table must say how
                result.update(status="failed", reason=describe(error))
                continue
            if runner is not None:
                runners[key] = runner
                cells.append(timing.Cell(key, runner.call))
        self.send("busy", workload=problem.workload.name, mode=mode, provider="timing, interleaved")
        timing.measure(cells, self.budget)
        for cell in cells:
            self.finish(results[cell.key], cell, problem.workload, mode)
        for key, result in results.items():
            if mode == TRAIN and key in runners and result["status"] in ("ok", "inexact"):
                self.weigh(result, runners[key])
            self.send("cell", result=result)

    def reason(self, provider: Provider, workload: Workload, mode: str) -> str | None:
        skipped = self.job.skip.get(f"{workload.name}/{provider.key}/{mode}")
        return provider.unavailable() or provider.refuses(workload, mode) or skipped

    def prepare(
        self,
        provider: Provider,
        problem: Problem,
        mode: str,
        expected: Numbers,
        models: dict[tuple[str, bool], Model],
        result: dict[str, Any],
    ) -> Runner | None:
        """Build (once for the first-order modes) and pass the gate; None when the gate withholds the time."""
        slot = (provider.key, mode == SECOND)
        if slot not in models:
            torch.manual_seed(0)
            models[slot] = provider.build(problem, mode)
        model = models[slot]
        parameters = model.parameter_count()
        result.update(parameters=parameters, parameter_ratio=parameters / problem.workload.kan_parameters)
        runner = Runner(model, problem, mode)
        verdict = judge(provider, runner, expected)
        result["gate"] = verdict.to_json()
        if not verdict.timed:
            result.update(status="gated", reason=f"time withheld: {verdict.message}")
            return None
        result["status"] = "ok" if verdict.passed else "inexact"
        if not verdict.passed:
            result["reason"] = verdict.message
        return runner

    def finish(self, result: dict[str, Any], cell: timing.Cell, workload: Workload, mode: str) -> None:
        if cell.error is not None or not cell.samples:
            result.update(status="failed", reason=cell.error or "no sample was taken")
            return
        result.update(cell.summary())
        flops = workload.useful_flops(mode)
        if flops is not None and result["kind"] == "ours":
            result["useful_gflops"] = flops / (result["median_ms"] * 1e6)

    def weigh(self, result: dict[str, Any], runner: Runner) -> None:
        peak, method = peak_extra_bytes(runner.call, runner.release)
        result.update(peak_extra_bytes=peak, memory_method=method)


def describe(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


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
