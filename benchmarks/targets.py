"""What the project set out to reach, and whether a result file shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .document import Table, fastest, milliseconds, size, times
from .workloads import TRAIN

# workload, ratio to which MLP, must, aim
RATIOS = (
    ("wide-g5", "ratio_same_parameters", 0.50, 0.40),
    ("wide-g20", "ratio_same_parameters", 0.20, 0.15),
    ("protocol", "ratio_same_parameters", 0.60, 0.60),
    ("mnist", "ratio_same_parameters", 0.60, 0.50),
    ("medium", "ratio_same_parameters", 0.55, 0.45),
    ("toy", "ratio_same_widths", 0.75, 0.5),
    ("toy4", "ratio_same_widths", 0.75, 0.5),
    ("toy-deep", "ratio_same_widths", 0.75, 0.5),
)
LARGE = ("wide-g5", "wide-g20")
TEXTBOOK_FACTOR = 8.0
MEMORY_FACTOR = 4.0
PEAK_AIM = 0.55
NO_FIGURE = "no figure"

Timed = dict[str, Any] | None


@dataclass
class Outcome:
    """One target: reached is None when the file has no figure for it. An aim does not fail the run."""

    text: str
    reached: bool | None = None
    found: str = NO_FIGURE
    aim: bool = False

    def line(self) -> str:
        mark = {True: "PASS", False: "MISS" if self.aim else "FAIL", None: "----"}[self.reached]
        return f"{mark}  {self.text}: {self.found}"


def _ratio_targets(table: Table, threads: int) -> Iterator[Outcome]:
    for workload, field, must, aim in RATIOS:
        value = (table.ours(workload, TRAIN, threads) or {}).get(field)
        mlp = "same-parameter" if field == "ratio_same_parameters" else "width-matched"
        text = f"{workload}: forward+backward <= {must:g}x the {mlp} MLP"
        if value is None:
            yield Outcome(text)
        else:
            found = f"{times(value)} (aim {aim:g}x{'' if value > aim else ', reached'})"
            yield Outcome(text, value <= must, found)


def faster(text: str, factor: float, rival: Timed, ours: Timed, said: str = "") -> Outcome:
    """Whether ours takes at most a ``factor``-th of a rival's time; no figure where one of them has none."""
    if rival is None or ours is None:
        return Outcome(text, None, "no figure" + (" of ours" if rival is not None else ""))
    ratio = rival["median_ms"] / ours["median_ms"]
    return Outcome(text, ratio >= factor, f"{ratio:.1f}x{said}")


def _rival_targets(table: Table, threads: int) -> Iterator[Outcome]:
    for workload in table.workloads:
        ours = table.ours(workload, TRAIN, threads)
        textbook = table.timed(workload, TRAIN, threads, "textbook")
        if textbook is not None:
            text = f"{workload}: at least {TEXTBOOK_FACTOR:g}x faster than textbook Cox-de Boor"
            yield faster(text, TEXTBOOK_FACTOR, textbook, ours)
        cells = [table.timed(workload, TRAIN, threads, key) for key in table.providers()]
        peers = [cell for cell in cells if cell is not None and cell["kind"] == "peer"]
        best = fastest(peers)
        if best is not None:
            found = f"the fastest is {best['label']} with {milliseconds(best['median_ms'])} ms, "
            found += "no figure of ours" if ours is None else f"ours {milliseconds(ours['median_ms'])} ms"
            reached = None if ours is None else ours["median_ms"] < best["median_ms"]
            yield Outcome(f"{workload}: faster than every installed peer ({len(peers)})", reached, found)


def memory_target(name: str, cell: Timed) -> Outcome:
    """Peak extra memory in units of what goes in and comes out."""
    text = f"{name}: peak extra memory < {MEMORY_FACTOR:g}x the bytes of x, y and their gradients"
    if cell is None or "peak_extra_signals" not in cell:
        return Outcome(text)
    signals = cell["peak_extra_signals"]
    return Outcome(text, signals < MEMORY_FACTOR, f"{times(signals)} ({size(cell['peak_extra_bytes'])})")


def _own_targets(table: Table, threads: int) -> Iterator[Outcome]:
    yield memory_target("memory", table.ours("memory", TRAIN, threads))
    for workload in LARGE:
        value = (table.ours(workload, TRAIN, threads) or {}).get("peak_fraction")
        text = f"{workload}: {PEAK_AIM:.0%} of the measured FMA peak (aim)"
        reached, found = (None, NO_FIGURE) if value is None else (value >= PEAK_AIM, f"{value:.0%}")
        yield Outcome(text, reached, found, aim=True)
    counts = [t for t in table.threads if table.ours("wide-g5", TRAIN, t) is not None]
    reached = {1, max(table.threads)} <= set(counts) and len(counts) > 1 if counts else None
    yield Outcome("figures at 1 and all threads", reached, ", ".join(map(str, counts)) or NO_FIGURE)


def check(table: Table) -> list[Outcome]:
    """Every target of the project, judged at the largest thread count of the file."""
    threads = table.threads[0]
    return [*_ratio_targets(table, threads), *_rival_targets(table, threads), *_own_targets(table, threads)]
