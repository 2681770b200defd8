"""The workloads: shapes, batch, grid, and what is counted of them (parameters, floating point operations)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

FORWARD, TRAIN, STEP, SECOND = "forward", "forward+backward", "training-step", "second-derivative"
MODES = (FORWARD, TRAIN, STEP, SECOND)


@dataclass(frozen=True)
class Workload:
    """One network and one batch; float32 unless said, uniform grid on [-1, 1].

    ``input_grad`` says whether x itself needs a gradient in forward+backward: it does when the workload
    stands for one layer inside a network, it does not when the workload is the whole network.
    ``modes`` are those that run by default; ``threads`` says at which thread counts ("all", "1").
    """

    name: str
    widths: tuple[int, ...]
    batch: int
    grid_size: int = 5
    spline_order: int = 3
    input_grad: bool = False
    modes: tuple[str, ...] = (FORWARD, TRAIN, STEP)
    protocol_multiplier: int | None = None  # hidden x 10, the MLP of the public KAN-benchmarking protocol
    note: str = ""
    headline: bool = True  # the workloads on which --quick spends time compiling rivals

    @property
    def bases(self) -> int:
        """Bases per edge, G + k."""
        return self.grid_size + self.spline_order

    @property
    def edges(self) -> int:
        return sum(i * o for i, o in pairwise(self.widths))

    @property
    def kan_parameters(self) -> int:
        """G + k spline coefficients and one base weight on every edge."""
        return self.edges * (self.bases + 1)

    @property
    def large(self) -> bool:
        """So many evaluations of edge functions that unfused code takes a good part of a second."""
        return self.batch * self.edges > 50_000_000

    @property
    def basis_bytes(self) -> int:
        """Size of the dense float32 basis of the widest layer, which unfused implementations store."""
        return 4 * self.batch * max(self.widths[:-1]) * self.bases

    @property
    def shape(self) -> str:
        return f"[{','.join(map(str, self.widths))}] B={self.batch} G={self.grid_size}"

    def same_parameter_widths(self) -> tuple[int, ...]:
        """Widths of the MLP with the KAN's number of parameters.

        With one hidden layer the rule "hidden x (G + k + 1)" matches the weights exactly. A single KAN layer
        has no hidden width to scale, so its MLP gets one hidden layer of the size that matches. With several
        hidden layers the multiplier that comes nearest is used.
        """
        w = self.widths
        if len(w) == 2:
            return (w[0], max(1, round(self.kan_parameters / (w[0] + w[1]))), w[1])
        if len(w) == 3:
            return (w[0], w[1] * (self.bases + 1), w[2])
        ends = w[0] * w[1] + w[-2] * w[-1]
        inner = sum(a * b for a, b in pairwise(w[1:-1]))
        m = (-ends + math.sqrt(ends * ends + 4 * inner * self.kan_parameters)) / (2 * inner)
        return (w[0], *(max(1, round(h * m)) for h in w[1:-1]), w[-1])

    def useful_flops(self, mode: str) -> int | None:
        """Useful floating point operations of one call: B*I*O*(k+2)*2 for each contraction of a layer.

        Forward is one contraction; backward adds one for the weights and one for the input, which the first
        layer skips when x needs no gradient. Basis and optimizer do not count. None for second derivatives.
        """
        unit = [2 * self.batch * i * o * (self.spline_order + 2) for i, o in pairwise(self.widths)]
        if mode == FORWARD:
            return sum(unit)
        if mode in (TRAIN, STEP):
            with_x = mode == TRAIN and self.input_grad
            return 3 * sum(unit) - (0 if with_x else unit[0])
        return None

    def dense_flops(self, mode: str) -> int:
        """Floating point operations of the dense evaluation: B*I*O*(G+k+1)*2 for each contraction of a layer.

        Contractions are counted as in ``useful_flops``; it equals the same-parameter MLP's in both passes.
        """
        useful = self.useful_flops(mode)
        if useful is None:
            raise ValueError(f"mode: no count of operations for {mode!r}")
        return useful // (self.spline_order + 2) * (self.bases + 1)

    def signal_bytes(self) -> int:
        """Bytes of x, y and their two gradients in float32: the unit of the memory target."""
        return 2 * 4 * self.batch * (self.widths[0] + self.widths[-1])

    def to_json(self) -> dict[str, Any]:
        """Return what a report says of it."""
        mlp = {"mlp_same_parameter_widths": list(self.same_parameter_widths())}
        counted = {"kan_parameters": self.kan_parameters, "signal_bytes": self.signal_bytes()}
        return {**asdict(self), "shape": self.shape, **mlp, **counted}


@dataclass
class LayerWeights:
    """float64 master weights of one KAN layer; every exact provider gets a cast copy of the same numbers.

    spline (in, G+k, out), base (in, out), grid (in, G+2k+1).
    """

    spline: torch.Tensor
    base: torch.Tensor
    grid: torch.Tensor


@dataclass
class Problem:
    """Data and weights: x (B, in), cotangent and target (B, out), one LayerWeights per layer."""

    workload: Workload
    x: torch.Tensor
    cotangent: torch.Tensor
    target: torch.Tensor
    layers: list[LayerWeights] = field(default_factory=list)

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The same problem in ``dtype`` on ``device``.

        The float64 master weights and the data are rounded to ``dtype`` first, so that the float64 reference
        starts from the very numbers that the providers get.
        """

        def data(t: torch.Tensor) -> torch.Tensor:
            return t.to(device, dtype)

        layers = [
            LayerWeights(data(w.spline).double(), data(w.base).double(), w.grid.to(device))
            for w in self.layers
        ]
        return Problem(self.workload, data(self.x), data(self.cotangent), data(self.target), layers)


