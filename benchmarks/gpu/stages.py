"""The stages of ``make gpu`` in their order of importance, each with its share of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..machine import all_threads
from .build import build, probe
from .calibrate import calibrate
from .measurements import run_jobs
from .plan import JOBS, SMOKE_JOBS
from .sanitize import sanitize
from .suite import GPU_TESTS, SHARED_TESTS, run_tests
from .worker import Task

MOST_PROCESSES = 8  # of the shared tests: most of their time goes into compiling kernels on the CPU


@dataclass
class Run:
    """One run of the report: what every stage reads, and the document it adds to.

    device: "cuda", or "cpu" for the tests of the report itself. stall: seconds without a word after which a
    measuring worker counts as hung.
    """

    device: str
    smoke: bool
    document: dict[str, Any]
    plugins: list[str] = field(default_factory=list)
    stall: float = 90.0

    @property
    def backends(self) -> list[str]:
        """The backends that run on this device; the reference always does."""
        found = self.document.get("probe", {}).get("backends", {})
        return [name for name, reason in found.items() if reason is None] or ["reference"]


@dataclass
class Outcome:
    """What came of a stage: ok, failed, skipped or cut, a note, what was cut for time and what went wrong."""

    status: str
    note: str = ""
    cut: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """``most``: seconds it may take. ``reserve``: seconds that earlier stages must leave it."""

    name: str
    run: Callable[[Run, float], Outcome]
    most: float
    reserve: float


def build_stage(run: Run, limit: float) -> Outcome:
    """Build for this card, then look what loads and which backends run."""
    if run.smoke:
        built: dict[str, Any] = {"status": "skipped", "reason": "a smoke run tests what is there"}
    else:
        # the probe needs some seconds of its own
        built = build(run.document["meta"].get("capability"), limit - 15)
    run.document["build"] = built
    run.document["probe"] = found = probe(run.device, 30)
    notes = [built["reason"]] if built["reason"] else []
    notes += [f"library not loaded: {found['load_error']}"] if found["load_error"] else []
    status = {"built": "ok", "skipped": "skipped"}.get(built["status"], "failed")
    return Outcome(status, f"{built['status']}; {'; '.join(notes)}" if notes else built["status"])


def _tests(run: Run, title: str, limit: float, files: list[str], processes: int) -> Outcome:
    select = "adaptive" if run.smoke and files is not GPU_TESTS else None
    section = run_tests(files, run.device, run.backends, processes, limit, select)
    run.document.setdefault("tests", {})[title] = section
    bad = section["failed"] + section["crashed"]
    cut = [f"{section['not_run']} tests did not run"] if section["not_run"] else []
    note = f"{section['passed']} passed, {bad} failed, {section['skipped']} skipped"
    status = "failed" if bad or section["problems"] else "cut" if cut else "ok"
    return Outcome(status, note, cut, section["problems"])


def gpu_tests_stage(run: Run, limit: float) -> Outcome:
    """What only a GPU shows: streams, graphs, synchronisation, memory, big tensors."""
    return _tests(run, "what only a GPU shows", limit, GPU_TESTS, 1)


def shared_tests_stage(run: Run, limit: float) -> Outcome:
    """The case table, the golden numbers and autograd, as on the CPU, with every tensor on the device."""
    processes = max(1, min(MOST_PROCESSES, all_threads() // 2))
    files = ["tests/backends/test_golden.py"] if run.smoke else SHARED_TESTS
    return _tests(run, "the shared suite on this device", limit, files, processes)


def measure_stage(run: Run, limit: float, headline: bool) -> Outcome:
    """The measured peaks and the jobs that the targets are set on, or all other jobs."""
    jobs = SMOKE_JOBS if run.smoke else JOBS
    names = [name for name, job in jobs.items() if job.headline is headline]
    peaks = headline or not run.document.get("peaks")
    task = Task(names, run.device, run.smoke, peaks=peaks, plugins=run.plugins)
    measured = run_jobs(task, limit, run.stall)
    run.document["results"] += measured.results
    run.document["automatic"].update(measured.automatic)
    run.document["gates"].update(measured.gates)
    run.document["peaks"] = measured.peaks or run.document.get("peaks")
    timed = sum("median_ms" in r for r in measured.results)
    bad = sum(r["status"] in ("failed", "gated") for r in measured.results)
    status = "failed" if measured.faults and not timed else "cut" if measured.cut else "ok"
    return Outcome(status, f"{timed} figures, {bad} withheld or failed", measured.cut, measured.faults)


def cost_model_stage(run: Run, limit: float) -> Outcome:
    """What the cost model counts against what the clock says."""
    if not set(run.backends) - {"reference"}:
        return Outcome("skipped", "no fused backend runs here")
    run.document["cost_model"] = found = calibrate(run.device, run.smoke, limit)
    if not found["rows"]:
        return Outcome("skipped", "no path of a GPU backend can run here")
    factors = [f"{name} {factor['median']:.2f}" for name, factor in found["factors"].items()]
    wrong = f"{len(found['wrong'])} of {found['layers']} choices wrong"
    return Outcome("ok", f"measured over counted: {', '.join(factors)}; {wrong}")


def sanitizer_stage(run: Run, limit: float) -> Outcome:
    """compute-sanitizer on a short run."""
    if run.device != "cuda":
        run.document["sanitizer"] = {}
        return Outcome("skipped", "compute-sanitizer needs a GPU")
    fused = [name for name in run.backends if name != "reference"]
    if not fused:
        return Outcome("skipped", "no fused backend runs here")
    run.document["sanitizer"] = found = sanitize(fused, limit)
    states = {tool: section["status"] for tool, section in found.items()}
    bad = any(state in ("errors", "failed") for state in states.values())
    cut = [f"{tool}: {found[tool]['summary']}" for tool, state in states.items() if state == "cut"]
    note = ", ".join(f"{tool} {state}" for tool, state in states.items())
    absent = all(state == "absent" for state in states.values())
    return Outcome("failed" if bad else "skipped" if absent else "cut" if cut else "ok", note, cut)


STAGES = [
    Stage("build", build_stage, 120, 30),
    Stage("gpu tests", gpu_tests_stage, 60, 30),
    Stage("headline benchmarks", partial(measure_stage, headline=True), 130, 80),
    Stage("shared tests", shared_tests_stage, 110, 50),
    Stage("other benchmarks", partial(measure_stage, headline=False), 150, 50),
    Stage("cost model", cost_model_stage, 30, 10),
    Stage("sanitizer", sanitizer_stage, 45, 15),
]
