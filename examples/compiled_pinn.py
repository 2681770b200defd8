"""A step of a physics-informed network compiled whole, timed beside the same step in eager mode.

    python -m examples.compiled_pinn [--backend inductor] [--rounds 30] [--points 1000]

u_t = u_xx on points (t, x). Three ways to the loss and its gradients over all weights:
  autograd     derivatives of u by torch.autograd.grad, backward(): the fused kernels, call after call
  torch.func   the same by torch.func, not compiled
  compiled     torch.func within one torch.compile: a single graph of torch's operators, which Inductor fuses
All three must agree to rounding before anything is timed. The times are taken in turn, round after round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp

from kan_kernels import KAN

Parameters = dict[str, Tensor]


def by_autograd(net: KAN, points: Tensor) -> tuple[Tensor, Parameters]:
    points = points.detach().requires_grad_()
    (first,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 1].sum(), points, create_graph=True)
    loss = (first[:, 0] - second[:, 1]).square().mean()
    named = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return loss.detach(), dict(zip(named, found, strict=True))


def by_func(net: KAN) -> Callable[[Parameters, Tensor], tuple[Tensor, Parameters]]:
    """A function of parameters and points; forward mode gives u_t and u_xx without a graph of u."""

    def loss(parameters: Parameters, points: Tensor) -> tuple[Tensor, Tensor]:
        def u(points: Tensor) -> Tensor:
            return functional_call(net, parameters, (points,))

        along_t, along_x = (torch.eye(2, dtype=points.dtype)[n].expand_as(points) for n in (0, 1))
        u_t = jvp(u, (points,), (along_t,))[1]
        u_xx = jvp(lambda p: jvp(u, (p,), (along_x,))[1], (points,), (along_x,))[1]
        value = (u_t - u_xx).square().mean()
        return value, value

    def step(parameters: Parameters, points: Tensor) -> tuple[Tensor, Parameters]:
        found, value = grad(loss, has_aux=True)(parameters, points)
        return value, found

    return step


def ways(points: int, backend: str) -> dict[str, Callable[[], tuple[Tensor, Parameters]]]:
    torch.manual_seed(0)
    net = KAN([2, 10, 10, 1], spline_order=4)
    x = torch.rand(points, 2) * 2 - 1
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    step = by_func(net)
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    return {
        "autograd": lambda: by_autograd(net, x),
        "torch.func": lambda: step(parameters, x),
        "compiled": lambda: compiled(parameters, x),
    }


def main(points: int = 1000, rounds: int = 30, backend: str = "inductor") -> dict[str, float]:
    """Compare, then time; return the median of each way as a ratio to autograd's."""
    steps = ways(points, backend)
    results = {name: step() for name, step in steps.items()}
    loss, wanted = results["autograd"]
    for name, (value, found) in results.items():
        torch.testing.assert_close(value, loss, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
        for key, gradient in wanted.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    base = statistics.median(seconds["autograd"])
    print(f"{points} points, {torch.get_num_threads()} threads, torch {torch.__version__}, {backend}")
    ratios = {}
    for name, samples in seconds.items():
        low, middle, high = statistics.quantiles(samples, n=4)
        ratios[name] = middle / base
        print(f"{name:11} {middle / base:5.2f} of autograd ({low / base:.2f} to {high / base:.2f})")
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A PINN step compiled whole.")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--points", type=int, default=1000)
    given = parser.parse_args()
    main(given.points, given.rounds, given.backend)
