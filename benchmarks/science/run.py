"""Runs the contests, writes the result file and the table in the docs."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import measure as timing
from ..document import FORMAT, RESULTS, load, save
from ..machine import describe
from ..memory import peak_extra_bytes
from ..providers import find_provider
from ..readme import refresh
from . import table, twin
from .contests import SAME, Contest, clock, contests

COMMAND = "python -m benchmarks science"
COMMITTED = RESULTS / "science.json"
FULL = timing.Budget(seconds=1.0, most=30, least=3, single=60.0)
QUICK = timing.Budget(seconds=0.01, sample=0.001, most=2, least=1, single=60.0)


def main(path: Path, quick: bool, check: bool, keys: list[str] | None = None) -> int:
    """``python -m benchmarks science``: the exit status. With ``check`` nothing is measured.

    With ``keys`` only those contests are run, and their rows replaced in the result that is there.
    """
    if not check:
        missing = find_provider(twin.PYKAN).unavailable()
        if missing is not None:
            raise ValueError(f"science compares with pykan, which cannot run here: {missing}")
        makers = contests(quick)
        for key in keys or []:
            if key not in makers:
                raise ValueError(f"unknown contest {key!r}; known: {', '.join(makers)}")
        document = run({key: make for key, make in makers.items() if keys is None or key in keys}, quick)
        if keys is not None and path.exists():
            document = merged(load(path), document, list(makers))
        save(document, path)
        print(table.markdown(document))
        print(f"written: {path}")
    document = load(path, COMMAND)
    failed = [row for row in document["results"] if row["status"] != "ok"]
    for row in failed:
        print(f"not the same: {row['what']}: {row['reason']}", file=sys.stderr)
    if path == COMMITTED:
        stale = refresh(table.PAGE, table.markdown(document), check, COMMAND, "science")
        return int(stale or bool(failed))
    return int(bool(failed))


@contextmanager
def _alone() -> Iterator[None]:
    """One thread, float64 as pykan's default, and a folder of its own for what pykan writes."""
    threads, dtype, folder = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        torch.set_num_threads(1)
        torch.set_default_dtype(twin.DTYPE)
        os.chdir(scratch)
        try:
            yield
        finally:
            os.chdir(folder)
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)


def run(makers: dict[str, Callable[[], Contest]], quick: bool) -> dict[str, Any]:
    """The result document."""
    meta = {**describe(), "threads": 1, "quick": quick}
    rows = []
    with _alone():
        for key, make in makers.items():
            print(f"science: {key} ...", file=sys.stderr, flush=True)
            before = _load()
            row = {"key": key, **_row(make(), QUICK if quick else FULL)}
            rows.append({**row, "date": meta["date"], "load": [before, _load()]})
    return {"format": FORMAT, "name": "science", "meta": meta, "results": rows}


def merged(old: dict[str, Any], new: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The old document with the new rows; ValueError unless both are of the same machine and versions."""
    for name in ("cpu", "torch", "python", "isa_kan_kernels", "providers"):
        if old["meta"][name] != new["meta"][name]:
            raise ValueError(
                f"the result there was measured with {name} {old['meta'][name]!r}, this one with "
                f"{new['meta'][name]!r}: run all contests"
            )
    rows = {row["key"]: row for row in (*old["results"], *new["results"])}
    return {**new, "results": [rows[key] for key in keys if key in rows]}


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _row(contest: Contest, budget: timing.Budget) -> dict[str, Any]:
    row: dict[str, Any] = {"what": contest.what, "wanted": contest.wanted, "start": contest.start}
    if contest.start > SAME:
        reason = f"the networks differ by {contest.start:.2g} before anything was done"
        return {**row, "status": "failed", "reason": reason}
    ours, theirs = timing.Cell("ours", contest.ours), timing.Cell("theirs", contest.theirs)
    jobs = contest.ours, contest.theirs

    def peaks() -> list[int | None]:
        return [peak_extra_bytes(job, job.prepare)[0] for job in jobs]

    if not contest.once:
        for job in jobs:
            job.prepare()
            job()
        if _judge(contest, row) is not None:
            return row
        timing.measure([ours, theirs], budget, clock=clock)
        row["peak_extra_bytes"] = peaks()
    else:  # ours on both sides of the long call
        timing.measure([ours], budget, clock=clock)
        row["peak_extra_bytes"] = peaks()
        theirs.samples.append(contest.theirs.seconds)
        timing.measure([ours], budget, clock=clock)
        _judge(contest, row)
    for cell in (ours, theirs):
        if cell.error is not None:
            return {**row, "status": "failed", "reason": f"{cell.key}: {cell.error}"}
        row[cell.key] = cell.summary()
    row["times_faster"] = statistics.median(theirs.samples) / statistics.median(ours.samples)
    return row


def _judge(contest: Contest, row: dict[str, Any]) -> str | None:
    found, reason = contest.check(contest.ours, contest.theirs)
    row.update(found, status="ok" if reason is None else "failed", reason=reason)
    return reason
