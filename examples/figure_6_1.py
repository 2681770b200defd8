"""Figure 6.1: "KANs are usually 10x slower than MLPs, given the same number of parameters". Are they?

    python -m examples.figure_6_1 [--fast]

A training step (zero_grad, forward, mean squared error, backward, fused AdamW), measured by the benchmark
harness: its workloads and MLPs, its comparison of every KAN with float64 before it is timed, its interleaved
turns; float32, with one thread and with all. "Textbook" is the same KAN as a recursion in plain torch, with
all threads, where that is not too slow to measure: the kind of code that the paper's figure is from. The MLP
of the same widths is no match in parameters, and the hardest to beat.
"""

from typing import Any

from benchmarks.document import Table, milliseconds, times
from benchmarks.machine import all_threads
from benchmarks.orchestrate import Plan
from benchmarks.orchestrate import run as measure
from benchmarks.workloads import SMOKE_WORKLOADS, STEP, WORKLOADS
from kan_kernels.plotting.style import ACCENT, FORMULA, INK, new_figure, style

from .common import main, save_figure

PARAMETERS, WIDTHS = "ratio_same_parameters", "ratio_same_widths"
PAPER = 10.0
SERIES = {  # label: (provider, ratio, marker, colour)
    "kan_kernels / MLP of the same parameters": ("ours", PARAMETERS, "o", ACCENT),
    "kan_kernels / MLP of the same widths": ("ours", WIDTHS, "D", FORMULA),
    "textbook / MLP of the same parameters": ("textbook", PARAMETERS, "x", INK),
}


def times_of(table: Table, workload: str, threads: int, provider: str) -> dict[str, Any] | None:
    """The cell of a provider that passed the gate and was timed."""
    cell = table.cell(workload, STEP, threads, provider)
    return cell if cell is not None and cell["status"] == "ok" else None


def row(table: Table, workload: str, threads: int) -> dict[str, str]:
    cells = [times_of(table, workload, threads, key) for key in ("ours", "mlp-params", "mlp-widths")]
    if None in cells:
        reasons = [f"{c['label']}: {c['reason']}" for c in table.document["results"] if "reason" in c]
        raise RuntimeError(f"{workload}, {threads} thread(s): no time; {'; '.join(reasons)}")
    spread = "{} [{}..{}]"
    ours, same, narrow = (
        spread.format(*(milliseconds(cell[f"{name}_ms"]) for name in ("median", "p25", "p75")))
        for cell in cells
    )
    textbook = times_of(table, workload, threads, "textbook")
    ratio = "" if textbook is None else f"; textbook {times(textbook[PARAMETERS])}"
    return {
        "what": f"{table.workloads[workload]['shape']}, {threads} thread(s)",
        "ours": f"{times(cells[0][PARAMETERS])}, {times(cells[0][WIDTHS])} of the MLP with the same widths"
        f"{ratio} (ms: KAN {ours}, MLPs {same} and {narrow})",
        "theirs": "-",
    }


def picture(table: Table) -> None:
    """Ratios of all workloads at all thread counts; left of 1 is faster than the MLP."""
    places = [(workload, threads) for workload in table.workloads for threads in table.threads][::-1]
    with style():
        figure = new_figure(7.0, 1.5 + 0.25 * len(places), layout="constrained")
        axes = figure.subplots()
        for label, (provider, ratio, marker, colour) in SERIES.items():
            cells = [times_of(table, *place, provider) for place in places]
            points = [(cell[ratio], y) for y, cell in enumerate(cells) if cell is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
        for ratio, text in ((1.0, "as fast"), (PAPER, "the paper's 10x")):
            axes.axvline(ratio, color=INK, linewidth=0.8, linestyle="--", zorder=0)
            axes.text(ratio, 1.01, text, transform=axes.get_xaxis_transform(), ha="center")
        axes.set_yticks(
            range(len(places)), [f"{table.workloads[w]['shape']}, {n} thread(s)" for w, n in places]
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.set_xlabel("time of a training step, KAN / MLP")
        figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, "figure_6_1")


def run(fast: bool) -> dict:
    catalogue = SMOKE_WORKLOADS if fast else WORKLOADS
    workloads = [w for w in catalogue.values() if STEP in w.modes]
    threads = [1] if fast else sorted({1, all_threads()}, reverse=True)
    providers = ["ours", "mlp-params", "mlp-widths", "textbook"]
    plan = Plan(workloads, providers, [STEP], threads, "smoke" if fast else "full")
    table = Table(measure(plan, "figure_6_1", lambda event: None))
    rows = [row(table, w.name, n) for w in workloads for n in table.threads]
    ratios = [c[PARAMETERS] for c in table.document["results"] if c["provider"] == "ours"]
    if not fast:
        picture(table)
    return {
        "threads": " and ".join(map(str, sorted(threads))),
        "summary": [
            {
                "what": "time of a training step, KAN / MLP with the same parameters, over all rows",
                "ours": f"{times(min(ratios))} to {times(max(ratios))}",
                "theirs": "usually 10x",
            },
            *rows,
            {"what": "machine", "ours": table.machine_line(), "theirs": "-"},
        ],
        "meta": table.meta,
        "results": table.document["results"],
    }


if __name__ == "__main__":
    main("figure_6_1", "Figure 6.1: the time of a training step", run)
