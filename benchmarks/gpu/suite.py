"""Runs test files on the device, in a few processes side by side, and counts what came of every test."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..children import run

GPU_TESTS = ["tests/backends/test_gpu.py"]
SHARED_TESTS = [
    "tests/backends/test_golden.py",
    "tests/engine/test_autograd.py",
    "tests/backends/test_kernels.py",
    "tests/backends/test_bases.py",
    "tests/core/test_torch_library.py",
]
STRIDE = 7
RESTARTS = 8  # of one shard, after tests that took the process or its device along
SHOWN = 40


def run_tests(
    files: list[str], device: str, backends: list[str], shards: int, limit: float, select: str | None = None
) -> dict[str, Any]:
    """Run ``files`` (no long ones) for the backends; counts, failures with their reason, what did not run.

    ``select``: a pytest -k expression. A test that kills its process, or hangs until the limit, is a failure
    of its own, and the tests after it run in another process.
    """
    end = time.time() + limit
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.pytest_events", "-p", "no:cacheprovider"]
    command += ["-m", "not long", *(["-k", select] if select else []), *files]
    extra = {
        "KAN_TEST_DEVICE": device,
        "KAN_TEST_BACKENDS": ",".join(backends),
        # cuBLAS is deterministic with it, which the memory poison of the tests asks for
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(shards) as pool:
        places = [(n, shards) for n in range(shards)]
        jobs = [pool.submit(_shard, command, extra, place, end, Path(folder)) for place in places]
        parts = [job.result() for job in jobs]
    ended = [event for part in parts for event in part["ended"]]
    outcomes = Counter(event["outcome"] for event in ended)
    failed = [e for e in ended if e["outcome"] in ("failed", "crashed")]
    skipped = Counter(e["reason"].removeprefix("Skipped: ") for e in ended if e["outcome"] == "skipped")
    not_run = sum(part["not_run"] for part in parts)
    problems = sorted({problem for part in parts for problem in part["problems"]})
    return {
        "files": files,
        "backends": backends,
        "device": device,
        "processes": shards,
        **{name: outcomes[name] for name in ("passed", "failed", "crashed", "skipped")},
        "not_run": not_run,
        "failures": [{"id": e["id"], "reason": e["reason"]} for e in failed[:SHOWN]],
        "skips": dict(skipped),
        "problems": problems,
    }


def _shard(
    command: list[str], extra: dict[str, str], shard: tuple[int, int], end: float, folder: Path
) -> dict[str, Any]:
    """Run one process after the other until every test of the shard ran or the time is over."""
    results: dict[str, dict[str, Any]] = {}
    wanted: list[str] = []
    problems: list[str] = []
    for attempt in range(RESTARTS + 1):
        if time.time() > end - 2:
            break
        events = folder / f"{shard[0]}-{attempt}.jsonl"
        settings = {
            "events": str(events),
            "end": end - 3,  # what is running then may finish
            "shard": shard[0],
            "shards": shard[1],
            # a test's place in the shards is counted before those that ran are left out
            "done": list(results),
            "stride": STRIDE,
        }
        ended = run(command, end - time.time(), {**extra, "KAN_GPU_TESTS": json.dumps(settings)})
        running, lost = _read(events, results, wanted, problems)
        if ended.timed_out and running is None:
            break
        if running is not None:  # the process went down with this test
            results[running] = {"id": running, "outcome": "crashed", "reason": ended.reason()}
        elif not lost:
            if ended.status not in (0, 1) and not results:
                problems.append(f"pytest {ended.reason()}")
            break
    not_run = len(set(wanted) - set(results))
    return {"ended": list(results.values()), "not_run": not_run, "problems": problems}


def _read(
    events: Path, results: dict[str, dict[str, Any]], wanted: list[str], problems: list[str]
) -> tuple[str | None, bool]:
    """Take in one process's events; the test it was at when it ended, and whether it lost its device."""
    running, lost = None, False
    for line in events.read_text().splitlines() if events.exists() else []:
        event = json.loads(line)
        if event["event"] == "collected":
            wanted += event["ids"]
        elif event["event"] == "uncollected":
            problems.append(f"{event['what']}: {event['reason']}")
        elif event["event"] == "start":
            running = event["id"]
        elif event["event"] == "end":
            running = None
            worse = results.get(event["id"], {}).get("outcome") in ("failed", "crashed")
            if not worse:  # a failed call stays failed whatever its tear-down says
                results[event["id"]] = event
        elif event["event"] == "dead":
            lost = True
    return running, lost
