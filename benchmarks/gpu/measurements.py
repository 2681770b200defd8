"""Runs the measuring workers: what one of them cannot survive costs its own cell and no other."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from ..children import Lines
from .plan import find_job
from .worker import Task, blank

GRACE = 10.0  # seconds, at most, that a worker gets to finish what it is at
START = 6.0  # seconds below which no other worker is worth starting


@dataclass
class Measured:
    """What the workers reported. automatic, gates: by job. cut: for time. faults: what went wrong."""

    results: list[dict[str, Any]] = field(default_factory=list)
    peaks: dict[str, Any] | None = None
    automatic: dict[str, list[str]] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run_jobs(task: Task, limit: float, stall: float) -> Measured:
    """Run the task's jobs within ``limit`` seconds, starting another worker after each one that dies.

    ``stall``: seconds without a word after which a worker counts as hung.
    """
    measured = Measured()
    end = time.monotonic() + limit
    while True:
        left = end - time.monotonic()
        busy, finished, dead = "", False, False
        task.end = time.time() + left - min(GRACE, 0.25 * left)
        child = Lines("benchmarks.gpu.worker", task.to_json(), left, stall)
        for line in child:
            event = json.loads(line)
            if event["event"] == "busy":
                busy = event["cell"]
            elif event["event"] == "peaks":
                measured.peaks, task.peaks = event["peaks"], False
            elif event["event"] == "job":
                measured.automatic[event["job"]] = event["automatic"]
                measured.gates[event["job"]] = event["gate"]
            elif event["event"] == "cell":
                result = event["result"]
                measured.results.append(result)
                task.done = sorted({*task.done, f"{result['job']}|{result['mode']}"})
            elif event["event"] == "cut":
                measured.cut.append(event["what"])
            elif event["event"] == "dead":
                dead, busy = True, event["cell"]
                _blame(task, busy, f"broke the device for its process: {event['reason']}", measured)
            elif event["event"] == "done":
                finished = True
        assert child.ended is not None
        if finished:
            return measured
        if not dead and time.monotonic() >= end - 0.5:
            measured.faults.append(f"stopped at the stage's end while at {busy or 'its start'}")
            break
        if not dead and not _blame(task, busy, child.ended.reason(), measured):
            break
        if end - time.monotonic() < START:
            break
    measured.cut += [
        f"{job}, {mode}" for job in task.jobs for mode in ("forward+backward", "forward")
        if f"{job}|{mode}" not in task.done and f"{job}, {mode}" not in measured.cut
    ]  # fmt: skip
    measured.results += _unreported(task)
    return measured


def _blame(task: Task, busy: str, reason: str, measured: Measured) -> bool:
    """Leave out what the worker was at when it died, with the reason. False: there is nothing to."""
    where = busy.replace("|", ", ")
    measured.faults.append(f"{where or 'before the first job'}: {reason}")
    parts = busy.split("|")
    if busy == "peaks":
        task.peaks = False
    elif len(parts) == 4:
        if busy in task.skip:
            return False  # it was left out already, so this is not the culprit
        task.skip[busy] = reason
    elif len(parts) == 3 and parts[2] == "timing":
        task.done.append(f"{parts[0]}|{parts[1]}")  # who did it is not known: the mode has no figures
    elif len(parts) == 2:
        task.jobs = [job for job in task.jobs if job != parts[0]]
    else:
        return False
    return True


def _unreported(task: Task) -> list[dict[str, Any]]:
    """A "failed" result for each culprit whose mode was never reported, so that the table names it."""
    lost = []
    for cell, reason in task.skip.items():
        job, mode, provider, execution = cell.split("|")
        if f"{job}|{mode}" not in task.done:
            result = blank(find_job(job), mode, provider, execution)
            lost.append({**result, "status": "failed", "reason": reason})
    return lost
