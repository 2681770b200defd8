"""What the GPU backends set out to reach, and whether a report shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..document import milliseconds, times
from ..targets import Outcome, faster, memory_target
from ..workloads import TRAIN
from .plan import COMPILES, EXECUTIONS, GRAPH, find_job
from .table import GpuTable

MLP_JOBS = ("net512/bf16", "net512/tf32")
MLP_MUST, MLP_AIM = 1.25, 1.0
COMPILED_FACTOR, COMPILED_WIDTH = 1.5, 512
TEXTBOOK_FACTOR = 10.0
MEMORY_JOB = "memory/fp32"
# the native kernels are meant to be ahead of Triton's on these
NARROW, FINE_GRID, SMALL_BATCH = 16, 128, 256


def check(table: GpuTable) -> list[Outcome]:
    """Every target, judged on the figures that a user gets, each side in its fastest execution."""
    return [
        *_mlp(table),
        *_rivals(table),
        memory_target(MEMORY_JOB, table.timed(MEMORY_JOB, TRAIN, table.user_gets(MEMORY_JOB), EXECUTIONS[0])),
        *_native_ahead(table),
        *proofs(table.document),
    ]


def _mlp(table: GpuTable) -> Iterator[Outcome]:
    for job in MLP_JOBS:
        text = f"{job}: forward+backward <= {MLP_MUST:g}x the same-parameter MLP"
        key = table.user_gets(job)
        ours, mlp = table.best(job, TRAIN, key), table.best(job, TRAIN, "mlp-params")
        if ours is None or mlp is None:
            yield Outcome(text)
            continue
        ratio = ours["median_ms"] / mlp["median_ms"]
        cells = [table.timed(job, TRAIN, key, execution) or {} for execution in EXECUTIONS]
        same = "ratio_same_parameters"
        alike = ", ".join(f"{c['execution']} {times(c[same])}" for c in cells if same in c)
        said = f"({ours['execution']} against {mlp['execution']}; like for like: {alike})"
        yield Outcome(text, ratio <= MLP_MUST, f"{times(ratio)} {said}")
        text = f"{job}: < {MLP_AIM:g}x the same-parameter MLP (aim)"
        yield Outcome(text, ratio < MLP_AIM, times(ratio), aim=True)


def _rivals(table: GpuTable) -> Iterator[Outcome]:
    for job in table.jobs:
        ours = table.best(job, TRAIN, table.user_gets(job))
        for provider, ways, factor, name in (
            ("closed-form", COMPILES, COMPILED_FACTOR, "closed form + matmul under torch.compile"),
            ("textbook", EXECUTIONS, TEXTBOOK_FACTOR, "textbook Cox-de Boor"),
        ):
            if provider == "closed-form" and max(find_job(job).workload.widths) > COMPILED_WIDTH:
                continue
            rival = table.best(job, TRAIN, provider, ways)
            said = f" ({ours['execution']} against {rival['execution']})" if ours and rival else ""
            yield faster(f"{job}: at least {factor:g}x faster than {name}", factor, rival, ours, said)


def _native_ahead(table: GpuTable) -> Iterator[Outcome]:
    """Where both were timed: strict float32, fine grids, narrow layers and small batches."""
    for name in table.jobs:
        job = find_job(name)
        w = job.workload
        conditions = {
            "strict float32": job.precision.name == "fp32",
            f"G >= {FINE_GRID}": w.grid_size >= FINE_GRID,
            f"a width <= {NARROW}": min(w.widths) <= NARROW,
            f"B <= {SMALL_BATCH}": w.batch <= SMALL_BATCH,
        }
        reasons = ", ".join(reason for reason, holds in conditions.items() if holds)
        native, triton = (table.best(name, TRAIN, f"ours-{b}") for b in ("native", "triton"))
        if reasons and native is not None and triton is not None:
            a, b = native["median_ms"], triton["median_ms"]
            found = f"{milliseconds(a)} ms against {milliseconds(b)} ms"
            yield Outcome(f"{name}: native ahead of triton ({reasons})", a < b, found)


def proofs(document: dict[str, Any]) -> list[Outcome]:
    """Correctness, without which no figure counts: tests, sanitizer, gates."""
    outcomes = []
    for title, section in document.get("tests", {}).items():
        bad = section["failed"] + section["crashed"] + len(section["problems"])
        ran = section["passed"] + bad
        found = f"{section['passed']} passed, {bad} failed, {section['skipped']} skipped"
        found += f", {section['not_run']} not run" if section["not_run"] else ""
        outcomes.append(Outcome(f"{title}: every test passes", (bad == 0) if ran else None, found))
    for tool, section in document.get("sanitizer", {}).items():
        reached = {"clean": True, "errors": False, "failed": False}.get(section["status"])
        outcomes.append(Outcome(f"compute-sanitizer {tool}: no error", reached, section["summary"]))
    ours = [
        r for r in document["results"] if r["kind"] == "ours" and r["status"] in ("ok", "gated", "failed")
    ]
    wrong = [r for r in ours if r["status"] != "ok"]
    captured = sum(r["execution"] == GRAPH and r["status"] == "ok" for r in ours)
    found = f"{len(ours) - len(wrong)} of {len(ours)}, {captured} of them as CUDA graphs"
    outcomes.append(Outcome("every figure of ours passes its gate", (not wrong) if ours else None, found))
    return outcomes
