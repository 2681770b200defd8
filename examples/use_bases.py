"""FastKAN, ChebyKAN, FourierKAN on these kernels: the peers' layers by another import, their checkpoints too.

    python -m examples.use_bases [STEPS]

exp(sin(pi x) + y^2) by Gaussians, by Chebyshev polynomials, by waves and by B-splines, each [2, 16, 1].
"""

import sys
import time

import torch
from torch import Tensor, nn

from kan_kernels import KAN
from kan_kernels.integrations.cheby_kan import (
    ChebyKANLayer,  # was: from ChebyKANLayer import ChebyKANLayer
)
from kan_kernels.integrations.fast_kan import FastKAN  # was: from fastkan import FastKAN
from kan_kernels.integrations.fourier_kan import (
    NaiveFourierKANLayer,  # was: from fftKAN import NaiveFourierKANLayer
)


def networks() -> dict[str, nn.Module]:
    return {
        "Gaussians (FastKAN)": FastKAN([2, 16, 1]),
        "Chebyshev (ChebyKAN)": nn.Sequential(
            ChebyKANLayer(2, 16, 6), nn.LayerNorm(16), ChebyKANLayer(16, 1, 6)
        ),
        "Waves (FourierKAN)": nn.Sequential(
            NaiveFourierKANLayer(2, 16, 3, smooth_initialization=True),
            NaiveFourierKANLayer(16, 1, 3, smooth_initialization=True),
        ),
        "B-splines (KAN)": KAN([2, 16, 1], grid_range=(-2.0, 2.0)),
    }


def data() -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) - 1
    return x, torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)


def main(steps: int = 500) -> dict[str, float]:
    """The last loss of each."""
    losses = {}
    torch.manual_seed(0)
    x, target = data()
    for name, model in networks().items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
        milliseconds = 1e3 * (time.perf_counter() - start) / steps
        print(f"{name}: mean squared error {losses[name]:.2e}, {milliseconds:.2f} ms a step")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
