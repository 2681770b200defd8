"""The demo's table of small networks: a row each, ratios of what was timed."""

from __future__ import annotations

import re

import pytest

from benchmarks import demo_speed
from benchmarks.measure import SMOKE
from benchmarks.workloads import WORKLOADS, Workload


def test_every_network_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """KAN against both MLPs, in the order in which they were timed."""
    seen: list[Workload] = []

    def timed(workload: Workload, budget: object) -> list[float]:
        seen.append(workload)
        return [3.0, 1.5, 6.0]

    monkeypatch.setattr(demo_speed, "time_networks", timed)
    rows = demo_speed.speed_table().splitlines()[4:]
    assert [w.name for w in seen] == list(demo_speed.NAMES) and len(rows) == len(seen)
    for row, workload in zip(rows, seen, strict=True):
        assert workload.shape in row and re.search(r"\| 3 \| 2.00x \| 0.50x \|$", row)


def test_networks_are_timed() -> None:
    """All three run, forward and backward."""
    kan, *mlps = demo_speed.time_networks(WORKLOADS["toy"], SMOKE)
    assert kan > 0 and len(mlps) == 2 and all(ms > 0 for ms in mlps)
