"""The process that measures jobs on the device, one after the other: events as JSON lines on stdout.

A fault on a GPU takes the process along, so the process says what it is about to do before it does it: its
parent blames the last thing announced, starts another without it and goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import measure as timing
from ..gate import MEANINGLESS, compare, reference_numbers
from ..modes import Numbers, Runner
from ..providers import Model, find_provider
from ..worker import admit, event_stream, take_times
from ..workloads import TRAIN, Problem, make_problem
from .device import Device, query
from .graphs import GraphRunner
from .plan import CAPTURES, COMPILES, EAGER, GPU_MODES, Job, find_job
from .providers import GPU_PROVIDERS, OnBackend, automatic, executions, place, refusal
from .roofline import measure_peaks

GPU_BUDGET = timing.Budget(seconds=0.25, sample=0.01, most=50, least=5, single=2.0)


@dataclass
class Task:
    """What one worker does.

    skip: "job|mode|provider|execution" -> why it gets no figure. done: "job|mode" measured by an earlier
    worker. end: seconds since the epoch, after which it starts nothing; what is left is reported as cut.
    """

    jobs: list[str]
    device: str
    smoke: bool
    end: float = 0.0
    peaks: bool = False
    skip: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Built:
    """A provider's one model in a job, and its compiled form once it was asked for."""

    model: Model
    compiled: Any = None


class Worker:
    """Runs a Task and sends events: peaks, job, busy, cell (one result), cut, dead, done."""

    def __init__(self, task: Task, stream: Any) -> None:
        self.task, self.stream = task, stream
        self.device = Device(task.device)
        self.budget = timing.SMOKE if task.smoke else GPU_BUDGET
        # compiling with inductor takes longer than the whole smoke run may; its path is the same
        self.compiler = "aot_eager" if task.smoke else "inductor"

    def send(self, event: str, **data: Any) -> None:
        print(json.dumps({"event": event, **data}), file=self.stream, flush=True)

    def late(self) -> bool:
        return time.time() > self.task.end

    def run(self) -> None:
        if self.task.peaks:
            self.send("busy", cell="peaks")
            self.send("peaks", peaks=measure_peaks(self.device, self.task.smoke))
        for name in self.task.jobs:
            self.run_job(find_job(name))
        self.send("done")

    def run_job(self, job: Job) -> None:
        modes = [mode for mode in GPU_MODES if f"{job.name}|{mode}" not in self.task.done]
        if not modes:
            return
        if self.late():
            for mode in modes:
                self.send("cut", what=f"{job.name}, {mode}")
            return
        self.send("busy", cell=f"{job.name}|preparing")
        torch.compiler.reset()
        self.device.release_memory()
        torch.set_float32_matmul_precision("high" if job.precision.tf32 else "highest")
        # models are built on the CPU from the rounded weights, and moved
        host = make_problem(job.workload).to(torch.device("cpu"), job.precision.dtype)
        problem = host.to(self.device.torch, job.precision.dtype)
        expected = reference_numbers(problem, TRAIN)  # its forward pass serves the mode forward too
        gate = gate_of(job, host, problem, expected)
        self.send("job", job=job.name, automatic=automatic(job, self.device), gate=gate)
        built: dict[str, Built] = {}
        for mode in modes:
            if self.late():
                self.send("cut", what=f"{job.name}, {mode}")
                continue
            self.run_mode(job, mode, gate, host, problem, expected, built)

    def run_mode(
        self,
        job: Job,
        mode: str,
        gate: float,
        host: Problem,
        problem: Problem,
        expected: Numbers,
        built: dict[str, Built],
    ) -> None:
        results: dict[str, dict[str, Any]] = {}
        runners: dict[str, Runner] = {}
        for key, provider in GPU_PROVIDERS.items():
            for execution in executions(provider, job, mode):
                cell = f"{job.name}|{mode}|{key}|{execution}"
                result = results[cell] = blank(job, mode, key, execution)
                self.send("busy", cell=cell)
                try:
                    reason = refusal(provider, job, mode, execution, self.device)
                    if reason is not None:
                        result.update(status="absent", reason=reason)
                    elif cell in self.task.skip:
                        result.update(status="failed", reason=self.task.skip[cell])
                    elif self.late():
                        result.update(status="cut", reason="no time was left")
                    else:
                        runner = self.prepare(result, gate, host, problem, expected, built)
                        if runner is not None:
                            runners[cell] = runner
                except Exception as error:  # a provider may fail in any way; the table must say how
                    result.update(status="failed", reason=timing.describe(error))
                    self.survive(cell, result)
        self.time(job, mode, results, runners)

    def time(
        self, job: Job, mode: str, results: dict[str, dict[str, Any]], runners: dict[str, Runner]
    ) -> None:
        """Interleaved timing of everything that passed its gate, then memory; sends the mode's results."""
        self.send("busy", cell=f"{job.name}|{mode}|timing")
        take_times(results, runners, self.budget, self.device.clock)
        clocks = query("clocks.sm,clocks.mem") if self.device.is_gpu else None
        for cell, runner in runners.items():
            result = results[cell]
            if result["status"] == "failed":
                self.survive(cell, result)
                continue
            result.update(clocks=clocks)
            if mode == TRAIN and result["execution"] == EAGER:
                self.send("busy", cell=cell)
                peak, method = self.device.peak_extra(runner.call, runner.release)
                result.update(peak_extra_bytes=peak, memory_method=method)
        for result in results.values():
            self.send("cell", result=result)

    def prepare(
        self,
        result: dict[str, Any],
        gate: float,
        host: Problem,
        problem: Problem,
        expected: Numbers,
        built: dict[str, Built],
    ) -> Runner | None:
        """Build (once a job), capture or compile, and pass the gate; None when it withholds the time."""
        job, mode, execution = find_job(result["job"]), result["mode"], result["execution"]
        provider = GPU_PROVIDERS[result["provider"]]
        if provider.key not in built:
            torch.manual_seed(0)
            model = provider.build(host, mode)
            built[provider.key] = Built(place(model, self.device.torch, job.precision.dtype))
        entry = built[provider.key]
        if execution in COMPILES and entry.compiled is None:
            entry.compiled = torch.compile(
                entry.model.module, fullgraph=True, dynamic=False, backend=self.compiler
            )
        network = entry.compiled if execution in COMPILES else None
        kind = GraphRunner if execution in CAPTURES else Runner
        runner = kind(entry.model, problem, mode, network)
        if isinstance(provider, OnBackend):
            result["backends"] = [provider.backend] if provider.backend else automatic(job, self.device)
        return runner if admit(result, provider, runner, expected, gate) else None

    def survive(self, cell: str, result: dict[str, Any]) -> None:
        """Go on after an error, unless it broke the device for this process: then tell the parent and end."""
        if not self.device.alive():
            self.send("dead", cell=cell, reason=result["reason"])
            sys.stderr.flush()
            os._exit(3)


