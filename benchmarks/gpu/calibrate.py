"""How far the cost model is from the clock: every path of every fused backend, in cycles an edge.

The parent starts this module as a child, which times the forward passes; what it prints is compared with what
`kan_kernels._engine.cost_model` and csrc/cuda/cost.cu count. A factor is measured over counted, the median of
the layers: the number to write into `_FACTORS` and `kDenseFactor`, `kGatherFactor`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import measure as timing
from ..children import run
from .device import Device, query

PATH_VARIABLE = "KAN_KERNELS_CUDA_PATH"
CASES = [
    # in, out, grid size, rows, dtype, TF32: on both sides of where a path should change, and well inside
    (512, 512, 5, 8192, torch.bfloat16, False),
    (512, 512, 5, 8192, torch.float32, True),
    (512, 512, 5, 8192, torch.float32, False),
    (256, 256, 28, 4096, torch.float32, False),
    (256, 256, 60, 4096, torch.float32, False),
    (256, 256, 85, 4096, torch.bfloat16, False),
    (256, 256, 128, 4096, torch.float32, False),
    (256, 256, 128, 4096, torch.bfloat16, False),
    (256, 16, 5, 8192, torch.float32, False),
    (8, 256, 5, 8192, torch.float32, False),
    (256, 64, 20, 256, torch.float32, False),
    (64, 64, 5, 65536, torch.float64, False),
]
SMOKE_CASES = [(16, 32, 5, 64, torch.float32, False), (3, 4, 5, 64, torch.float64, False)]
_BUDGET = timing.Budget(seconds=0.1, sample=0.01, most=20, least=5, single=2.0)


@dataclass
class Timed:
    """One path on one layer. counted: None where the model has no figure for what was timed."""

    layer: str
    backend: str
    path: str
    counted: float | None
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.backend} {self.path}"


def candidates(case: Any, major: int, tf32: bool, device: str) -> Iterator[tuple[str, str, float | None]]:
    """(backend, path, counted cycles) of everything that can run here."""
    from kan_kernels._core import library
    from kan_kernels._engine import cost_model
    from kan_kernels.backends import BACKENDS

    if BACKENDS["native"].can_run(case) is None and "cuda" in library.DEVICES:
        for path, cycles in cost_model.native_paths(case, major).items():
            yield "native", path, cycles
    if device == "cuda" and BACKENDS["triton"].can_run(case) is None:
        path = "gather" if "gathered" in BACKENDS["triton"].why(case) else "dense"
        yield "triton", path, cost_model.triton_paths(case, major, tf32).get(path)


def measure(device: Device, smoke: bool) -> tuple[list[Timed], list[str]]:
    """Time every candidate on every layer, interleaved within a layer; and the clocks seen meanwhile."""
    from kan_kernels import KANLinear
    from kan_kernels._core.problem import Problem

    major = torch.cuda.get_device_capability()[0] if device.is_gpu else 8
    found, clocks = [], []
    for fan_in, fan_out, grid_size, rows, dtype, tf32 in SMOKE_CASES if smoke else CASES:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        os.environ[PATH_VARIABLE] = "auto"  # the cost model hears of it too
        case = Problem(device.torch.type, dtype, dtype, fan_in, fan_out, grid_size + 3, 3)
        x = torch.rand(rows, fan_in, device=device.torch, dtype=dtype) * 2 - 1
        precision = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        title = f"{fan_in}->{fan_out} G={grid_size} rows={rows} {precision}"
        cells, counted = [], {}
        for backend, path, cycles in list(candidates(case, major, tf32, device.torch.type)):
            layer = KANLinear(
                fan_in, fan_out, grid_size, backend=backend, device=device.torch, dtype=dtype
            ).requires_grad_(False)

            def call(layer=layer, x=x, path=path, backend=backend):
                os.environ[PATH_VARIABLE] = path if backend == "native" else "auto"
                return layer(x)

            counted[f"{backend} {path}"] = cycles
            cells.append(timing.Cell(f"{backend} {path}", call))
        timing.measure(cells, timing.SMOKE if smoke else _BUDGET, clock=device.clock)
        said = query("clocks.sm") if device.is_gpu else None
        clocks += [said["clocks.sm"]] if said else []
        for cell in cells:
            if cell.error is not None or not cell.samples:
                raise RuntimeError(f"{title}, {cell.key}: {cell.error or 'no sample was taken'}")
            backend, path = cell.key.split(" ")
            seconds = 1e-3 * cell.summary()["median_ms"]
            found.append(Timed(title, backend, path, counted[cell.key], seconds))
    return found, clocks


def calibrate(device: str, smoke: bool, limit: float) -> dict[str, Any]:
    """Run the child and work out cycles; raises RuntimeError with its reason where it did not end well."""
    ended = run([sys.executable, "-m", "benchmarks.gpu.calibrate", device, "smoke" if smoke else ""], limit)
    lines = [line for line in ended.output.splitlines() if line.startswith("CALIBRATION")]
    if ended.status != 0 or ended.timed_out or not lines:
        raise RuntimeError(ended.reason())
    answer = json.loads(lines[-1].removeprefix("CALIBRATION"))
    return compare([Timed(**entry) for entry in answer["timed"]], answer["hertz"])


def compare(timed: list[Timed], hertz: float) -> dict[str, Any]:
    """Cycles of each path, its factor, and where the model would have taken a slower path than it could.

    hertz: multiprocessors times their clock, by which seconds become cycles of one multiprocessor.
    """
    rows, ratios, layers = [], {}, {}
    for entry in timed:
        fan_in, fan_out, batch = _edges(entry.layer)
        cycles = entry.seconds * hertz / (fan_in * fan_out * batch)
        rows.append({**asdict(entry), "cycles": cycles})
        layers.setdefault(entry.layer, []).append(entry)
        if entry.counted is not None:
            ratios.setdefault(entry.name, []).append(cycles / entry.counted)
    wrong = []
    for layer, entries in layers.items():
        known = [entry for entry in entries if entry.counted is not None]
        if not known:
            continue
        chosen = min(known, key=lambda e: e.counted or 0.0)
        best = min(entries, key=lambda e: e.seconds)
        if chosen is not best:
            loss = chosen.seconds / best.seconds
            wrong.append({"layer": layer, "chosen": chosen.name, "best": best.name, "loss": loss})
    factors = {}
    for name, values in ratios.items():
        least, middle, most = min(values), statistics.median(values), max(values)
        factors[name] = {"median": middle, "least": least, "most": most, "of": len(values)}
    return {"rows": rows, "factors": factors, "wrong": wrong, "layers": len(layers)}


def _edges(title: str) -> tuple[int, int, int]:
    """in, out and rows of a layer's title."""
    widths, _, rows, _ = title.split(" ")
    fan_in, fan_out = widths.split("->")
    return int(fan_in), int(fan_out), int(rows.removeprefix("rows="))


def _hertz(device: Device, clocks: list[str]) -> float:
    """Multiprocessors times the median clock that was seen; the card's highest where none was."""
    if not device.is_gpu:
        return 1e9
    properties = torch.cuda.get_device_properties(device.torch)
    seen = [float(clock.split()[0]) for clock in clocks] or [properties.clock_rate / 1e3]
    return properties.multi_processor_count * statistics.median(seen) * 1e6


def main(arguments: list[str]) -> None:
    """What the child does: device, and "smoke" or nothing."""
    device = Device(arguments[0])
    timed, clocks = measure(device, "smoke" in arguments[1:])
    answer = {"timed": [asdict(entry) for entry in timed], "hertz": _hertz(device, clocks)}
    print("CALIBRATION" + json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
