"""A pytest plugin (-p benchmarks.gpu.pytest_events): results as they come, a deadline, shards, no repeats.

Steered by one environment variable, KAN_GPU_TESTS, a JSON object: events (the file to append to), end
(seconds since the epoch), shard, shards, done (ids of tests that ran before), stride (to sample evenly).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SETTINGS: dict[str, Any] = json.loads(os.environ["KAN_GPU_TESTS"])
EVENTS = Path(SETTINGS["events"])


def send(event: str, **data: Any) -> None:
    with EVENTS.open("a") as file:
        file.write(json.dumps({"event": event, **data}) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """This shard's tests that did not run yet, in an order that spreads a cut evenly over the table."""
    done, stride = set(SETTINGS["done"]), SETTINGS["stride"]
    order = [items[n] for start in range(stride) for n in range(start, len(items), stride)]
    mine = [item for n, item in enumerate(order) if n % SETTINGS["shards"] == SETTINGS["shard"]]
    items[:] = [item for item in mine if item.nodeid not in done]


def pytest_collection_finish(session: pytest.Session) -> None:
    send("collected", ids=[item.nodeid for item in session.items])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        send("uncollected", what=report.nodeid, reason=_last_line(str(report.longrepr)))


def pytest_runtest_protocol(item: pytest.Item) -> None:
    if time.time() > SETTINGS["end"]:
        pytest.exit("out of time", returncode=0)
    send("start", id=item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One event a test: its call, or the set-up or tear-down that failed or skipped it."""
    if report.when != "call" and report.passed:
        return
    reason = None
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    elif report.failed:
        reason = _last_line(report.longreprtext)
    send("end", id=report.nodeid, outcome=report.outcome, reason=reason, seconds=round(report.duration, 3))
    if report.failed and not _alive():
        send("dead", id=report.nodeid, reason=reason)
        pytest.exit("the device is lost to this process", returncode=3)


def _alive() -> bool:
    """Whether the GPU still answers this process; a fault there fails every later test too."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _last_line(text: str) -> str:
    """What pytest marks with E, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (marked or lines or ["no message"])[0 if marked else -1][:300]
