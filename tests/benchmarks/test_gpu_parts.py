"""The parts of the GPU report one by one: running a suite, building, compute-sanitizer, roofline, targets."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is not installed with the package

from benchmarks.gpu import build, calibrate, sanitize, suite, targets
from benchmarks.gpu.plan import JOBS, find_job
from benchmarks.gpu.roofline import fraction, least_bytes
from benchmarks.gpu.table import GpuTable, add_figures
from benchmarks.gpu.worker import blank
from benchmarks.workloads import FORWARD, TRAIN, Workload
from kan_kernels._core import library
from kan_kernels.backends import BACKENDS
from tools.extras import find_program

SUITE = """
    import os, signal, time, pytest
    def test_good(): pass
    def test_bad(): assert 1 == 2, "no"
    def test_crash(): os.kill(os.getpid(), signal.SIGKILL)
    def test_skip(): pytest.skip("because")
    @pytest.mark.parametrize("n", range(6))
    def test_many(n): assert n != 4
    @pytest.mark.long
    def test_slow(): raise SystemExit
"""


def test_probe_of_a_build() -> None:
    """What was built loads in a process of its own, where every backend says whether it can run."""
    found = build.probe("cpu", 60)
    assert found["load_error"] == library.LOAD_ERROR and found["devices"] == list(library.DEVICES)
    assert set(found["backends"]) == set(BACKENDS) and found["backends"]["reference"] is None


@pytest.mark.long
def test_suite_survives(tmp_path: Path) -> None:
    """Tests that fail or take the process along are counted, and all the others run, in two processes."""
    file = tmp_path / "test_these.py"
    file.write_text(textwrap.dedent(SUITE))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  long: not here\n")
    section = suite.run_tests([str(file)], "cpu", ["reference"], 2, 60)
    assert {k: section[k] for k in ("passed", "failed", "crashed", "skipped", "not_run")} == {
        "passed": 6, "failed": 2, "crashed": 1, "skipped": 1, "not_run": 0,
    }  # fmt: skip
    assert section["skips"] == {"because": 1}
    reasons = {f["id"].split("::")[1]: f["reason"] for f in section["failures"]}
    assert "SIGKILL" in reasons["test_crash"] and "no" in reasons["test_bad"] and "test_many[4]" in reasons


@pytest.mark.long
def test_suite_out_of_time(tmp_path: Path) -> None:
    """What hangs is a failure, and what did not run for want of time is counted."""
    file = tmp_path / "test_these.py"
    file.write_text("import time\ndef test_a(): time.sleep(100)\ndef test_b(): pass\ndef test_c(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    section = suite.run_tests([str(file)], "cpu", ["reference"], 1, 9)
    assert section["passed"] == 0 and section["crashed"] == 1 and section["not_run"] == 2
    assert "out of time" in section["failures"][0]["reason"]


@pytest.mark.long
def test_suite_that_cannot_be_collected(tmp_path: Path) -> None:
    """A file that does not import is a problem with its reason, never a silent pass."""
    file = tmp_path / "test_these.py"
    file.write_text("import no_such_module\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    section = suite.run_tests([str(file)], "cpu", ["reference"], 1, 30)
    assert section["passed"] == 0 and any("no_such_module" in problem for problem in section["problems"])


@pytest.mark.parametrize("status,said", [(0, "clean"), (99, "errors"), (3, "failed")])
def test_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, said: str) -> None:
    """The tool's verdict is its exit status, its summary is quoted."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: 7 errors'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    found = sanitize.sanitize(["native"], 30)
    assert found["memcheck"]["status"] == said and found["memcheck"]["summary"] == "ERROR SUMMARY: 7 errors"


def test_sanitized_run_runs() -> None:
    """The short run itself works on any device."""
    sanitize.short_run(["reference"], "cpu")


def test_build_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing tools are named; a failed build keeps its log's end; neither raises."""
    lacks = {"ninja": "none here", "pybind11>=2.13": "this is 2.9"}
    monkeypatch.setattr(build.build_needs, "lacking", lambda: lacks)
    reason = build.build_needs.sentence(lacks)
    assert "ninja (none here), pybind11>=2.13 (this is 2.9)" in reason
    assert build.build(None, 10) == {
        "nvcc": find_program("nvcc") is not None, "status": "impossible", "reason": reason,
    }  # fmt: skip
    monkeypatch.setattr(build.build_needs, "lacking", dict)
    real = build.run
    code = "print('error: no such header'); raise SystemExit(2)"
    command = [sys.executable, "-c", code]
    monkeypatch.setattr(build, "run", lambda _, limit, extra: real(command, limit, extra))
    outcome = build.build("9.0", 30)
    assert outcome["status"] == "failed" and "no such header" in outcome["reason"] and outcome["log"]


def test_roofline_counts() -> None:
    """Work and traffic of a layer counted by hand."""
    w = Workload("w", (3, 4), 10, 5, input_grad=True)
    assert w.dense_flops(FORWARD) == 2 * 10 * 3 * 4 * 9 and w.dense_flops(TRAIN) == 3 * w.dense_flops(FORWARD)
    x, weights, y = 10 * 3, 3 * 4 * 9, 10 * 4
    assert least_bytes(w, FORWARD, 4) == 4 * (x + weights + y)
    assert least_bytes(w, TRAIN, 2) == 2 * (2 * (x + weights + y) + weights + x)
    two = Workload("two", (3, 4, 4), 10, 5)
    first, second = 2 * 10 * 12 * 9, 2 * 10 * 16 * 9
    assert two.dense_flops(TRAIN) == 2 * first + 3 * second  # x of the first layer needs no gradient
    job = JOBS["net512/bf16"]
    peaks = {"matrix_flops": {"bf16": 1e15}, "copy_bytes_per_s": 1e12}
    found = fraction(job, FORWARD, 1.0, peaks)
    assert found["roofline_bound"] == "matrix"
    assert found["roofline_fraction"] == pytest.approx(2 * 2 * 8192 * 512 * 512 * 9 / 1e15)


