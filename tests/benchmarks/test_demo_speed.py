"""The demo's table of small networks: a row each, ratios of what was timed, nothing timed that is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks import demo_speed, gate, worker
from benchmarks.workloads import Workload


def test_every_network_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """KAN against both MLPs, in the order of the names."""
    seen: list[Workload] = []

    def timed(self: demo_speed.Speeds, workload: Workload) -> None:
        seen.append(workload)
        for provider, ms in zip((demo_speed.OURS, *demo_speed.RIVALS), (3.0, 1.5, 6.0), strict=True):
            self.send("cell", result={"workload": workload.name, "provider": provider, "median_ms": ms})

    monkeypatch.setattr(demo_speed.Speeds, "run_workload", timed)
    rows = demo_speed.speed_table().splitlines()[4:]
    assert [w.name for w in seen] == list(demo_speed.NAMES) and len(rows) == len(seen)
    for row, workload in zip(rows, seen, strict=True):
        assert workload.shape in row and re.search(r"\| 3 \| 2.00x \| 0.50x \|$", row)


def test_networks_are_timed() -> None:
    """All three run, forward and backward, ours with the numbers of float64."""
    speeds = demo_speed.Speeds("smoke", ("toy",))
    assert all(speeds.ms("toy", key) > 0 for key in (demo_speed.OURS, *demo_speed.RIVALS))
    assert speeds.cells["toy", demo_speed.OURS]["gate"]["passed"]


def test_nothing_wrong_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that misses the gate ends the table with the reason."""

    def missed(*_: Any) -> gate.Verdict:
        return gate.Verdict("exact", False, False, {}, "a test")

    monkeypatch.setattr(worker, "judge", missed)
    with pytest.raises(RuntimeError, match=r"toy, kan_kernels.*withheld: a test"):
        demo_speed.Speeds("smoke", ("toy",))