def uniform_grid(features: int, grid_size: int, spline_order: int) -> torch.Tensor:
    """Uniform knots (features, G+2k+1), float64, with G cells on [-1, 1] and k more cells on each side."""
    step = 2.0 / grid_size
    knots = torch.arange(-spline_order, grid_size + spline_order + 1, dtype=torch.float64) * step - 1.0
    return knots.expand(features, -1).contiguous()


def make_problem(workload: Workload, seed: int = 0) -> Problem:
    """Seeded data and weights. x is uniform on the grid range and exactly representable in float32."""
    gen = torch.Generator().manual_seed(seed)
    w = workload

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=gen, dtype=torch.float32) * 2 - 1

    x = rand(w.batch, w.widths[0])
    cotangent, target = rand(w.batch, w.widths[-1]), rand(w.batch, w.widths[-1])
    layers = []
    for i, o in pairwise(w.widths):
        spline = rand(i, w.bases, o).double() / math.sqrt(i)
        base = rand(i, o).double() * math.sqrt(6.0 / (i + o))
        grid = uniform_grid(i, w.grid_size, w.spline_order)
        layers.append(LayerWeights(spline.float().double(), base.float().double(), grid))
    return Problem(w, x, cotangent, target, layers)


_MODES, _SMALL_MODES = (FORWARD, TRAIN, STEP), (FORWARD, TRAIN, STEP, SECOND)


def _named(*workloads: Workload) -> dict[str, Workload]:
    return {w.name: w for w in workloads}


PUBLIC = "shape and batch of the public KAN-benchmarking protocol"
SCIENTIST = "the scientist's case: bound by launches and Python"
BIG_BATCH = "one layer, big batch, fine grid: peak memory"
# name, widths, batch, grid size, order, gradient of x, modes, protocol's multiplier, note, headline
WORKLOADS = _named(
    Workload("wide-g5", (256, 256, 256), 4096, 5, note="large layers, compute bound"),
    Workload("wide-g20", (256, 256, 256), 4096, 20, headline=False, note="large layers, fine grid"),
    Workload("protocol", (1000, 1000, 1), 100, 5, protocol_multiplier=10, note=PUBLIC),
    Workload("mnist", (784, 64, 10), 256, 5, 3, False, _MODES, 10, "the shape of an MNIST classifier", False),
    Workload("medium", (64, 64, 64), 1000, 5, modes=_SMALL_MODES, headline=False, note="medium widths"),
    Workload("toy", (2, 5, 1), 1000, 5, modes=_SMALL_MODES, headline=False, note=SCIENTIST),
    Workload("toy4", (4, 5, 1), 1000, 5, headline=False, note=SCIENTIST),
    Workload("toy-deep", (2, 5, 5, 1), 1000, 5, headline=False, note=SCIENTIST),
    Workload("medium-b256", (64, 64, 64), 256, 5, headline=False, note="medium widths, a small batch"),
    Workload("memory", (64, 64), 65536, 20, 3, True, (TRAIN,), None, BIG_BATCH, headline=False),
)
SMOKE_WORKLOADS = _named(
    Workload("smoke-network", (5, 4, 3), 33, 5, modes=_SMALL_MODES, protocol_multiplier=10),
    Workload("smoke-layer", (6, 4), 64, 7, input_grad=True, modes=(TRAIN,), headline=False),
)


def find_workload(name: str) -> Workload:
    """The workload called ``name``; ValueError lists the known names."""
    known = {**WORKLOADS, **SMOKE_WORKLOADS}
    if name not in known:
        raise ValueError(f"unknown workload {name!r}; known: {', '.join(known)}")
    return known[name]
