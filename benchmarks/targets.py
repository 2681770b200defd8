"""What the project set out to reach, and whether a result file shows it."""

from __future__ import annotations

from dataclasses import dataclass

from .document import Table, milliseconds, size, times
from .workloads import TRAIN

# workload, ratio to which MLP, must, aim
RATIOS = (
    ("wide-g5", "ratio_same_parameters", 0.50, 0.40),
    ("wide-g20", "ratio_same_parameters", 0.20, 0.15),
    ("protocol", "ratio_same_parameters", 0.60, 0.60),
    ("mnist", "ratio_same_parameters", 0.60, 0.60),
    ("toy", "ratio_same_widths", 1.5, 1.0),
)
LARGE = ("wide-g5", "wide-g20")
TEXTBOOK_FACTOR = 8.0
MEMORY_FACTOR = 4.0
PEAK_AIM = 0.55


@dataclass
class Outcome:
    """One target: reached is None when the file has no figure for it. An aim does not fail the run."""

    text: str
    reached: bool | None
    found: str
    aim: bool = False

    def line(self) -> str:
        mark = {True: "PASS", False: "MISS" if self.aim else "FAIL", None: "----"}[self.reached]
        return f"{mark}  {self.text}: {self.found}"


def _ratio_targets(table: Table, threads: int) -> list[Outcome]:
    outcomes = []
    for workload, field, must, aim in RATIOS:
        ours = table.ours(workload, TRAIN, threads)
        value = None if ours is None else ours.get(field)
        mlp = "same-parameter" if field == "ratio_same_parameters" else "width-matched"
        text = f"{workload}: forward+backward <= {must:g}x the {mlp} MLP"
        found = (
            "no figure"
            if value is None
            else f"{times(value)} (aim {aim:g}x{'' if value > aim else ', reached'})"
        )
        outcomes.append(Outcome(text, None if value is None else value <= must, found))
    return outcomes


def _rival_targets(table: Table, threads: int) -> list[Outcome]:
    outcomes = []
    for workload in table.workloads:
        ours = table.ours(workload, TRAIN, threads)
        rivals = {
            r["label"]: r["median_ms"]
            for r in table.document["results"]
            if r["kind"] == "peer"
            and (r["workload"], r["mode"], r["threads"]) == (workload, TRAIN, threads)
            and "median_ms" in r
        }
        textbook = table.cell(workload, TRAIN, threads, "textbook")
        if textbook is not None and "median_ms" in textbook:
            factor = None if ours is None else textbook["median_ms"] / ours["median_ms"]
            outcomes.append(
                Outcome(
                    f"{workload}: at least {TEXTBOOK_FACTOR:g}x faster than textbook Cox-de Boor",
                    None if factor is None else factor >= TEXTBOOK_FACTOR,
                    "no figure of ours" if factor is None else f"{factor:.1f}x",
                )
            )
        if rivals:
            best = min(rivals, key=lambda label: rivals[label])
            found = f"the fastest is {best} with {milliseconds(rivals[best])} ms, "
            found += "no figure of ours" if ours is None else f"ours {milliseconds(ours['median_ms'])} ms"
            outcomes.append(
                Outcome(
                    f"{workload}: faster than every installed peer ({len(rivals)})",
                    None if ours is None else ours["median_ms"] < rivals[best],
                    found,
                )
            )
    return outcomes


def _own_targets(table: Table, threads: int) -> list[Outcome]:
    ours = table.ours("memory", TRAIN, threads)
    peak = None if ours is None else ours.get("peak_extra_bytes")
    text = f"memory: peak extra memory < {MEMORY_FACTOR:g}x the bytes of x, y and their gradients"
    if ours is None or peak is None:
        outcomes = [Outcome(text, None, "no figure")]
    else:
        signals = ours["peak_extra_signals"]
        outcomes = [Outcome(text, signals < MEMORY_FACTOR, f"{times(signals)} ({size(peak)})")]
    for workload in LARGE:
        cell = table.ours(workload, TRAIN, threads)
        value = None if cell is None else cell.get("peak_fraction")
        outcomes.append(
            Outcome(
                f"{workload}: {PEAK_AIM:.0%} of the measured FMA peak (aim)",
                None if value is None else value >= PEAK_AIM,
                "no figure" if value is None else f"{value:.0%}",
                aim=True,
            )
        )
    counts = [t for t in table.threads if table.ours("wide-g5", TRAIN, t) is not None]
    outcomes.append(
        Outcome(
            "figures at 1 and all threads",
            None if not counts else {1, max(table.threads)} <= set(counts) and len(counts) > 1,
            ", ".join(map(str, counts)) or "no figure",
        )
    )
    return outcomes


def check(table: Table) -> list[Outcome]:
    """Every target of the project, judged at the largest thread count of the file."""
    threads = table.threads[0]
    return [*_ratio_targets(table, threads), *_rival_targets(table, threads), *_own_targets(table, threads)]
