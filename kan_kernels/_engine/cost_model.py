"""What a call of a layer costs on a GPU, pass by pass, for the choice between the GPU backends.

Counted from machine code and published rates, never fitted to a measurement: good for telling which backend
has less to do, not how long it takes. An inference is the forward pass; training adds the gradients of the
inputs and of the weights. A pass takes

    dense    padded rows of the contraction / matrix rate * the pass' ratio
    gather   a fetched coefficient for each of the k+1 functions, and the base's; a sum is read and written

and is shared out among the processors in whole tiles. A ratio is the busiest pipe of the pass' kernels over
the time of its products at the dense peak, as `python -m tools.static_cost step` counts it. A call takes what
its passes take, or what its launches take on the host, whichever is longer. A basis of full support takes all
its functions on either path, and makes every one of them in every pass.

The compiled kernels answer for their own forward paths, csrc/cuda/cost.cu. `make gpu` compares with a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .._core import library
from .._core.bases import BASE_CODES, BASES
from .._core.checks import HALF_DTYPES
from .._core.problem import Problem

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
PASSES = ("forward", "input", "weight")  # of a training step; the last two are gradients


@dataclass(frozen=True)
class Device:
    """A GPU: compute capability as 10 major + minor, its processors, and their clock in GHz."""

    arch: int
    processors: int
    clock: float


# By compute capability: dense multiply-adds of a cycle and processor in 16 bits (TF32 has half), and the
# processors and clock of the largest card, for where none is at hand.
_CARDS = {
    80: (1024.0, 108, 1.41),
    86: (512.0, 84, 1.70),
    89: (512.0, 128, 2.52),
    90: (2048.0, 132, 1.83),
    100: (4096.0, 148, 1.85),
    120: (512.0, 170, 2.41),
}
_LANES = 128.0  # that start an instruction in a cycle
# Ratios of the passes, the base's products among them, by backend, architecture and operands, at [512,512]:
# tests/budgets/step.json. Of an architecture that is not here, the cycles of the nearest older one, and its
# own matrix rate.
RATIOS: dict[str, dict[int, dict[str, tuple[float, float, float]]]] = {
    "triton": {
        80: {"half": (1.86, 1.73, 1.13), "tf32": (1.15, 1.51, 1.08), "strict": (1.06, 1.33, 1.28)},
        90: {"half": (1.06, 1.4, 1.16), "tf32": (1.0, 1.24, 1.08), "strict": (1.02, 1.06, 1.37)},
        100: {"half": (1.99, 1.81, 1.88), "tf32": (1.13, 1.74, 1.93), "strict": (2.19, 1.47, 2.35)},
    },
    "native": {
        80: {"half": (1.0, 1.0, 1.39), "tf32": (1.5, 1.0, 1.43), "strict": (1.69, 1.0, 1.0)},
        89: {"half": (1.0, 1.0, 1.0), "tf32": (1.0, 1.0, 1.0), "strict": (1.0, 1.0, 1.0)},
        90: {"half": (1.95, 2.0, 2.86), "tf32": (3.03, 2.03, 2.97), "strict": (3.41, 1.77, 2.0)},
        120: {"half": (1.0, 1.0, 1.0), "tf32": (1.0, 1.0, 1.0), "strict": (1.0, 1.0, 1.0)},
    },
}
# Instructions, read from the machine code: one evaluation with fixed polynomials, or by comparing with the
# knots; one evaluation of the gather path; the base beside functions of full support.
_UNIFORM, _EXACT, _GATHER, _BASE = 38.0, 170.0, 220.0, 60.0
_POINTERS = 10.0 / 128.0  # cycles for a coefficient gathered through pointers and L1
# Assumed: microseconds that a launch takes on the host, by backend, and on the device between two kernels.
_HOST, _GAP = {"native": 6.0, "triton": 20.0}, 2.0
# Measured over counted, of inference and of training, by backend and path, as `make gpu` prints it: none yet.
_FACTORS: dict[str, tuple[float, float]] = {}
FULL_SUPPORT_PATHS = ("matrix units", "multiply-adds")  # of the compiled kernels
ROWS = 4096  # what a choice that knows no batch size assumes


@dataclass(frozen=True)
class Cost:
    """A path, "dense", "gather" or one of FULL_SUPPORT_PATHS, microseconds of each pass, and launches."""

    path: str
    passes: dict[str, float]
    launches: int = 1
    host: float = 0.0  # of a launch
    rows: int = ROWS

    @property
    def microseconds(self) -> float:
        """Return the time of the call: on the device, or on the host where launching takes longer."""
        return max(sum(self.passes.values()) + _GAP * self.launches, self.host * self.launches)

    def __str__(self) -> str:
        names = {"forward": "forward", "input": "input's gradient", "weight": "weights' gradient"}
        said = ", ".join(f"{names[name]} {time:.3g}" for name, time in self.passes.items())
        what = "training step" if "weight" in self.passes else "inference"
        launched = f"{self.launches} launch{'' if self.launches == 1 else 'es'}"
        return f"{self.microseconds:.3g} us a {what} of {self.rows} rows ({self.path}: {said}; {launched})"


def device_of(index: int | None, capability: tuple[int, int]) -> Device:
    """Return a card as the model sees it: where there is none, the largest one of its kind."""
    arch = 10 * capability[0] + capability[1]
    _, processors, clock = _CARDS[_nearest(_CARDS, arch)]
    if torch.cuda.device_count():
        processors = torch.cuda.get_device_properties(index).multi_processor_count
    return Device(arch, processors, clock)


def gpu_costs(problem: Problem, device: Device, tf32: bool) -> dict[str, Cost]:
    """Return the better path of each backend, {"native": ..., "triton": ...}, for a problem.

    Args:
        problem: with its rows, and whether it is trained.
        device: of x.
        tf32: whether float32 products may run in TF32.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    native = native_costs(problem, device, tf32)
    taken = native_taken(problem, device)
    return {"native": native[taken], "triton": triton_cost(problem, device, tf32)}


