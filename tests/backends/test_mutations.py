"""Every small fault of tests/mutations in a kernel makes the short tests of its kind fail."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import cuda_host
from mutations import check_cpu
from mutations.run import ROOT, caught, load, seen

KINDS = ("cpu", "cuda", "triton")
WHY_NOT = {
    "cpu": None if check_cpu.compiler() else "there is no C++ compiler: CXX is not set, c++ not on PATH",
    "cuda": cuda_host.why_not(),
    "triton": None if importlib.util.find_spec("triton") else "Triton is not installed",
}


def each_fault() -> list[Any]:
    """Return all faults: `make faults` has those that name no tier, one of each list an earlier one.

    A fault on the CPU compiles all of its kernels.
    """
    tiers = {"test": (), "test-all": pytest.mark.long, None: pytest.mark.faults}
    faults = []
    for kind in KINDS:
        for fault in load(kind):
            faults.append(
                pytest.param(kind, fault, marks=tiers[fault.get("tier")], id=f"{kind}-{fault['name']}")
            )
    return faults


@pytest.mark.parametrize("kind", KINDS)
def test_lists_fit_the_sources(kind: str) -> None:
    """Every fault has a name of its own, changes something, and its text is there exactly once."""
    faults = load(kind)
    assert len(faults) >= 10
    assert len({fault["name"] for fault in faults}) == len(faults)
    assert sum("tier" in fault for fault in faults) == 1
    for fault in faults:
        assert (ROOT / fault["file"]).read_text().count(fault["from"]) == 1, fault["name"]
        assert fault["from"] != fault["to"], fault["name"]


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_pass_as_they_are(kind: str) -> None:
    """The short tests have nothing against the kernels without a fault."""
    if WHY_NOT[kind] is not None:
        pytest.skip(str(WHY_NOT[kind]))
    assert caught(kind, ROOT) is None


@pytest.mark.parametrize("kind,fault", each_fault())
def test_fault_is_seen(kind: str, fault: dict[str, Any]) -> None:
    """The short tests fail with the fault."""
    if WHY_NOT[kind] is not None:
        pytest.skip(str(WHY_NOT[kind]))
    if fault.get("needs", "baseline") not in check_cpu.isas():
        pytest.skip(f"this machine has no {fault['needs']}, whose kernels have this fault")
    assert seen(kind, fault) is not None