def fabricated(times: dict[tuple[str, str, str], float], automatic: str = "native") -> dict[str, Any]:
    """A document in which (job, provider, execution) took so many milliseconds forward and backward."""
    results = []
    for (job, provider, execution), ms in times.items():
        cell = blank(find_job(job), TRAIN, provider, execution)
        gate = {"kind": "exact", "passed": True, "timed": True, "errors": {}, "message": ""}
        results.append({**cell, "status": "ok", "median_ms": ms, "samples": 9, "gate": gate})
    return {"meta": {}, "results": results, "peaks": None, "automatic": dict.fromkeys(JOBS, [automatic] * 2)}


def lines(document: dict[str, Any]) -> dict[str, bool | None]:
    add_figures(document)
    return {o.text: o.reached for o in targets.check(GpuTable(document))}


def test_targets() -> None:
    """Each side in its fastest execution; the automatic choice decides whose figure is ours."""
    job = "net512/bf16"
    times = {
        (job, "ours-native", "eager"): 3.0, (job, "ours-native", "CUDA graph"): 2.4,
        (job, "ours-triton", "eager"): 1.0, (job, "mlp-params", "eager"): 2.5,
        (job, "mlp-params", "torch.compile"): 2.0, (job, "closed-form", "torch.compile"): 3.7,
        (job, "closed-form", "eager"): 2.0, (job, "textbook", "eager"): 23.9,
        ("toy/fp32", "ours-native", "eager"): 0.2, ("toy/fp32", "ours-triton", "eager"): 0.1,
    }  # fmt: skip
    found = lines(fabricated(times))
    assert found[f"{job}: forward+backward <= 1.25x the same-parameter MLP"] is True  # 1.2
    assert found[f"{job}: < 1x the same-parameter MLP (aim)"] is False
    assert found[f"{job}: at least 1.5x faster than closed form + matmul under torch.compile"] is True  # 1.54
    assert found[f"{job}: at least 10x faster than textbook Cox-de Boor"] is False  # 9.96
    assert found["net512/tf32: forward+backward <= 1.25x the same-parameter MLP"] is None
    assert [k for k in found if "native ahead" in k] == [
        "toy/fp32: native ahead of triton (strict float32, a width <= 16)"
    ]
    times[job, "mlp-params", "torch.compile"] = 1.9
    text = f"{job}: forward+backward <= 1.25x the same-parameter MLP"
    assert lines(fabricated(times))[text] is False
    assert lines(fabricated(times, "triton"))[text] is True


def test_memory_target() -> None:
    job = "memory/fp32"
    signals = 2 * 4 * 65536 * 128
    text = f"{job}: peak extra memory < 4x the bytes of x, y and their gradients"
    for peak, reached in ((3.9, True), (4.1, False)):
        document = fabricated({(job, "ours-native", "eager"): 1.0})
        document["results"][0]["peak_extra_bytes"] = int(peak * signals)
        assert lines(document)[text] is reached


def test_failures_are_targets_missed() -> None:
    """A failed test, a sanitizer error and a gated figure of ours each make the report red."""
    counts = {"passed": 3, "failed": 0, "crashed": 0, "skipped": 1, "not_run": 0, "problems": []}
    for change in ({"failed": 1}, {"crashed": 1}, {"problems": ["no import"]}):
        document = {"tests": {"t": {**counts, **change}}, "results": []}
        assert targets.proofs(document)[0].reached is False
    assert targets.proofs({"tests": {"t": counts}, "results": []})[0].reached is True
    section = {"memcheck": {"status": "errors", "summary": "ERROR SUMMARY: 1 error"}}
    assert targets.proofs({"sanitizer": section, "results": []})[0].reached is False
    gated = {**blank(find_job("toy/fp32"), TRAIN, "ours-native", "eager"), "status": "gated"}
    assert targets.proofs({"results": [gated]})[-1].reached is False


def test_calibration() -> None:
    """Factors are medians, of inference and training apart; a choice that loses is named with its loss."""
    layer, other = "4->5 G=5 rows=10 float32", "8->5 G=5 rows=10 float32"
    timed = [
        calibrate.Timed(layer, "inference", "native", "dense", 4e-7, 2e-6),
        calibrate.Timed(layer, "inference", "native", "gather", 5e-7, 1e-6),
        calibrate.Timed(layer, "training", "native", "dense", 1e-6, 1e-6),
        calibrate.Timed(layer, "training", "native", "gather", 2e-6, 2e-6),
        calibrate.Timed(other, "inference", "native", "dense", 4e-7, 4e-6),
        calibrate.Timed(other, "inference", "triton", "dense", 9e-7, 9e-6),
    ]
    found = calibrate.compare(timed)
    dense = found["factors"]["native dense, inference"]
    assert [round(dense[name], 6) for name in ("least", "median", "most")] == [5.0, 7.5, 10.0]
    assert dense["of"] == 2 and found["factors"]["native dense, training"]["median"] == 1.0
    (wrong,) = found["wrong"]
    facts = {"layer": layer, "work": "inference", "chosen": "native dense", "best": "native gather"}
    assert wrong == {**facts, "loss": 2.0}