def triton_cost(problem: Problem, device: Device, tf32: bool) -> Cost:
    """Return what the Triton kernels cost, on the path that they take."""
    from ..backends.triton import tiling

    p, rows = problem, problem.rows or ROWS
    half, local = p.dtype in HALF_DTYPES, BASES[p.basis].local
    number = "ieee" if half or p.dtype == torch.float64 else "tf32" if tf32 else "tf32x3"
    fits = local or not (p.dtype == torch.float16 and p.derivative)
    case = tiling.Case(
        p.device, p.dtype, rows, p.in_features, p.out_features, p.functions, p.order,
        device.arch, BASES[p.basis].code, fits,
    )  # fmt: skip
    gathers, one_pass = tiling.gathers(case, number), p.training and tiling.one_pass(case)
    uniform = (half or tf32) and 1 <= p.order <= 3 and p.derivative < p.order
    table, base = int(uniform and local and not gathers), int(p.base is not None)
    _, parts = tiling.parts(case, torch.device("meta"), number)
    cycles = (
        {name: _gathered(p, name) for name in PASSES}
        if gathers
        else _dense("triton", p, device, tf32, uniform)
    )
    launches = table + 1
    if p.training:
        sums = (1 + base) * (parts > 1) + base * (not tiling.sums_rows(case))
        launches += table + 1 + sums + (0 if one_pass else table + 1)
    path = "gather" if gathers else "dense"
    tiles = {
        "forward": _tiles(rows, 128) * _tiles(p.out_features, 128),
        "input": _tiles(rows, 128) * _tiles(p.in_features, 16),
        "weight": _tiles(p.in_features * p.functions, 128) * _tiles(p.out_features, 128) * parts,
    }
    return _cost("triton", path, cycles, problem, device, launches, tiles)


def native_costs(problem: Problem, device: Device, tf32: bool) -> dict[str, Cost]:
    """Return what each path of the compiled kernels costs that a problem can take.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    found = {}
    p, rows = problem, problem.rows or ROWS
    for path, forward in native_paths(problem, device.arch // 10, rows).items():
        cycles = {"forward": forward, "input": forward, "weight": forward}
        if path == "dense":
            cycles = _dense("native", p, device, tf32, True)
        elif path == "gather":
            cycles["weight"] = 2.0 * forward  # sums are read and written
        blocks = _tiles(rows, 64) * _tiles(p.out_features, 64)
        both = _tiles(p.in_features, 16) * _tiles(p.out_features, 64) * _tiles(rows, 512)
        tiles = {"forward": blocks * _tiles(p.in_features, 64), "input": both, "weight": both}
        launches = 1 + (3 if p.out_features > 64 else 2) * p.training
        found[path] = _cost("native", path, cycles, problem, device, launches, tiles)
    return found


def _dense(backend: str, p: Problem, device: Device, tf32: bool, uniform: bool) -> dict[str, float]:
    """Return cycles of a processor for each edge (row, input, output) on matrix units, pass by pass."""
    half = p.dtype in HALF_DTYPES
    operands = "half" if half else "tf32" if tf32 else "strict"
    share = {"half": 1.0, "tf32": 0.5, "strict": 0.5 / 3.0}[operands]
    rate = _CARDS[_nearest(_CARDS, device.arch)][0] * share
    padded = _tiles(p.out_features, 64) * 64 / p.out_features
    base = float(p.base is not None)
    if not BASES[p.basis].local:
        made = p.functions * BASES[p.basis].cycles + base * _BASE
        return dict.fromkeys(PASSES, padded * ((p.functions + base) / rate + made / _LANES / 128.0))
    products = 8.0 * _tiles(p.functions, 8) + base
    counted = _nearest(RATIOS[backend], device.arch)
    beside = products / (_CARDS[counted][0] * share)  # the matrix time where the ratio was counted
    exact = 0.0 if uniform or operands == "strict" else (_EXACT - _UNIFORM) / _LANES / 128.0
    ratios = zip(PASSES, RATIOS[backend][counted][operands], strict=True)
    return {name: padded * (max(products / rate, beside * ratio) + exact) for name, ratio in ratios}


def _gathered(p: Problem, name: str) -> float:
    """Return the same of Triton's gathering kernels."""
    local = BASES[p.basis].local
    base = float(p.base is not None)
    fetched = (p.order + 1.0 if local else p.functions) + base
    fetched *= (2.0 if p.dtype == torch.float64 else 1.0) * (2.0 if name == "weight" else 1.0)
    make = _GATHER if local else p.functions * BASES[p.basis].cycles + base * _BASE
    return fetched * _POINTERS + make / _LANES / min(p.out_features, 32)


