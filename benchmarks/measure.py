"""Interleaved timing: every provider takes one turn a round, in an order that rotates."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    seconds: time for one provider in one mode; sample: least length of one sample, short calls are repeated
    to fill it; most/least: bounds on the number of samples; single: a call longer than this is measured once.
    """

    seconds: float
    sample: float = 0.004
    most: int = 60
    least: int = 3
    single: float = 4.0


FULL = Budget(seconds=0.6)
QUICK = Budget(seconds=0.25, sample=0.003, most=25, least=2, single=0.8)
SMOKE = Budget(seconds=0.02, sample=0.0005, most=3, least=2, single=5.0)


# Seconds that `inner` calls take. A device that works behind the caller's back has a clock of its own.
Clock = Callable[[Callable[[], object], int], float]


def wall_clock(call: Callable[[], object], inner: int) -> float:
    """Seconds on the wall for `inner` calls: right for whatever has finished when it returns."""
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return time.perf_counter() - start


@dataclass
class Cell:
    """One provider in one mode. ``samples`` are seconds per call."""

    key: str
    call: Callable[[], object]
    inner: int = 1
    samples: list[float] = field(default_factory=list)
    spent: float = 0.0
    error: str | None = None

    def summary(self) -> dict[str, float | int]:
        """Median and 10th, 25th, 75th, 90th percentile in milliseconds, number of samples, calls in each."""
        low, first, median, third, high = quantiles(self.samples, 10, 25, 50, 75, 90)
        percentiles = {"p10_ms": low, "p25_ms": first, "p75_ms": third, "p90_ms": high}
        milliseconds = {name: 1e3 * value for name, value in {"median_ms": median, **percentiles}.items()}
        return {**milliseconds, "samples": len(self.samples), "calls_per_sample": self.inner}


def quantiles(samples: list[float], *percent: float) -> list[float]:
    """Percentiles of a non-empty list, by linear interpolation."""
    return [float(value) for value in numpy.percentile(samples, percent)]


def warm_up(cell: Cell, budget: Budget, clock: Clock = wall_clock) -> bool:
    """Warm one cell and choose its repetitions. False when one call is so long that it is the measurement."""
    first = clock(cell.call, 1)
    if first > budget.single:
        cell.samples.append(first)
        return False
    if first > 10 * budget.sample:
        return True
    estimate = max(1e-7, min(first, clock(cell.call, 1)))
    if estimate < budget.sample:
        # short calls: warm up for one sample's worth, until caches and clocks have settled
        repeats = max(2, int(budget.sample / estimate))
        estimate = max(1e-7, clock(cell.call, repeats) / repeats)
        cell.inner = max(1, round(budget.sample / estimate))
    return True


def measure(cells: list[Cell], budget: Budget, clock: Clock = wall_clock) -> None:
    """Fill ``samples`` of every cell, round-robin. A cell that raises keeps the message and drops out."""
    active = []
    for cell in cells:
        try:
            if warm_up(cell, budget, clock):
                active.append(cell)
        except Exception as error:  # a rival may fail in any way; the table must say how
            cell.error = describe(error)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        turn = 0
        while active:
            start = turn % len(active)
            for cell in active[start:] + active[:start]:
                try:
                    elapsed = clock(cell.call, cell.inner)
                except Exception as error:  # what a device did wrong may show only now
                    cell.error = describe(error)
                    continue
                cell.samples.append(elapsed / cell.inner)
                cell.spent += elapsed
            active = [c for c in active if c.error is None and _unfinished(c, budget)]
            turn += 1
    finally:
        if collecting:
            gc.enable()


def _unfinished(cell: Cell, budget: Budget) -> bool:
    taken = len(cell.samples)
    return taken < budget.least or (cell.spent < budget.seconds and taken < budget.most)


def describe(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
