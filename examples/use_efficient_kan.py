"""efficient-kan code, faster by one line.

    python -m examples.use_efficient_kan

Runs on the peer's own package if it is on the path, else on the drop-in, which has the same constructor.
"""

import time

import torch

from kan_kernels.integrations import accelerate, restore

try:
    from efficient_kan import KAN
except ImportError:
    from kan_kernels.compat.efficient_kan import KAN


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
        (loss + 1e-6 * model.regularization_loss()).backward()
        optimizer.step()
    return float(loss.detach()), 1e3 * (time.perf_counter() - start) / steps


def main(steps: int = 200) -> None:
    for fast in (False, True):
        torch.manual_seed(0)
        model = KAN([2, 32, 32, 1])
        if fast:
            print(accelerate(model))  # the one line
        loss, milliseconds = train(model, steps)
        print(f"{'accelerated' if fast else 'as it is'}: loss {loss:.2e}, {milliseconds:.2f} ms a step")
    restore(model)  # its own class again; parameters, optimizer and state dict never changed
    print(type(model.layers[0]))


if __name__ == "__main__":
    main()