def _cost(
    backend: str, path: str, cycles: dict[str, float], problem: Problem, device: Device, launches: int,
    tiles: dict[str, int],
) -> Cost:  # fmt: skip
    """Return cycles an edge as the time of a call on all processors, which take tiles one after another."""
    p, rows = problem, problem.rows or ROWS
    edges = float(rows) * p.in_features * p.out_features
    names = PASSES if p.training else PASSES[:1]
    passes = {}
    for name in names:
        at_once = device.processors * -(-tiles[name] // device.processors)  # places, the idle ones too
        spread = at_once / tiles[name] if path in ("dense", FULL_SUPPORT_PATHS[0]) else 1.0
        factor = _FACTORS.get(f"{backend} {path}", (1.0, 1.0))[p.training] * spread
        passes[name] = factor * edges * cycles[name] / (device.processors * device.clock * 1e3)
    return Cost(path, passes, launches, _HOST[backend], rows)


def _tiles(size: int, tile: int) -> int:
    return max(1, -(-size // tile))


def _nearest(table: Mapping[int, object], arch: int) -> int:
    """Return the newest architecture of a table that is not newer than this one, else the oldest."""
    return max((known for known in table if known <= arch), default=min(table))


def native_paths(problem: Problem, major: int, batch: int = ROWS) -> dict[str, float]:
    """Return cycles an edge of the forward pass of each path of the compiled kernels, as they choose by them.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    names = ("dense", "gather") if BASES[problem.basis].local else FULL_SUPPORT_PATHS
    costs = _native_costs(*_shape(problem, batch), major, BASES[problem.basis].code)
    return {path: cost for path, cost in zip(names, costs, strict=True) if cost < float("inf")}


def native_taken(problem: Problem, device: Device) -> str:
    """Return the path that the compiled kernels take for a problem.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    costs = native_paths(problem, device.arch // 10, problem.rows or ROWS)
    return min(costs, key=lambda name: costs[name])


def native_path(problem: Problem, major: int, batch: int = ROWS) -> str:
    """Return the path that the compiled kernels take for a problem, in words with both costs.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    costs = native_paths(problem, major, batch)
    path = min(costs, key=lambda name: costs[name])
    said = ", ".join(f"{cycles:.4f} {name}" for name, cycles in costs.items())
    reason = torch.ops.kan_kernels.cuda_path_reason(*_shape(problem, batch), BASES[problem.basis].code)
    return f"{path} path; cycles an edge: {said}{'; ' if reason else ''}{reason}"


def _native_costs(*shape_major_and_basis: int) -> tuple[float, float]:
    if "cuda" not in library.DEVICES:
        raise RuntimeError("this library was built without CUDA kernels: KAN_KERNELS_CUDA=1 builds them")
    return torch.ops.kan_kernels.cuda_costs(*shape_major_and_basis)


def _shape(p: Problem, batch: int) -> tuple[int, ...]:
    sizes = batch, p.in_features, p.out_features, p.functions, p.order
    return *sizes, BASE_CODES[p.base], _DTYPES[p.dtype], p.derivative


def network_launches(batch: int, shapes: list[tuple[int, int, int]], order: int, base: str | None,
                     dtype: torch.dtype, biased: bool, major: int) -> str:  # fmt: skip
    """Return how many launches the library takes for a network on a GPU, in a phrase for `explain`.

    shapes: in, functions and out of each layer. major: of the compute capability.
    """
    into, functions, out = map(list, zip(*shapes, strict=True))
    reasons = torch.ops.kan_kernels.cuda_network_reason(
        batch, into, out, functions, order, BASE_CODES[base], _DTYPES[dtype], biased, major
    )
    said = []
    for way, reason in zip(("forward", "backward"), reasons, strict=True):
        said.append(f"one launch {way}" if not reason else f"a launch or more a layer {way}, since {reason}")
    return "; ".join(said)
