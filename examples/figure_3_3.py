"""Figure 3.3: the Poisson equation, solved by a KAN and by MLPs as physics-informed networks.

    python -m examples.figure_3_3 [--fast]

u_xx + u_yy = f on [-1,1]^2 with u = 0 on the boundary, where u = sin(pi x) sin(pi y^2). The loss is the
paper's: the mean square of the residual inside, times 0.01, plus that of u on the boundary. The residual
is a module around the network, so `fit` trains it as it trains any module; the second derivatives run
the same kernels as the first. Every MLP gets at least the time that the KAN took, changes of its grids
included. One seed; all networks start LBFGS anew every ten steps, which refinement asks of the KAN only.
"""

import math
import time

import torch
from torch import Tensor, nn

from kan_kernels import KAN
from kan_kernels.grids import refine, update_grid
from kan_kernels.training import fit

from .common import main

WEIGHT, PI = 0.01, math.pi


def solution(p: Tensor) -> Tensor:
    return torch.sin(PI * p[:, :1]) * torch.sin(PI * p[:, 1:] ** 2)


def source(p: Tensor) -> Tensor:
    x, y = p[:, :1], p[:, 1:]
    curved = 2 * PI * torch.cos(PI * y**2) - (4 * PI**2 * y**2 + PI**2) * torch.sin(PI * y**2)
    return torch.sin(PI * x) * curved


class Poisson(nn.Module):
    """(points) -> weighted residuals, whose mean square is the loss (times points / inner points)."""

    def __init__(self, net: nn.Module, inner: int, outer: int) -> None:
        super().__init__()
        self.net, self.inner = net, inner
        self.scale = math.sqrt(WEIGHT), math.sqrt(inner / outer)

    @torch.enable_grad()
    def forward(self, points: Tensor) -> Tensor:
        p = points[: self.inner].detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(p).sum(), p, create_graph=True)
        bends = (torch.autograd.grad(slope[:, i].sum(), p, create_graph=True)[0][:, i] for i in (0, 1))
        inside = self.scale[0] * (sum(bends).unsqueeze(1) - source(p))
        return torch.cat([inside, self.scale[1] * self.net(points[self.inner :])])


def mesh(n: int) -> tuple[Tensor, int, int]:
    """n^2 points inside and 4 n on the boundary, and their numbers."""
    line, one = torch.linspace(-1, 1, n + 2), torch.ones(n)
    inside = torch.cartesian_prod(line[1:-1], line[1:-1])
    side = torch.linspace(-1, 1, n)
    edges = [(side, one), (side, -one), (one, side), (-one, side)]
    return torch.cat([inside, *(torch.stack(edge, 1) for edge in edges)]), n * n, 4 * n


def errors(net: nn.Module) -> dict[str, float]:
    """Mean squared errors of u (L2) and of its gradient (H1's seminorm) on a mesh of 101^2 points."""
    line = torch.linspace(-1, 1, 101)
    p = torch.cartesian_prod(line, line).requires_grad_()
    gap = net(p) - solution(p)
    (slope,) = torch.autograd.grad(gap.sum(), p)
    return {"l2": gap.detach().square().mean().item(), "h1": slope.square().sum(1).mean().item()}


def train(net: nn.Module, stages: list[int], least: float, n: int) -> dict:
    """One stage for each grid size (0: as it is), then more of the last until `least` seconds have passed."""
    points, inner, outer = mesh(n)
    zeros, problem = torch.zeros(len(points), 1), Poisson(net, inner, outer)
    seconds, trace = 0.0, []
    while len(trace) < len(stages) or seconds < least:
        size, start = stages[min(len(trace), len(stages) - 1)], time.perf_counter()
        if size:
            refine(net, size)
            update_grid(net, points, grid_eps=1.0)
        fit(problem, (points, zeros), steps=10)
        seconds += time.perf_counter() - start
        trace.append({"seconds": round(seconds, 2), "grid": size, **errors(net)})
    return {"parameters": sum(p.numel() for p in net.parameters()), **trace[-1], "trace": trace}


def run(fast: bool) -> dict:
    n, stages = (12, [5]) if fast else (32, [5, 5, 10, 10, 20, 20, 20, 20])
    fit(nn.Linear(1, 1), (torch.zeros(1, 1),) * 2, steps=1)  # torch loads much at its first optimizer
    torch.manual_seed(0)
    kan = train(KAN([2, 10, 1], grid_size=5), stages, 0.0, n)
    results = {"KAN [2,10,1]": kan}
    for width in (20,) if fast else (20, 50, 100):
        torch.manual_seed(0)
        layers = nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        results[f"MLP [2,{width},{width},1]"] = train(nn.Sequential(*layers), [0], kan["seconds"], n)
    best = min(list(results.values())[1:], key=lambda r: r["l2"])
    row = "{l2:.1e} and {h1:.1e}, {parameters} parameters, {seconds} s"
    return {
        "summary": [
            {
                "what": "MSE of u and of its gradient, KAN [2,10,1]",
                "ours": row.format(**kan),
                "theirs": "1e-7 (2-layer width-10 KAN, 10^2 parameters)",
            },
            {
                "what": "the same, best of the MLPs after at least that time",
                "ours": row.format(**best),
                "theirs": "1e-5 (4-layer width-100 MLP, 10^4 parameters)",
            },
        ],
        "networks": results,
    }


if __name__ == "__main__":
    main("figure_3_3", "Figure 3.3: the Poisson equation", run)
