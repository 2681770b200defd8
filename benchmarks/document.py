"""The result document: load, save, look up. ``orchestrate.run`` makes it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .workloads import FORWARD, MODES, SECOND, STEP, TRAIN

RESULTS = Path(__file__).absolute().parent / "results"
COMMITTED = RESULTS / "cpu.json"
FORMAT = 1
MODE_NAMES = {
    FORWARD: "forward",
    TRAIN: "forward + backward",
    STEP: "training step",
    SECOND: "second derivative",
}


def save(document: dict[str, Any], path: Path) -> None:
    """Write as JSON, one line a result, so that a diff of two runs can be read.

    The results are rounded in place: a report written after it says what one read from the file says.
    """
    for result in document["results"]:
        result.update(_rounded(result))
    head = {key: value for key, value in document.items() if key != "results"}
    text = json.dumps(head, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(r) for r in document["results"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text},\n "results": [\n  {lines}\n ]\n}}\n')


def _rounded(value: Any) -> Any:
    """Six significant digits are more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return value


def load(path: Path, command: str | None = None) -> dict[str, Any]:
    """Read a result file; FileNotFoundError and ValueError say what to run (``command``)."""
    if not path.exists():
        command = command or f"python -m benchmarks --output {path.stem}"
        raise FileNotFoundError(f"no result file {path}: run {command} first")
    document: dict[str, Any] = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {document.get('format')}, this harness reads {FORMAT}: measure again"
        )
    return document


class Table:
    """Look-ups in a result document: its cells by the fields in ``key``."""

    key: tuple[str, ...] = ("workload", "mode", "threads", "provider")

    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.meta = document, document["meta"]
        self.results: list[dict[str, Any]] = document["results"]
        self._cells = {tuple(r[name] for name in self.key): r for r in self.results}

    @property
    def workloads(self) -> dict[str, dict[str, Any]]:
        workloads: dict[str, dict[str, Any]] = self.document["workloads"]
        return workloads

    @property
    def threads(self) -> list[int]:
        """Thread counts, most first."""
        return sorted({r["threads"] for r in self.results}, reverse=True)

    def modes(self, workload: str, threads: int) -> list[str]:
        """Return the modes measured of a workload at a thread count."""
        present = {r["mode"] for r in self.results if (r["workload"], r["threads"]) == (workload, threads)}
        return [mode for mode in MODES if mode in present]

    def providers(self) -> dict[str, str]:
        """Return keys and labels, in the order of the registry."""
        return {r["provider"]: r["label"] for r in self.results}

    def cell(self, *place: Any) -> dict[str, Any] | None:
        """Return the result at a place, the values of ``key`` in order."""
        return self._cells.get(place)

    def timed(self, *place: Any) -> dict[str, Any] | None:
        """Return the cell, if it has a time."""
        cell = self.cell(*place)
        return cell if cell is not None and "median_ms" in cell else None

    def ours(self, workload: str, mode: str, threads: int) -> dict[str, Any] | None:
        """Return the cell of our fastest backend that was timed, or None."""
        ours = {r["provider"] for r in self.results if r["kind"] == "ours"}
        return fastest(self.timed(workload, mode, threads, key) for key in ours)

    def machine_line(self) -> str:
        """One line of what the figures were measured on."""
        m = self.meta
        peaks = ", ".join(f"{g:.0f} GFLOP/s with {t}" for t, g in m["fma_peak_gflops"].items())
        return (
            f"{m['cpu']}, {m['threads_available']} threads available; torch {m['torch']} ({m['isa_torch']}), "
            f"kan_kernels ISA {m['isa_kan_kernels'] or 'not loaded'}, Python {m['python']}; float32, matmul "
            f"precision {m['float32_matmul_precision']} (TF32 {'allowed' if m['tf32_allowed'] else 'off'})"
            + (f"; measured FMA peak {peaks} thread(s)" if peaks else "")
            + f"; {m['date']}"
        )


def add_mlp_ratios(table: Table, r: dict[str, Any]) -> None:
    """Enter a result's times over those of both MLPs at the same place."""
    for provider, ratio in (("mlp-params", "ratio_same_parameters"), ("mlp-widths", "ratio_same_widths")):
        other = table.timed(*(provider if name == "provider" else r[name] for name in table.key))
        if other is not None and "median_ms" in r:
            r[ratio] = r["median_ms"] / other["median_ms"]


def fastest(cells: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the cell with the least time, or None where there is none."""
    return min(filter(None, cells), key=lambda c: float(c["median_ms"]), default=None)


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def times(value: float) -> str:
    """A ratio: 0.41x, 12x."""
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def size(value: float | None) -> str:
    """Bytes in MiB."""
    if value is None:
        return "-"
    mib = value / 2**20
    return f"{mib:.2f} MiB" if mib < 10 else f"{mib:.0f} MiB"
