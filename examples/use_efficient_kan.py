"""efficient-kan code, faster by one line.

    python -m examples.use_efficient_kan [MODULE]

MODULE has the `KAN`: efficient_kan, the peer's own package, which is not on PyPI
(github.com/Blealtan/efficient-kan, its folder src on the path), or any copy of it.
"""

import importlib
import sys
import time

import torch

from kan_kernels.integrations import accelerate, restore


def train(model: torch.nn.Module, steps: int) -> tuple[float, float]:
    """Fit exp(sin(pi x) + y^2); the last loss and the milliseconds of a step."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(1000, 2, generator=generator) - 1
    target = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)
    model(x, update_grid=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), target)
        penalty = sum(layer.regularization_loss() for layer in model.layers)
        (loss + 1e-6 * penalty).backward()
        optimizer.step()
    return float(loss.detach()), 1e3 * (time.perf_counter() - start) / steps


def main(module: str = "efficient_kan", steps: int = 200) -> None:
    try:
        peer = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: put efficient-kan's folder src on the path, or name a copy") from None
    for fast in (False, True):
        torch.manual_seed(0)
        model = peer.KAN([2, 32, 32, 1])
        if fast:
            report = accelerate(model)  # the one line
            print(report)
            if len(report.taken) != len(model.layers):
                raise SystemExit(f"{module} is not taken for efficient-kan, so there is nothing to compare")
        loss, milliseconds = train(model, steps)
        print(f"{'accelerated' if fast else 'as it is'}: loss {loss:.2e}, {milliseconds:.2f} ms a step")
    restore(model)  # its own class again; parameters, optimizer and state dict never changed
    print(type(model.layers[0]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
