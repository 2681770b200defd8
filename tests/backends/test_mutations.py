"""Faults in the kernels are seen: the lists of tests/mutations for the CPU's and Triton's kernels."""

from __future__ import annotations

import importlib.util

import pytest

from mutations import check_cpu
from mutations.run import ROOT, load, run

NAMES = ("cpu", "triton")
WHY_NOT = {
    "cpu": None if check_cpu.compiler() else "there is no C++ compiler: CXX is not set, c++ not on PATH",
    "triton": None if importlib.util.find_spec("triton") else "Triton is not installed",
}
pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", (*NAMES, "cuda"))
def test_lists_fit_the_sources(name: str) -> None:
    """Every fault has a name of its own, changes something, and its text is there exactly once."""
    faults = load(name)
    assert len(faults) >= 10
    assert len({fault["name"] for fault in faults}) == len(faults)
    for fault in faults:
        assert (ROOT / fault["file"]).read_text().count(fault["from"]) == 1, fault["name"]
        assert fault["from"] != fault["to"], fault["name"]


@pytest.mark.parametrize("name", NAMES)
def test_faults_are_seen(name: str) -> None:
    """The fast subset of each list; `python tests/mutations/run.py NAME` runs all of it."""
    if WHY_NOT[name] is not None:
        pytest.skip(WHY_NOT[name])
    faults = [fault for fault in load(name) if fault.get("fast")]
    assert len(faults) >= 2
    assert run(name, faults) == []
