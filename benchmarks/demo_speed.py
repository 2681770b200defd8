"""Small and narrow networks beside MLPs: what `make demo` says of their speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from . import measure
from .document import milliseconds, times
from .providers.mlp import make_mlp
from .report import markdown_table
from .workloads import WORKLOADS, Workload

NAMES = ("toy", "toy4", "toy-deep", "medium", "mnist")
BUDGET = measure.Budget(seconds=0.2, sample=0.004, most=60, least=3)


def forward_backward(model: nn.Module, x: Tensor, cotangent: Tensor) -> None:
    """Leave the gradients of all parameters in their `grad`."""
    model.zero_grad()
    model(x).backward(cotangent)


def time_networks(workload: Workload, budget: measure.Budget = BUDGET) -> list[float]:
    """Return ms of a forward and backward: of the KAN, the MLP of its widths, that of its parameters."""
    from kan_kernels import KAN

    torch.manual_seed(0)
    widths = workload.widths
    models: list[nn.Module] = [KAN(list(widths), workload.grid_size)]
    models += [make_mlp(widths), make_mlp(workload.same_parameter_widths())]
    x, cotangent = torch.rand(workload.batch, widths[0]), torch.rand(workload.batch, widths[-1])
    calls: list[Callable[[], None]] = [partial(forward_backward, model, x, cotangent) for model in models]
    cells = [measure.Cell(str(n), call) for n, call in enumerate(calls)]
    measure.measure(cells, budget)
    for cell in cells:
        if cell.error is not None:
            raise RuntimeError(f"{workload.shape}: {cell.error}")
    return [float(cell.summary()["median_ms"]) for cell in cells]


def speed_table(budget: measure.Budget = BUDGET) -> str:
    """Return the table: interleaved runs, whoever wins."""
    head = ["one forward and backward", "KAN, ms", "x MLP of the same widths", "x MLP of as many parameters"]
    body = []
    for name in NAMES:
        kan, same_widths, same_parameters = time_networks(WORKLOADS[name], budget)
        row = [milliseconds(kan), times(kan / same_widths), times(kan / same_parameters)]
        body.append([WORKLOADS[name].shape, *row])
    return f"## Small and narrow networks\n\n{markdown_table(head, body, (0,))}"
