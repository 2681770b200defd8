"""Plans the jobs, runs the workers, collects their events into one result dictionary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from .children import Lines
from .document import FORMAT, Table, add_mlp_ratios
from .machine import describe
from .providers import find_provider
from .worker import Job, blank
from .workloads import FORWARD, MODES, SECOND, STEP, TRAIN, Workload

FOREVER = 1e6  # seconds
RULE = (
    "same-parameter MLP: hidden widths x (G+k+1), with biases and ReLU (SiLU for second derivatives); one "
    "hidden layer of matching size for a single KAN layer"
)

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What to run. ``level`` is full, quick or smoke; ``modes`` None means each workload's own.

    ``thorough``: the providers were named by the user, so none is left out to save time.
    """

    workloads: list[Workload]
    providers: list[str]
    modes: list[str] | None
    threads: list[int]
    level: str
    thorough: bool = False

    def modes_of(self, workload: Workload, threads: int) -> list[str]:
        """Modes in the order they run: a training step moves the weights, so it comes after the others."""
        everything = self.level != "quick" and (self.level == "smoke" or threads == max(self.threads))
        default = MODES if everything else (TRAIN,) if self.level == "quick" else (FORWARD, TRAIN)
        wanted = set(default) & set(workload.modes) if self.modes is None else set(self.modes)
        return [mode for mode in (FORWARD, TRAIN, SECOND, STEP) if mode in wanted]

    def skip(self, workload: Workload, threads: int) -> dict[str, str]:
        """Cells left out to keep the run short ("workload/provider/mode"), and why, for the table."""
        if self.thorough or self.level == "smoke":
            return {}
        cells = product(self.providers, MODES)
        reasons = {(key, mode): self._too_long(workload, key, mode, threads) for key, mode in cells}
        return {f"{workload.name}/{key}/{mode}": why for (key, mode), why in reasons.items() if why}

    def _too_long(self, workload: Workload, key: str, mode: str, threads: int) -> str | None:
        """Why a cell would cost more seconds than its figure is worth, or None."""
        provider = find_provider(key)
        if self.level == "quick":
            if provider.compiles and not workload.headline:
                return "left out of --quick: compiling takes seconds"
            if provider.kind in ("unfused", "peer") and workload.basis_bytes > 2**28:
                return f"left out of --quick: its basis alone takes {workload.basis_bytes >> 20} MiB"
            if provider.slow and workload.large and not (key == "textbook" and workload.headline):
                return "left out of --quick: slow on this workload"
        elif threads != max(self.threads):
            if provider.slow or (provider.compiles and not workload.headline):
                return f"measured with {max(self.threads)} threads only"
        elif provider.slow and workload.basis_bytes > 2**28:
            return f"slow here: its basis alone takes {workload.basis_bytes >> 20} MiB"
        elif provider.slow and workload.large and mode != TRAIN:
            return "slow here: forward+backward only"
        elif provider.compiles and mode == FORWARD and not workload.headline:
            return "not compiled for forward alone, to keep the run short"
        return None

    def jobs(self) -> list[Job]:
        """One process for each workload and thread count; short runs use one for all workloads of a count."""
        jobs: list[Job] = []
        for threads in self.threads:
            modes = {w.name: self.modes_of(w, threads) for w in self.workloads}
            modes = {name: chosen for name, chosen in modes.items() if chosen}
            skip = {key: why for w in self.workloads for key, why in self.skip(w, threads).items()}
            parts = [{name: chosen} for name, chosen in modes.items()] if self.level == "full" else [modes]
            for part in parts:
                jobs.append(Job(part, self.providers, threads, self.level, skip))
        return jobs

    def cells(self) -> int:
        """How many results the plan will have, absent ones included."""
        return sum(len(modes) * len(job.providers) for job in self.jobs() for modes in job.modes.values())


def run(plan: Plan, name: str, progress: Progress) -> dict[str, Any]:
    """Run every job of the plan, one process after the other, and return the result document."""
    started = time.monotonic()
    peaks: dict[str, float] = {}
    results: list[dict[str, Any]] = []
    for job in plan.jobs():
        for event in _events(job):
            progress({**event, "threads": job.threads})
            if event["event"] == "peak" and event["gflops"]:
                # every worker probes it; the best is the peak, whatever else the machine was doing
                best = peaks.get(str(job.threads), 0.0)
                peaks[str(job.threads)] = max(best, event["gflops"])
            elif event["event"] == "cell":
                results.append(event["result"])
    document = {
        "format": FORMAT,
        "name": name,
        "level": plan.level,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "meta": {
            **describe(),
            "threads": plan.threads,
            "fma_peak_gflops": peaks,
            "mlp_rule": RULE,
            "seconds": round(time.monotonic() - started, 1),
        },
        "workloads": {w.name: w.to_json() for w in plan.workloads},
        "results": results,
    }
    add_ratios(document)
    return document


def add_ratios(document: dict[str, Any]) -> None:
    """Ratios to both MLPs, the fraction of FMA peak, and memory in units of x, y and their gradients."""
    table = Table(document)
    for r in document["results"]:
        add_mlp_ratios(table, r)
        peak = document["meta"]["fma_peak_gflops"].get(str(r["threads"]))
        if peak and "useful_gflops" in r:
            r["peak_fraction"] = r["useful_gflops"] / peak
        if r.get("peak_extra_bytes") is not None:
            r["peak_extra_signals"] = r["peak_extra_bytes"] / table.workloads[r["workload"]]["signal_bytes"]


def _events(job: Job) -> Iterator[dict[str, Any]]:
    """Run one worker and yield its events; if it dies, all that is missing becomes a "failed" cell."""
    threads = str(job.threads)
    extra = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    worker = Lines("benchmarks.worker", json.dumps(asdict(job)), FOREVER, FOREVER, extra)
    seen: set[tuple[str, str, str]] = set()
    finished = False
    for line in worker:
        event = json.loads(line)
        finished = finished or event["event"] == "done"
        if event["event"] == "cell":
            r = event["result"]
            seen.add((r["workload"], r["mode"], r["provider"]))
        yield event
    assert worker.ended is not None
    if finished and worker.ended.status == 0:
        return
    failed = {"status": "failed", "reason": f"the worker {worker.ended.reason()}"}
    for workload, modes in job.modes.items():
        for mode, key in product(modes, job.providers):
            if (workload, mode, key) not in seen:
                yield {"event": "cell", "result": blank(workload, mode, key, job.threads) | failed}
