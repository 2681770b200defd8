"""How far the cost model is from the clock: every path of every fused backend, as inference and as training.

The parent starts this module as a child, which times a forward pass and a training step of each; what it
prints is compared with what `kan_kernels._engine.cost_model` counts. A factor is measured over counted, the
median of the layers: the number to write into its `_FACTORS`. csrc/cuda/cost.cu chooses among the library's
own paths.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from .. import measure as timing
from ..children import run
from .device import Device

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
    """One path on one layer, as "inference" or "training"; counted and measured in seconds."""

    layer: str
    work: str
    backend: str
    path: str
    counted: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.backend} {self.path}"


def candidates(case: Any, model: Any, tf32: bool) -> Iterator[tuple[str, str, float]]:
    """(backend, path, counted seconds) of everything that can run here; model: the device as modelled."""
    from kan_kernels._core import library
    from kan_kernels._engine import cost_model
    from kan_kernels.backends import BACKENDS

    if BACKENDS["native"].can_run(case) is None and "cuda" in library.DEVICES:
        for path, cost in cost_model.native_costs(case, model, tf32).items():
            yield "native", path, 1e-6 * cost.microseconds
    if case.device == "cuda" and BACKENDS["triton"].can_run(case) is None:
        cost = cost_model.triton_cost(case, model, tf32)
        yield "triton", cost.path, 1e-6 * cost.microseconds


def modelled(device: Device) -> Any:
    """The device as the cost model sees it, at its highest clock; without a GPU an A100."""
    from kan_kernels._engine import cost_model

    if not device.is_gpu:
        return cost_model.device_of(None, (8, 0))
    model = cost_model.device_of(device.torch.index, torch.cuda.get_device_capability(device.torch))
    return replace(model, clock=torch.cuda.get_device_properties(device.torch).clock_rate / 1e6)


def measure(device: Device, smoke: bool) -> list[Timed]:
    """Time every candidate on every layer, interleaved within a layer."""
    from kan_kernels._core.problem import Problem

    model, found = modelled(device), []
    for fan_in, fan_out, grid_size, rows, dtype, tf32 in SMOKE_CASES if smoke else CASES:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        precision = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        title = f"{fan_in}->{fan_out} G={grid_size} rows={rows} {precision}"
        for work in ("inference", "training"):
            os.environ[PATH_VARIABLE] = "auto"  # the cost model hears of it too
            facts = {"rows": rows, "training": work == "training"}
            case = Problem(device.torch.type, dtype, dtype, fan_in, fan_out, grid_size + 3, 3, **facts)
            cells, counted = [], {}
            for backend, path, seconds in list(candidates(case, model, tf32)):
                call = _call(device, backend, path, (fan_in, fan_out, grid_size), rows, dtype, work)
                counted[f"{backend} {path}"] = seconds
                cells.append(timing.Cell(f"{backend} {path}", call))
            timing.measure(cells, timing.SMOKE if smoke else _BUDGET, clock=device.clock)
            for cell in cells:
                if cell.error is not None or not cell.samples:
                    raise RuntimeError(f"{title}, {cell.key}: {cell.error or 'no sample was taken'}")
                backend, path = cell.key.split(" ")
                seconds = 1e-3 * cell.summary()["median_ms"]
                found.append(Timed(title, work, backend, path, counted[cell.key], seconds))
    return found


def _call(device: Device, backend: str, path: str, sizes: tuple[int, int, int], rows: int, dtype: torch.dtype,
          work: str) -> Callable[[], Any]:  # fmt: skip
    """A forward pass, or a forward and a backward one, of a layer on a path."""
    from kan_kernels import KANLinear

    layer = KANLinear(*sizes, backend=backend, device=device.torch, dtype=dtype)
    training = work == "training"
    layer.requires_grad_(training)
    x = (torch.rand(rows, sizes[0], device=device.torch, dtype=dtype) * 2 - 1).requires_grad_(training)
    g = torch.rand(rows, sizes[1], device=device.torch, dtype=dtype)
    wanted = [x, *layer.parameters()]

    def call() -> Any:
        os.environ[PATH_VARIABLE] = path if backend == "native" else "auto"
        y = layer(x)
        return torch.autograd.grad(y, wanted, g) if training else y

    return call


def calibrate(device: str, smoke: bool, limit: float) -> dict[str, Any]:
    """Run the child and compare; raises RuntimeError with its reason where it did not end well."""
    ended = run([sys.executable, "-m", "benchmarks.gpu.calibrate", device, "smoke" if smoke else ""], limit)
    lines = [line for line in ended.output.splitlines() if line.startswith("CALIBRATION")]
    if ended.status != 0 or ended.timed_out or not lines:
        raise RuntimeError(ended.reason())
    answer = json.loads(lines[-1].removeprefix("CALIBRATION"))
    return compare([Timed(**entry) for entry in answer["timed"]])


def compare(timed: list[Timed]) -> dict[str, Any]:
    """The factor of each path, and where the model would have taken a slower path than it could."""
    rows, ratios, layers = [], {}, {}
    for entry in timed:
        rows.append(asdict(entry))
        layers.setdefault((entry.layer, entry.work), []).append(entry)
        ratios.setdefault(f"{entry.name}, {entry.work}", []).append(entry.seconds / entry.counted)
    wrong = []
    for (layer, work), entries in layers.items():
        chosen = min(entries, key=lambda e: e.counted)
        best = min(entries, key=lambda e: e.seconds)
        if chosen is not best:
            loss = chosen.seconds / best.seconds
            facts = {"layer": layer, "work": work, "chosen": chosen.name, "best": best.name, "loss": loss}
            wrong.append(facts)
    factors = {}
    for name, values in ratios.items():
        least, middle, most = min(values), statistics.median(values), max(values)
        factors[name] = {"median": middle, "least": least, "most": most, "of": len(values)}
    return {"rows": rows, "factors": factors, "wrong": wrong, "layers": len({t.layer for t in timed})}


def main(arguments: list[str]) -> None:
    """What the child does: device, and "smoke" or nothing."""
    timed = measure(Device(arguments[0]), "smoke" in arguments[1:])
    print("CALIBRATION" + json.dumps({"timed": [asdict(entry) for entry in timed]}))


if __name__ == "__main__":
    main(sys.argv[1:])