def gate_of(job: Job, host: Problem, problem: Problem, expected: Numbers) -> float:
    """The job's tolerance: the precision's, or twice the error of plain torch in it, where that is more."""
    model = place(find_provider("textbook").build(host, TRAIN), problem.x.device, job.precision.dtype)
    try:
        plain = max(compare(Runner(model, problem, TRAIN).numbers(), expected).values())
    except torch.OutOfMemoryError:  # it keeps every step of the recursion
        plain = 0.0
    return min(MEANINGLESS, max(job.precision.tolerance, 2 * plain))


def blank(job: Job, mode: str, key: str, execution: str) -> dict[str, Any]:
    provider = GPU_PROVIDERS[key]
    return {
        "job": job.name,
        "workload": job.workload.name,
        "precision": job.precision.name,
        "dtype": str(job.precision.dtype).removeprefix("torch."),
        "tf32": job.precision.tf32,
        "mode": mode,
        "provider": key,
        "execution": execution,
        "label": provider.label.removesuffix(", eager"),  # the execution says it
        "kind": provider.kind,
    }


def main() -> None:
    """Read a Task as JSON from stdin, write events to the real stdout."""
    stream = event_stream()
    task = Task(**json.load(sys.stdin))
    for plugin in task.plugins:
        importlib.import_module(plugin)
    Worker(task, stream).run()


if __name__ == "__main__":
    main()
